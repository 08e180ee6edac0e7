"""Compiles the kernels for this machine, once, and makes them known to XLA.

``python -m model.kernels.cpu.build`` does so ahead of the first run, or says why it cannot: the
engine computes by XLA's own products then.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jaxlib

from model.private_folder import own_cache

HANDLERS = ("project", "attention", "route", "experts", "matmul")

_FLAGS = ("-std=c++20", "-O3", "-shared", "-fPIC", "-pthread")
_FEATURES = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")
"""What the CPU must have, by the kernel's names, which without ``_`` are the compiler's too."""

_FASTER = "avx512_bf16"
"""What it is better to have: without it, values are widened to float32."""

_log = logging.getLogger(__name__)


@functools.cache
def load() -> bool:
    """Whether the kernels can be used here; compiles them if that has not been done."""
    if reason := _unfit():
        _log.info("CPU kernels are not used: %s", reason)
        return False
    try:
        _register(_built())
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("CPU kernels are not used, and all is slower: %s", error)
        return False
    return True


def _unfit() -> str | None:
    if missing := [name for name in _FEATURES if name not in _cpu_flags()]:
        return f"this CPU lacks {', '.join(missing)}"
    if _compiler() is None:
        return "there is no C++ compiler (g++, clang++ or $CXX)"
    return None


def _cpu_flags() -> list[str]:
    try:
        with open("/proc/cpuinfo") as file:
            return next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return []


def kind() -> str:
    """What the kernels multiply with here, as it is recorded."""
    return _FASTER if _FASTER in _cpu_flags() else _FEATURES[0]


def features() -> list[str]:
    """The compiler's flags for what is used of this CPU."""
    return ["-m" + name.replace("_", "") for name in dict.fromkeys((*_FEATURES, kind()))]


def _compiler() -> str | None:
    names = (os.environ.get("CXX"), "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def _built() -> Path:
    """The library's file, compiled unless this source has been by this compiler."""
    here = Path(__file__).parent
    sources = sorted(here.glob("*.cc"))
    compiler = _compiler()
    assert compiler is not None
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    choices = [jaxlib.__version__, platform.machine(), *_FLAGS, *features()]
    texts = [path.read_bytes() for path in [*sources, *sorted(here.glob("*.h"))]]
    digest = hashlib.blake2b(digest_size=12)
    for fact in [version, *map(str.encode, choices), *texts]:
        digest.update(len(fact).to_bytes(8, "little") + fact)
    # Without a folder of its own the account compiles for each process.
    folder = own_cache("kernels") or Path(tempfile.mkdtemp(prefix="grok1-kernels-"))
    library = folder / f"{digest.hexdigest()}.so"
    if not library.exists():
        _compile(compiler, sources, library)
    return library


def _compile(compiler: str, sources: list[Path], library: Path) -> None:
    # Beside its place and then moved there: several processes may be at it at once.
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        made = Path(scratch) / library.name
        done = subprocess.run(
            [
                compiler,
                *_FLAGS,
                *features(),
                f"-isystem{jax.ffi.include_dir()}",
                *map(str, sources),
                "-o",
                made,
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            error = next((line for line in done.stderr.splitlines() if "error" in line), "")
            raise subprocess.SubprocessError(f"{compiler} failed: {error:.300}")
        os.replace(made, library)


def _register(path: Path) -> None:
    library = ctypes.CDLL(str(path))
    for name in HANDLERS:
        handler = jax.ffi.pycapsule(getattr(library, f"grok1_{name}"))
        jax.ffi.register_ffi_target(f"grok1_{name}", handler, platform="cpu")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    load()
