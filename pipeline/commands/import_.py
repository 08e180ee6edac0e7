"""Turn JSON lines, CSV or OpenAI batch files into Parquet that generate reads.

Columns of a known role get its type; others get theirs from the whole file, so that it does not
depend on which rows come first. Lines that cannot become a row are listed in a file _errors-*.jsonl
beside the others, which are unharmed; the exit code is 3 then. Mend the source, and import it again
with --overwrite.

  grok1 import gs://bucket/requests.jsonl --to gs://bucket/prompts
  grok1 import questions.csv.gz answers.csv.gz --to prompts
"""

import argparse
import sys
from collections.abc import Sequence

HELP = "turn JSON lines, CSV or OpenAI batch files into Parquet"

_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="files or URLs; .gz and the like are decompressed")
    add("--to", required=True, metavar="DIR", help="folder of the Parquet files")
    add("--format", choices=("jsonl", "csv", "openai"), help="by default the name and content tell")
    add(
        "--overwrite",
        action="store_true",
        help="replace what an earlier import of files of these names left in the folder",
    )


def run(given: argparse.Namespace, _: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    from model.checkpoint import files
    from pipeline.cli import OK, ROW_ERRORS
    from pipeline.formats.reading import import_files

    faulty = 0
    for url, found in import_files(given.files, given.to, given.format, overwrite=given.overwrite):
        faulty += found.faulty
        print(f"{files.redact(url)}: {_many(found.rows, 'row')} in {_many(found.files, 'file')}")
        for fault in found.faults[:_SHOWN]:
            print(f"{fault.file}, line {fault.line}: {fault.message}", file=sys.stderr)
        if found.errors:
            where = files.redact(files.join(given.to, found.errors))
            lines = _many(found.faulty, "line")
            print(f"{lines} became no row, listed in {where}", file=sys.stderr)
    return ROW_ERRORS if faulty else OK


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
