"""Where a job runs: on this machine, on Dataflow, or on whichever runner Beam's arguments name."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence

from model.checkpoint import files
from pipeline import plan
from pipeline.cli import INTERRUPTED, OK, Failed
from pipeline.commands import run
from pipeline.dataflow import checks
from pipeline.dataflow import options as dataflow
from pipeline.dataflow.record import Submitted
from pipeline.estimate.cost import read_rates
from pipeline.options import JobOptions
from pipeline.prepare import Job, check_job, prepare_job
from pipeline.report import terminal
from pipeline.spans import spans
from schemas.error import SetupError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remote:
    """What was said of a job on Dataflow.

    Attributes:
      machine: name of the workers' machine.
      bucket: for staging.
      explain: whether to print the job instead of sending it.
      rates: a table of prices for that, instead of ours.
      detach: whether to return once it is submitted.
    """

    machine: str | None = None
    bucket: str | None = None
    explain: bool = False
    detach: bool = False
    rates: str | None = None


def run_job(
    options: JobOptions,
    beam_arguments: Sequence[str],
    *,
    remote: Remote,
    report: bool = True,
    debug: bool = False,
) -> int:
    """Runs a job where the arguments say; returns the exit code.

    Args:
      options: the job.
      beam_arguments: Beam's own.
      remote: what was said of Dataflow.
      report: whether to write the HTML report once the run has finished.
      debug: whether a fault keeps its traceback.

    Raises:
      SetupError: the job cannot be done as it stands.
      Failed: it ended before all rows were done.
    """
    if remote.rates and not remote.explain:
        raise SetupError("--rates is for --explain, which prints the price; add that")
    if dataflow.is_dataflow(beam_arguments):
        return _on_dataflow(options, beam_arguments, remote, report, debug)
    for field in dataclasses.fields(remote):
        if getattr(remote, field.name):
            raise SetupError(f"--{field.name} is for Dataflow; add --runner=DataflowRunner")
    return run.run_job(options, beam_arguments, report=report, debug=debug)


def _on_dataflow(
    options: JobOptions,
    beam_arguments: Sequence[str],
    remote: Remote,
    report: bool,
    debug: bool,
) -> int:
    submission = dataflow.prepare(
        options, beam_arguments, machine=remote.machine, bucket=remote.bucket
    )
    for sentence in submission.advice:
        print(f"grok1: {sentence}", file=sys.stderr)
    # Beam takes seconds to import: a wrong set-up should be told before that.
    if remote.explain:
        from pipeline.dataflow.explain import explain

        job, _, chunks = check_job(options)
        explain(job, chunks, submission, read_rates(remote.rates))
        return OK
    if submission.dry_run:
        job, _, chunks = check_job(options)
    else:
        job = prepare_job(options)
        print(terminal.set_up_line(job))
        if run.is_done(job):
            return run.finish(job, {}, report)
        chunks = _missing(job)
    _advise_spread(chunks, submission)
    from pipeline.dataflow.submit import submit

    sent: list[Submitted] = []

    def taken(by_dataflow: Submitted) -> None:
        sent.append(by_dataflow)
        print(f"Dataflow job {by_dataflow.job_id}: {by_dataflow.url}", flush=True)

    with _told(debug):
        wait = submit(job, submission, taken)
    if wait is None:
        print("nothing was submitted: the arguments make a template, or try the submission only")
        return OK
    goes_on = f"see grok1 status {files.redact(options.output)}"
    if remote.detach:
        print(f"it goes on without this command; {goes_on}")
        return OK
    try:
        with _told(debug):
            counters = wait()
    except KeyboardInterrupt:
        print(
            f"\ngrok1: interrupted, but Dataflow job {sent[0].job_id} goes on without this "
            f"command; {goes_on}, or cancel it: {sent[0].cancel}",
            file=sys.stderr,
        )
        return INTERRUPTED
    return run.finish(job, counters, report)


def _missing(job: Job) -> list[plan.Chunk]:
    present = job.folder.names()
    return [chunk for chunk in plan.read_chunks(job.folder) if chunk.part_name not in present]


def _advise_spread(chunks: Sequence[plan.Chunk], submission: dataflow.Submission) -> None:
    pieces = sum(1 for _ in spans(chunks))
    rows = sum(chunk.rows for chunk in chunks)
    workers, threads = submission.workers, submission.threads
    if advice := checks.spread_advice(pieces, workers, threads, rows):
        print(f"grok1: {advice}", file=sys.stderr)


@contextlib.contextmanager
def _told(debug: bool) -> Iterator[None]:
    """Tells a fault of the client, or of the job itself, in one sentence."""
    try:
        yield
    except Exception as error:
        if debug:
            raise
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise Failed(
            f"Dataflow: {reason}; parts that are committed are kept, and starting again does the "
            "rest"
        ) from None
