"""The machine that was measured on."""

import os
import pathlib
import platform

from model.kernels.cpu import build


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def describe() -> str:
    """The processor and how many cores of it."""
    model = platform.processor()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return f"{cores()} cores of {model or platform.machine()}"


def kind() -> str:
    """What this engine multiplies with here; documents have a section for each."""
    return build.kind() if build.load() else "plain"
