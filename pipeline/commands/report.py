"""Write what a run came to as one self-contained HTML file.

It works from the part files alone, so a run that is still under way, or was killed, can be looked
at too. The file asks no network for anything.

  grok1 report gs://bucket/completions --to report.html
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

HELP = "show what a run came to, as one HTML file"

SAMPLES = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("output", metavar="OUTPUT", help="the output folder of a run")
    add("--to", metavar="FILE", help="where to write it (OUTPUT/_report.html)")
    add("--samples", type=int, default=SAMPLES, metavar="N", help="rows to show (200)")
    add("--tokenizer", metavar="FILE", help="the job's, to colour tokens by their probability")


def add_switch(parser: Any) -> None:
    """Adds, to a command that runs a job, whether it writes a report."""
    parser.add_argument(
        "--report",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write an HTML report when finished (on)",
    )


def run(given: argparse.Namespace, _: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    from model.checkpoint import files
    from schemas.error import SetupError

    if given.samples < 0:
        raise SetupError(f"--samples must not be negative, got {given.samples}")
    where = write_report(given.output, given.to, given.samples, given.tokenizer)
    print(f"report: {files.redact(where)}")
    return 0


def write_report(
    output: str, to: str | None = None, samples: int = SAMPLES, tokenizer: str | None = None
) -> str:
    """Writes the report of an output folder; returns where.

    Raises:
      SetupError: the folder is no run's output or cannot be written, or a package is missing.
    """
    from model.checkpoint import files, sink
    from pipeline.report.collect import collect
    from pipeline.report.page import REPORT, render
    from pipeline.storage import Folder

    page = render(collect(output, samples=samples, tokenizer=tokenizer)).encode()
    if to is None:
        Folder(output).replace(REPORT, page)
        return files.join(output, REPORT)
    sink.write_bytes(str(pathlib.Path(to)) if "://" not in to else to, page)
    return to
