"""What the machine under a mesh is: its kind, its memory, its versions."""

import os

import jax
import jaxlib
import numpy as np
from jax.sharding import Mesh

from model.engine.shapes import Machine

_SHARE_OF_HOST = 8
"""On a CPU the cache takes at most one part in so many of the memory."""

ACCELERATOR_RESERVE = 2 << 30
"""Bytes of a device left for a step's temporaries and the runtime."""


def describe_machine(
    mesh: Mesh, weight_bytes: int, memory: int | None = None, replicas: int = 1
) -> Machine:
    """The machine, with the memory that the weights leave to the cache.

    Args:
      mesh: its devices.
      weight_bytes: of all weights over all devices.
      memory: bytes of a device; None asks it, which only one that is present can answer.
      replicas: of the model that share a CPU's memory.
    """
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        share = host // _SHARE_OF_HOST // replicas
        return Machine(platform="cpu", devices=mesh.size, cache_bytes=share)
    if memory is None:
        memory = (device.memory_stats() or {}).get("bytes_limit", 16 << 30)
    free = memory - weight_bytes // mesh.size - ACCELERATOR_RESERVE
    platform = "gpu" if device.platform in ("gpu", "cuda", "rocm") else device.platform
    return Machine(platform=platform, devices=mesh.size, cache_bytes=max(free, 0) * mesh.size)


def memory_in_use(mesh: Mesh) -> int:
    """Bytes in use on the fullest device of this process; 0 where devices do not tell."""
    return max((d.memory_stats() or {}).get("bytes_in_use", 0) for d in mesh.local_devices)


def versions(mesh: Mesh) -> dict[str, str]:
    """Device and libraries that a result's bits may depend on, for a file's footer."""
    device = mesh.devices.flat[0]
    facts = {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": str(mesh.size),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": np.__version__,
    }
    if device.platform == "cpu":
        facts["cpu_threads"] = str(len(os.sched_getaffinity(0)))
        facts["cpu_features"] = _cpu_features()
    return facts


def _cpu_features() -> str:
    """The vector extensions that decide the compiler's code; empty where they cannot be read."""
    wanted = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return ""
    return " ".join(flag for flag in wanted if flag in flags)
