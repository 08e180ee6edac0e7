"""How fast checkpoints load, beside plain parallel reads of the same files.

Writes a random model of Grok-1's width (fewer layers, experts of 1/8 of the width) in the release's
layout, makes a store of it, and loads each onto virtual CPU devices as accelerators hold weights:
int8, layers stacked, each device its part. Each load runs in a process of its own, and so do a
plain read of the same files into memory of the same size and a read by the loader that leaves out
the devices, each for the second time: small programs that place weights are compiled by then.
Before it the files are dropped from the page cache, or read once. A store's load compares every
checksum, too.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from bench import markdown
from model.memory import peak_bytes

DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "quantization.md"
_BLOCK = 16 << 20
_THREADS = 8
_DEVICES = 8


def main() -> None:
    """Measures in turns, prints, and records if asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench.loading", description=__doc__)
    parser.add_argument("--layers", type=int, default=2, help="of the model (2: 2.2 GB)")
    parser.add_argument("--rounds", type=int, default=3, help="of all measurements in turn (3)")
    parser.add_argument("--folder", help="where to write it (a temporary one, removed)")
    parser.add_argument("--write", action="store_true", help=f"record in {DOCUMENT.name}")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        print(json.dumps(_run(*given.run)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        report = _measure(pathlib.Path(folder), given.layers, given.rounds)
    print(report)
    if given.write:
        markdown.replace(DOCUMENT, "loading", report)


def _measure(folder: pathlib.Path, layers: int, rounds: int) -> str:
    from model.checkpoint.convert import convert
    from model.checkpoint.synth import synthesize
    from model.config import GROK_1

    config = dataclasses.replace(GROK_1, num_layers=layers, vocab_size=32768, ffn_size=4096)
    synthesize(str(folder / "release"), config)
    convert(str(folder / "release"), str(folder / "store"))
    best: dict[tuple[str, str, str], dict[str, float]] = {}
    for _ in range(rounds):
        for cache in ("cold", "warm"):
            for kind in ("release", "store"):
                for way in ("plain", "read", "load"):
                    found = _in_process(way, folder / kind, cache)
                    key = (cache, kind, way)
                    if key not in best or found["seconds"] < best[key]["seconds"]:
                        best[key] = found
    rows = []
    for (cache, kind, way), found in best.items():
        if way == "load":
            speed, plain = found["gb"] / found["seconds"], best[cache, kind, "plain"]
            times = [f"{found['seconds']:.1f} s", f"{speed:.2f} GB/s"]
            for some in (found, best[cache, kind, "read"]):
                times.append(f"{plain['seconds'] / some['seconds'] * some['gb'] / plain['gb']:.0%}")
            sizes = [f"{found['peak_gb']:.1f} GB", f"{found['gb']:.1f} GB"]
            rows.append([kind, cache, *times, *sizes])
    shares = ["of plain reads", "without devices"]
    header = ["layout", "page cache", "loaded in", "speed", *shares, "peak memory", "size"]
    return markdown.table(header, rows)


def _in_process(way: str, folder: pathlib.Path, cache: str) -> dict[str, float]:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # as in the worker's image
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={_DEVICES}",
    }
    ran = subprocess.run(
        [sys.executable, "-m", "bench.loading", "--run", way, str(folder), cache],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(ran.stdout)


def _run(way: str, folder: str, cache: str) -> dict[str, float]:
    measure = {"plain": _plain, "read": _read, "load": _load}[way]
    measure(folder)  # compiles the copies that place weights, as every other start does not
    _prepare(pathlib.Path(folder), cache)
    seconds, nbytes = measure(folder)
    return {"seconds": seconds, "gb": nbytes / 1e9, "peak_gb": peak_bytes() / 1e9}


def _load(folder: str) -> tuple[float, int]:
    import jax

    from model.checkpoint.source import open_checkpoint
    from model.layout import choose_layout
    from model.numerics import MODES
    from model.placement import load_params
    from model.sharding import make_mesh

    devices = jax.devices()
    started = time.perf_counter()
    checkpoint = open_checkpoint(folder)
    checkpoint.verify()
    mesh, mode = make_mesh(_DEVICES, checkpoint.config, devices), MODES["bf16"]
    layout = choose_layout("tpu", mode)
    load_params(checkpoint.read_parts, checkpoint.config, mesh, mode, layout)
    return time.perf_counter() - started, checkpoint.nbytes


def _read(folder: str) -> tuple[float, int]:
    """What the host does of a load: reads, compares checksums, hands out each device's part."""
    from model.checkpoint.source import open_checkpoint
    from model.params import tensors
    from model.placement import read_ahead

    started = time.perf_counter()
    checkpoint = open_checkpoint(folder)
    checkpoint.verify()
    order = tensors(checkpoint.config, checkpoint.weights)
    for _ in read_ahead(checkpoint.read_parts, order, _DEVICES):
        pass
    return time.perf_counter() - started, checkpoint.nbytes


def _plain(folder: str) -> tuple[float, int]:
    """Reads the files by blocks, several at a time, into memory that is kept."""
    import numpy as np

    paths = _tensor_files(pathlib.Path(folder))
    started = time.perf_counter()
    jobs = []
    for path in paths:
        size = path.stat().st_size
        buffer = np.empty(size, np.uint8)
        jobs += [(path, buffer, at) for at in range(0, size, _BLOCK)]

    def read(job) -> int:
        path, buffer, at = job
        with open(path, "rb", buffering=0) as file:
            return os.preadv(file.fileno(), [buffer[at : at + _BLOCK]], at)

    with ThreadPoolExecutor(_THREADS) as pool:
        total = sum(pool.map(read, jobs))
    return time.perf_counter() - started, total


def _tensor_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted([*folder.glob("ckpt-0/tensor*"), *folder.glob("*.safetensors")])


def _prepare(folder: pathlib.Path, cache: str) -> None:
    """Leaves all of the files in the page cache, or none."""
    for path in _tensor_files(folder):
        with open(path, "rb") as file:
            if cache == "cold":
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(_BLOCK):
                    pass


if __name__ == "__main__":
    main()
