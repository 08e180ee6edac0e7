"""Write a run's completions as JSON lines, CSV, OpenAI batch responses, or a datasets folder.

Rows come in input order. --format datasets writes a folder that Hugging Face's load_dataset reads.
"""

import argparse
from collections.abc import Sequence

HELP = "write completions in another format"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("source", metavar="OUTPUT", help="the output folder of a run")
    add("--to", required=True, metavar="PATH", help="the file, or for datasets the folder")
    add("--format", required=True, choices=("jsonl", "csv", "openai", "datasets"))


def run(given: argparse.Namespace, _: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    from model.checkpoint import files
    from pipeline.formats.writing import export_run

    rows = export_run(given.source, given.to, given.format)
    print(f"{rows:,} rows in {files.redact(given.to)}")
    return 0
