"""Sending a job to Dataflow."""

from collections.abc import Callable
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.dataflow.options import Submission
from pipeline.dataflow.record import Submitted, record
from pipeline.job import counters_of, wire
from pipeline.prepare import Job


def submit(
    job: Job, submission: Submission
) -> tuple[Submitted, Callable[[], dict[str, int]]] | None:
    """Submits a job that ``prepare_job`` has checked, and returns at once.

    Args:
      job: the job.
      submission: what ``options.prepare`` made of the arguments.

    Returns:
      The job as Dataflow knows it, and what waits for its end and returns its counters; None where
      the arguments only made a template or tried the submission.
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
    record(job.folder, sent)

    def wait() -> dict[str, int]:
        result.wait_until_finish()
        return counters_of(result)

    return sent, wait
