"""Run the errored rows of a finished run again, and nothing else.

Parts that hold such rows are replaced, each at once, so that readers see every row once at any
moment. Rows that may kill the process go alone. Settings are those of the run; its files must be
where they were.

  grok1 retry completions --codes engine_failure
"""

import argparse
from collections.abc import Sequence

from pipeline.commands import report

HELP = "run only the errored rows of a run again"
PASSES_THROUGH = True
RESUMES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("output", metavar="OUTPUT", help="the output folder of a run")
    add("--codes", nargs="+", default=[], metavar="CODE", help="only rows with these error codes")
    add("--checkpoint", metavar="DIR", help="where the checkpoint is now")
    add("--tokenizer", metavar="FILE", help="where the tokenizer is now")
    add("--input", nargs="+", metavar="PATH", help="where the input is now")
    add("--few-shot", metavar="FILE", help="where the examples are now")
    report.add_switch(parser)


def run(given: argparse.Namespace, beam_arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    from model.checkpoint import files
    from pipeline import retry
    from pipeline.claim import read_job
    from pipeline.commands.run import end_when_told, finish, running_here
    from pipeline.finalize import survey
    from pipeline.options_record import from_record
    from pipeline.storage import Folder
    from schemas.error import ErrorCode, SetupError

    end_when_told()
    shown = files.redact(given.output)
    for code in given.codes:
        if code not in list(ErrorCode):
            raise SetupError(f"--codes {code}: no such error code; they are {', '.join(ErrorCode)}")
    record = read_job(Folder(given.output))
    options = from_record(
        record["options"],
        given.output,
        checkpoint=given.checkpoint,
        tokenizer=given.tokenizer,
        input=given.input,
        few_shot=given.few_shot,
    )
    found, _ = survey(Folder(given.output))
    errors = found["totals"]["errors"]
    wanted = sum(n for code, n in errors.items() if not given.codes or code in given.codes)
    unread = [error["path"] for error in found["file_errors"] if error["rows_errored"]]
    again = retry.prepare(options, given.codes, unread)
    print(f"{wanted:,} errored rows to run again · {shown}")
    counters: dict[str, int] = {}
    with running_here(again.job, beam_arguments, given.debug) as beam_options:
        # With none there is still a manifest to write anew, after a retry that was killed.
        counters = retry.run(again, beam_options)
    if wanted:
        print(f"{counters.get('rows_recovered', 0):,} of them have an answer now")
    return finish(again.job, counters, given.report)
