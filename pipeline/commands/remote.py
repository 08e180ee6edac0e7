"""Where a job runs: on this machine, on Dataflow, or on whichever runner Beam's arguments name."""

import dataclasses
from collections.abc import Sequence

from pipeline.cli import OK, Failed
from pipeline.commands import run
from pipeline.dataflow import options as dataflow
from pipeline.estimate.cost import read_rates
from pipeline.options import JobOptions
from pipeline.prepare import check_job, prepare_job
from pipeline.report import terminal
from schemas.error import SetupError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remote:
    """What was said of a job on Dataflow.

    Attributes:
      machine: name of the workers' machine.
      bucket: for staging.
      explain: whether to print the job instead of sending it.
      detach: whether to return once it is submitted.
    """

    machine: str | None = None
    bucket: str | None = None
    explain: bool = False
    detach: bool = False


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
    # Beam takes seconds to import: a wrong set-up should be told before that.
    if remote.explain:
        from pipeline.dataflow.explain import explain

        explain(check_job(options)[0], submission, read_rates(None))
        return OK
    from pipeline.dataflow.submit import submit

    job = prepare_job(options)
    print(terminal.set_up_line(job))
    if run.is_done(job):
        return run.finish(job, {}, report)
    try:
        sent, counters = submit(job, submission, wait=not remote.detach)
    except Exception as error:
        if debug:
            raise
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise Failed(
            f"Dataflow: {reason}; parts that are committed are kept, and starting again does the "
            "rest"
        ) from None
    if sent.job_id is None:
        print("nothing was submitted: the arguments make a template, or try the submission only")
        return OK
    print(f"Dataflow job {sent.job_id}: {sent.url}")
    if remote.detach:
        print(f"it goes on without this command; see grok1 status {options.output}")
        return OK
    return run.finish(job, counters, report)
