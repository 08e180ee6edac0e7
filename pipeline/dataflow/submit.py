"""Sending a job to Dataflow."""

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.dataflow.options import Submission
from pipeline.dataflow.record import Submitted, record
from pipeline.job import counters_of, wire
from pipeline.prepare import Job


def submit(job: Job, submission: Submission, *, wait: bool) -> tuple[Submitted, dict[str, int]]:
    """Submits a job that ``prepare_job`` has checked.

    Args:
      job: the job.
      submission: what ``options.prepare`` made of the arguments.
      wait: whether to wait until it has finished.

    Returns:
      The job as Dataflow knows it, and its counters; none without waiting.
    """
    result = wire(job, PipelineOptions(submission.arguments)).run()
    job_id = result.job_id() if result is not None and getattr(result, "_job", None) else None
    sent = Submitted(job_id=job_id, project=submission.project, region=submission.region)
    if job_id is None:
        return sent, {}
    record(job.folder, sent)
    if not wait:
        return sent, {}
    result.wait_until_finish()
    return sent, counters_of(result)
