"""Make a checkpoint for serving: each device's bytes together, with a checksum of every block.

Reads a checkpoint of any kind and writes safetensors files that one, two, four or eight devices
load, each only its own part. Started again after an interruption, it goes on; at the end all is
read again and compared. Both folders may be URLs (s3://, gs://). Host memory: less than three of
a layer's largest tensors, 4.5 GB for Grok-1.

  grok1 convert --from gs://bucket/grok-1 --to gs://bucket/grok-1-int4 --weights int4
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from model.params import WEIGHTS

HELP = "make a checkpoint for serving"
RESUMES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("--from", required=True, dest="source", metavar="DIR", help="the checkpoint to read")
    add("--to", required=True, dest="target", metavar="DIR", help="the folder to write")
    add("--weights", choices=WEIGHTS, help="what to store the matrices as (default: as they are)")
    add(
        "--shards",
        type=int,
        choices=(1, 2, 4, 8),
        help="devices to lay it out for; others can load it too (default: the most that divide)",
    )
    add("--overwrite", action="store_true", help="replace another store that is there")
    add("--json", action="store_true", help="for a machine")


def run(given: argparse.Namespace, _: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    from model.checkpoint.convert import convert

    done = convert(
        given.source,
        given.target,
        weights=given.weights,
        shards=given.shards,
        overwrite=given.overwrite,
        progress=_show,
    )
    if given.json:
        print(json.dumps(dataclasses.asdict(done), indent=1))
        return 0
    before = f", {done.resumed:,} of them there before" if done.resumed else ""
    print(
        f"{done.nbytes / 1e6:,.1f} MB of {done.weights} weights for {done.shards} devices in "
        f"{done.files:,} files{before}, in {done.url}\n"
        f"written in {done.seconds:,.1f} s, read again and compared in "
        f"{done.verify_seconds:,.1f} s; peak memory {done.peak_bytes / 1e9:,.2f} GB"
    )
    if done.groups:
        print(
            f"{done.exact_groups:,} of {done.groups:,} scale groups give the numbers of the source "
            "back bit for bit"
        )
    return 0


def _show(phase: str, done: int, total: int) -> None:
    """A line on a terminal that says how far it is; nothing elsewhere."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        line = f"\r{phase:10} {done / 1e9:,.2f} of {total / 1e9:,.2f} GB"
        print(line, end=end, file=sys.stderr, flush=True)
