"""Say what a job will read, write and cost, before a model is loaded or anything is paid for.

All input is read, validated and tokenized here, exactly as the run will do it. Tokens in are exact,
but how many of them stand in prefixes that are computed once is counted in blocks of 128 tokens, an
accelerator's; a run with smaller blocks, as on CPUs, shares a little more. Tokens out lie between
two bounds; --pilot K runs K rows on this machine's devices and forecasts them. Hours and money
follow from what each machine can do at most with the job's slots, cache and weights, as grok1 fit
tells it, and from a table that you can replace: --rates FILE. The table holds prices, the share of
that most which is reached, and how long a host takes to start.

It takes all that generate takes: plan a command line by changing its first word. Beam's own options
are checked, and have no bearing on a plan.

  grok1 plan --checkpoint gs://bucket/grok-1 --input gs://bucket/prompts --max-tokens 256
  grok1 plan … --pilot 200 --json
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.commands import generate, job

if TYPE_CHECKING:
    from pipeline.estimate.summary import Estimate

HELP = "say what a job will read, write and cost"
USAGE = "%(prog)s --checkpoint DIR --input PATH [PATH ...] [options]"
PASSES_THROUGH = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments: those of generate, and its own."""
    group = parser.add_argument_group("plan")
    add = group.add_argument
    add("--pilot", type=int, default=0, metavar="K", help="forecast from K rows run on the model")
    add("--workers", type=int, metavar="N", help="processes that read (one a core)")
    add("--json", action="store_true", help="for a machine")
    generate.add_arguments(parser, output_required=False)


def run(given: argparse.Namespace, beam_arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    from pipeline.cli import OK, ROW_ERRORS
    from pipeline.estimate.summary import print_estimate

    job.check_beam_arguments(beam_arguments, add_arguments)
    found = estimate(given)
    if given.json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        print_estimate(found)
    return ROW_ERRORS if found.census.errors else OK


def estimate(given: argparse.Namespace) -> "Estimate":
    """All that the command tells."""
    from pipeline.estimate.census import take_census
    from pipeline.estimate.cost import read_rates
    from pipeline.estimate.forecast import run_pilot
    from pipeline.estimate.summary import Estimate
    from pipeline.prepare import check_job
    from pipeline.progress import Progress
    from schemas.error import SetupError

    if given.pilot < 0:
        raise SetupError(f"--pilot must not be negative, got {given.pilot}")
    if given.workers is not None and given.workers < 1:
        raise SetupError(f"--workers must be at least 1, got {given.workers}")
    rates = read_rates(given.rates)
    # A plan touches no output folder, but the options of a job name one, and no input lies in it.
    given.output = given.output or "_completions"
    checked, _, chunks = check_job(generate.options_of(given))
    with _Bar(checked.rows) as bar:
        census = take_census(
            checked, chunks, pilot=given.pilot, workers=given.workers, progress=bar.advance
        )
    pilot = None
    if census.pilot:
        with Progress(dataclasses.replace(checked, rows=len(census.pilot), rows_done=0)):
            pilot = run_pilot(checked, census)
    return Estimate.of(checked, chunks, census, pilot, rates, bar.seconds)


class _Bar:
    """Rows read, on a terminal; nothing elsewhere."""

    def __init__(self, rows: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        console = Console(stderr=True)
        self._bar = Progress(
            "reading",
            BarColumn(),
            MofNCompleteColumn(),
            "rows",
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=rows)
        self.seconds = 0.0

    def advance(self, rows: int) -> None:
        """So many more rows."""
        self._bar.advance(self._task, rows)

    def __enter__(self) -> "_Bar":
        import time

        self._began = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        import time

        self._bar.stop()
        self.seconds = time.monotonic() - self._began
