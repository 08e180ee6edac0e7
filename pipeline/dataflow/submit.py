"""Sending a job to Dataflow."""

import sys
from collections.abc import Callable
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.dataflow.options import Submission
from pipeline.dataflow.record import Submitted, record
from pipeline.job import counters_of, wire
from pipeline.prepare import Job


def submit(
    job: Job, submission: Submission, taken: Callable[[Submitted], None]
) -> Callable[[], dict[str, int]] | None:
    """Submits a job that ``prepare_job`` has checked, and returns at once.

    Args:
      job: the job.
      submission: what ``options.prepare`` made of the arguments.
      taken: is told of the job as soon as Dataflow has it, before anything else can fail.

    Returns:
      What waits for the job's end and returns its counters; None where the arguments only made a
      template or tried the submission.
    """
    result: Any = wire(job, PipelineOptions(submission.arguments)).run()
    if result is None or not getattr(result, "_job", None):
        return None
    sent = Submitted(
        job_id=result.job_id(),
        project=submission.project,
        region=submission.region,
        endpoint=submission.endpoint,
        no_auth=submission.no_auth,
    )
    taken(sent)
    try:
        record(job.folder, sent)
    except Exception as error:  # the job runs all the same
        print(
            f"grok1: the job could not be noted in its output ({_reason(error)}), so that a second "
            f"start is not refused: wait for this one, or cancel it: {sent.cancel}",
            file=sys.stderr,
        )

    def wait() -> dict[str, int]:
        result.wait_until_finish()
        try:
            return counters_of(result)
        except Exception as error:  # the job is done; its output tells the rest
            print(f"grok1: no metrics of the job: {_reason(error)}", file=sys.stderr)
            return {}

    return wait


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
