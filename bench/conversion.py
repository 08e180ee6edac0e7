"""What converting takes at real size: seconds, and how much memory beside one of Grok-1's matrices.

Writes a random model of Grok-1's full width and few layers in the release's layout, and converts it
with ``grok1 convert`` to int8 and to int4, each in a process of its own, which reads the store
again at its end as each conversion does. A store is removed before the next is made. Processor
seconds stand beside the clock's: others may use the machine, too.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile

from bench import machine, markdown
from model.config import GROK_1, Grok1Config
from model.params import Param, tensors

DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "quantization.md"
_WEIGHTS = ("int8", "int4")
_SPARE = 1.02
"""What files take on a disk, for each byte in them."""


def main() -> None:
    """Measures, prints, and records if asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench.conversion", description=__doc__)
    parser.add_argument("--layers", type=int, default=2, help="of the model (2: 13 GB)")
    parser.add_argument("--folder", help="where to write it (a temporary one, removed)")
    parser.add_argument("--write", action="store_true", help=f"record in {DOCUMENT.name}")
    given = parser.parse_args()
    config = dataclasses.replace(GROK_1, num_layers=given.layers)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        if lack := refusal(config, shutil.disk_usage(folder).free):
            parser.error(f"{folder}: {lack}; name another with --folder")
        report = measure(pathlib.Path(folder), config)
    print(report)
    if given.write:
        markdown.replace(DOCUMENT, "conversion", report)


def refusal(config: Grok1Config, free: int) -> str | None:
    """Why a disk with so many bytes left does not do; None if it does."""
    # The store of int8 is as large as the release, and larger than that of int4.
    needed = int(2 * _SPARE * sum(_nbytes(tensor.param) for tensor in tensors(config, "int8")))
    if needed <= free:
        return None
    return f"the model and a store of it take {needed / 1e9:.0f} GB, and {free / 1e9:.0f} are free"


def measure(folder: pathlib.Path, config: Grok1Config) -> str:
    """Converts in turn; the table, and before it what was measured on."""
    from model.checkpoint.source import open_checkpoint
    from model.checkpoint.synth import synthesize

    source, target = folder / "release", folder / "store"
    synthesize(str(source), config)
    nbytes = open_checkpoint(str(source)).nbytes
    params = {tensor.param.name: tensor.param for tensor in tensors(config, "int8")}
    matrix = _nbytes(params["gate"])
    rows = []
    for weights in _WEIGHTS:
        done = _convert(source, target, weights)
        shutil.rmtree(target)
        row = [weights, f"{done['nbytes'] / 1e9:.1f} GB", f"{done['seconds']:.0f} s"]
        row += [f"{nbytes / done['seconds'] / 1e9:.2f} GB/s", f"{done['verify_seconds']:.0f} s"]
        row += [f"{done['cpu_seconds']:.0f} s", f"{done['peak_bytes'] / 1e9:.2f} GB"]
        rows.append([*row, f"{done['peak_bytes'] / matrix:.2f}"])
    header = ["to", "store", "converted in", "speed", "compared in", "CPU", "peak memory"]
    header.append("in matrices")
    return (
        f"{config.num_layers} layers, {nbytes / 1e9:.1f} GB in the release's layout; a matrix of "
        f"the experts has {matrix / 1e9:.2f} GB, the embedding "
        f"{_nbytes(params['embedding']) / 1e9:.2f} GB. On {machine.describe()}.\n\n"
        + markdown.table(header, rows)
    )


def _nbytes(param: Param) -> int:
    """Of a tensor as the release stores it, without its scales."""
    return math.prod(param.shape) * (1 if param.quantized else 4)


def _convert(source: pathlib.Path, target: pathlib.Path, weights: str) -> dict:
    command = [sys.executable, "-c", "from pipeline.cli import entry; entry()", "convert", "--json"]
    before = _cpu_seconds()
    ran = subprocess.run(
        [*command, "--from", str(source), "--to", str(target), "--weights", weights],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return {**json.loads(ran.stdout), "cpu_seconds": _cpu_seconds() - before}


def _cpu_seconds() -> float:
    """That processes which were waited for have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
