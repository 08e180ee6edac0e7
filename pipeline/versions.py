"""What a bug report needs: versions, and the machine. It asks the system alone, and imports nothing
of what it tells the version of, JAX least of all, which would take the devices.
"""

import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
from collections import Counter

_LIBRARIES = ("apache-beam", "jax", "jaxlib", "numpy", "pyarrow", "fsspec", "sentencepiece")
_PLUGINS = ("libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin")
"""What lets JAX use accelerators; told where it is there."""

_PCI = pathlib.Path("/sys/bus/pci/devices")
_GOOGLE = "0x1ae0"
_TPUS = {
    "0x005e": "TPU v4",
    "0x0062": "TPU v5p",
    "0x0063": "TPU v5e",
    "0x006f": "TPU v6e",
    "0x0076": "TPU v7x",
}
"""By the id of a chip's PCI device, as ``jax._src.hardware_utils`` has them."""

_SECONDS = 10
"""For the driver's tool to answer."""


def facts() -> dict[str, str]:
    """What is told of versions and machine, line by line."""
    installed = versions()
    libraries = [
        f"{name} {installed[name]}" for name in (*_LIBRARIES, *_PLUGINS) if name in installed
    ]
    return {
        "grok1": f"{installed['grok1']}, code {code_identity()[:12]}, python {installed['python']}",
        "libraries": ", ".join(libraries),
        "system": " ".join(
            filter(None, [platform.system(), platform.release(), platform.machine(), _libc()])
        ),
        "processor": f"{_processor()}, {_cores()} cores, {_memory_gib():.0f} GiB of memory",
        "accelerators": ", ".join([*_tpus(), *_gpus()]) or "none found",
    }


def versions() -> dict[str, str]:
    """Of this project, Python and the libraries, by name; of JAX's plugins those installed."""
    libraries = {name: version(name) for name in _LIBRARIES}
    plugins = {name: version(name) for name in _PLUGINS if version(name) != _ABSENT}
    own = {"grok1": version("grok1-batch"), "python": platform.python_version()}
    return own | libraries | plugins


@functools.cache
def code_identity() -> str:
    """Hash of this project's own source, as it runs here."""
    root = pathlib.Path(__file__).parent.parent
    digest = hashlib.blake2b(digest_size=16)
    for package in ("model", "pipeline", "schemas"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


_ABSENT = "not installed"


def version(package: str, absent: str = _ABSENT) -> str:
    """Of a package; ``absent`` where the source runs without being installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return absent


def _libc() -> str:
    return " ".join(platform.libc_ver()).strip()


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line for line in lines if line.startswith("model name")), "")
    return name.partition(":")[2].strip() or platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _tpus() -> list[str]:
    found: Counter[str] = Counter()
    for device in _PCI.iterdir() if _PCI.is_dir() else ():
        try:
            if (device / "vendor").read_text().strip() == _GOOGLE:
                found[(device / "device").read_text().strip()] += 1
        except OSError:
            continue
    return [f"{count} × {_TPUS[kind]}" for kind, count in sorted(found.items()) if kind in _TPUS]


def _gpus() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return [f"an NVIDIA driver that does not answer ({type(error).__name__})"]
    found = Counter(tuple(line.split(", ")) for line in told.splitlines() if ", " in line)
    return [f"{count} × {name} (driver {driver})" for (name, driver), count in found.items()]
