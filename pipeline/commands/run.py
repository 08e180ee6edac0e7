"""What ``grok1 generate`` and ``grok1 score`` do, once their arguments are understood."""

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from model.checkpoint import files
from pipeline import budget, preemption, strikes
from pipeline.cli import BUDGET, FAILED, INTERRUPTED, OK, ROW_ERRORS, Failed
from pipeline.finalize import read_manifest
from pipeline.options import JobOptions
from pipeline.prepare import Job, prepare_job
from pipeline.report import terminal
from schemas.error import SetupError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_FRAME = re.compile(r'^  File ".*", line \d+, in .*$', re.MULTILINE)
_FAULT = re.compile(r"^(?:[\w.]+\.)?(?P<kind>\w+): (?P<reason>.*)", re.MULTILINE | re.DOTALL)


def run_job(
    options: JobOptions, beam_arguments: Sequence[str], *, report: bool = True, debug: bool
) -> int:
    """Sets the job up, runs what is missing, and tells the result; returns the exit code.

    Args:
      options: the job.
      beam_arguments: Beam's own.
      report: whether to write the HTML report once the run has finished.
      debug: whether a fault keeps its traceback.

    Raises:
      SetupError: the job cannot be done as it stands.
      Failed: it ended before all rows were done.
    """
    end_when_told()
    job = prepare_job(options)
    print(terminal.set_up_line(job), flush=True)
    counters: dict[str, int] = {}
    if not is_done(job):
        counters = _run(job, beam_arguments, debug)
    return finish(job, counters, report)


def is_done(job: Job) -> bool:
    """Whether nothing of the job is left to do."""
    return job.done == job.chunks and read_manifest(job.folder) is not None


def finish(job: Job, counters: Mapping[str, int], report: bool) -> int:
    """Tells what a run came to; returns the exit code that it has earned.

    Args:
      job: the job.
      counters: what this run counted; none if there was nothing left to do.
      report: whether to write the HTML report.
    """
    manifest = read_manifest(job.folder)
    note = budget.stopped(job.folder)
    if manifest is None and note is not None:
        print(f"grok1: {note['why']}; start again with more to go on", file=sys.stderr)
        return BUDGET
    if manifest is None:
        print("grok1: the runner has the job; it has not finished", file=sys.stderr)
        return FAILED
    try:
        terminal.print_summary(job, manifest, counters)
    except (pa.ArrowException, OSError) as fault:
        where = files.redact(job.options.output)
        raise Failed(
            f"a part in {where} cannot be read: "
            f"{files.without_secrets(' '.join(str(fault).split()), job.options.output)[:200]}; "
            f"grok1 inspect {where} says which, and what to do"
        ) from None
    except Exception as error:  # the run has finished all the same
        print(f"grok1: no summary: {_reason(error, job)}", file=sys.stderr)
    if report:
        _write_report(job)
    return exit_code(manifest, job.options.allow_errors, job.options.allow_file_errors)


def exit_code(manifest: Mapping[str, Any], allow_errors: float, allow_file_errors: bool) -> int:
    """What a finished run has earned."""
    rows = max(1, manifest["rows_in"])
    if manifest["errored"] / rows > allow_errors:
        return ROW_ERRORS
    return ROW_ERRORS if manifest["files_errored"] and not allow_file_errors else OK


def _write_report(job: Job) -> None:
    """A report that cannot be written is a pity, not a fault of the run."""
    from pipeline.commands.report import write_report

    try:
        where = write_report(job.options.output, tokenizer=job.tokenizer)
        print(f"report: {files.redact(where)}")
    except Exception as error:
        print(f"grok1: no report: {_reason(error, job)}", file=sys.stderr)


def _reason(error: Exception, job: Job) -> str:
    told = " ".join(str(error).split()) or type(error).__name__
    return files.without_secrets(told, job.options.output)[:300]


def _run(job: Job, beam_arguments: Sequence[str], debug: bool) -> dict[str, int]:
    with running_here(job, beam_arguments, debug) as beam_options:
        from pipeline.job import run

        return run(job, beam_options)


def end_when_told() -> None:
    """From now on SIGTERM ends the command in one sentence, within ``preemption.GRACE_SECONDS``."""
    preemption.install(
        "grok1: told to end; what is committed is kept, start the same command again to go on"
    )


@contextlib.contextmanager
def running_here(
    job: Job, beam_arguments: Sequence[str], debug: bool
) -> Iterator["PipelineOptions"]:
    """While the job runs: shows how it gets on, and tells a fault in one sentence.

    Yields:
      Beam's options.

    Raises:
      SetupError, Failed: of what went wrong.
    """
    # Beam takes seconds to import: a wrong set-up should be told before that.
    from apache_beam.options.pipeline_options import PipelineOptions

    from pipeline import beam_options
    from pipeline.progress import Progress

    end_when_told()
    if not debug:
        beam_options.print_no_tracebacks()
    arguments = beam_options.complete(beam_arguments)
    watched = Progress(job) if beam_options.runs_here(arguments) else contextlib.nullcontext()
    try:
        with watched:
            yield PipelineOptions(arguments)
    except KeyboardInterrupt:
        from pipeline import registry

        preemption.leave_within(preemption.GRACE_SECONDS, INTERRUPTED)
        registry.shut_down()
        # Threads that the end of the process cuts off would leave their rows under suspicion.
        preemption.settle(preemption.GRACE_SECONDS / 2)
        raise
    except Exception as error:
        # Other chunks are given up with the one that failed; their rows are not to blame.
        strikes.pardon_all()
        kind, reason = root_cause(error)
        cause = error if debug else None
        if kind == "SetupError":
            raise SetupError(reason) from cause
        if kind == "NotConserved":
            raise Failed(reason) from cause
        known = kind in ("InputChanged", "ExamplesChanged", "Superseded", "RowFailed")
        raise Failed(
            (reason if known else f"{kind}: {reason} (more with --debug)")
            + "; parts that are committed are kept, and starting again does the rest"
        ) from cause


def root_cause(error: Exception) -> tuple[str, str]:
    """The class and the message of what failed in a worker.

    Beam's local runner raises the worker's traceback as the text of a RuntimeError. What stands
    after its last frame is the fault, and the step that it happened in.
    """
    text = str(error)
    after = _FRAME.split(text)[-1] if "Traceback (most" in text else ""
    if found := _FAULT.search(after):
        reason = found["reason"].partition(" [while running")[0]
        return found["kind"], " ".join(reason.split())[:1000]
    return type(error).__name__, " ".join(text.split())[:500]
