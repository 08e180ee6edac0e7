"""Write completions, or a checkpoint, in a format of other programs.

A run's completions, in input order: JSON lines, CSV, OpenAI batch responses, or a folder that
Hugging Face's load_dataset reads; of a run that has not finished only with --partial. OpenAI's
format has a line, with an error in it, for each request that grok1 import refused, too. A
checkpoint: a GGUF file for llama.cpp, or a folder for Hugging Face's libraries; host memory is
about one tensor of it.

  grok1 export gs://bucket/completions --to completions.jsonl --format jsonl
  grok1 export --checkpoint gs://bucket/grok-1 --to grok-1.gguf --format gguf
"""

import argparse
import sys
from collections.abc import Sequence

from schemas.error import SetupError

HELP = "write completions or a checkpoint in another format"

_RUNS = ("jsonl", "csv", "openai", "datasets")
_CHECKPOINTS = ("gguf", "huggingface")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("source", nargs="?", metavar="OUTPUT", help="the output folder of a run")
    source.add_argument("--checkpoint", metavar="DIR", help="a checkpoint of any kind")
    add("--to", required=True, metavar="PATH", help="the file or, for two formats, the folder")
    add(
        "--format",
        required=True,
        choices=_RUNS + _CHECKPOINTS,
        help=f"of a run: {', '.join(_RUNS)}; of a checkpoint: {', '.join(_CHECKPOINTS)}",
    )
    add(
        "--dtype",
        metavar="TYPE",
        help="of a checkpoint: bf16 (default), f32, and for GGUF f16, q8_0",
    )
    add(
        "--spreadsheet",
        action="store_true",
        help="of CSV: put ' before texts that a spreadsheet would take for formulas",
    )
    add(
        "--partial", action="store_true", help="of a run: take what is there before it has finished"
    )
    add("--overwrite", action="store_true", help="replace what is there")


def run(given: argparse.Namespace, _: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    from model.checkpoint import files

    wanted = _CHECKPOINTS if given.checkpoint else _RUNS
    if given.format not in wanted:
        what = "a checkpoint" if given.checkpoint else "a run's completions"
        raise SetupError(f"{what} cannot be written as {given.format}: use {', '.join(wanted)}")
    if given.spreadsheet and given.format != "csv":
        raise SetupError(f"--spreadsheet is for --format csv, not {given.format}: leave it out")
    if given.partial and given.checkpoint:
        raise SetupError("--partial is for a run's completions, not a checkpoint: leave it out")
    if given.checkpoint:
        return _export_checkpoint(given)
    from pipeline.formats.writing import export_run

    found = export_run(
        given.source,
        given.to,
        given.format,
        spreadsheet=given.spreadsheet,
        partial=given.partial,
        overwrite=given.overwrite,
    )
    refused = f", and {found.refused:,} requests refused at import" if found.refused else ""
    print(f"{found.rows:,} rows{refused} in {files.redact(given.to)}")
    if found.missing:
        source = files.redact(given.source)
        print(
            f"grok1: the run in {source} has not finished: {found.missing:,} of its rows are not "
            "among these; start it again, then export with --overwrite",
            file=sys.stderr,
        )
    if found.unknown:
        print(
            f"grok1: requests that the import refused are not among these: {found.unknown}",
            file=sys.stderr,
        )
    return 0


def _export_checkpoint(given: argparse.Namespace) -> int:
    from model.checkpoint import files
    from model.checkpoint.export import export_checkpoint

    written = export_checkpoint(
        given.checkpoint,
        given.to,
        given.format,
        dtype=given.dtype,
        overwrite=given.overwrite,
        progress=_show,
    )
    for url in written:
        print(files.redact(url))
    return 0


def _show(done: int, total: int) -> None:
    """A line on a terminal that says how far it is; nothing elsewhere."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done / 1e9:,.2f} of {total / 1e9:,.2f} GB", end=end, file=sys.stderr, flush=True)
