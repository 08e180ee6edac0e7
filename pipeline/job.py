"""The pipeline, wired: read, infer, commit, finalize. What the steps do stands in their modules."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions
from apache_beam.runners.runner import PipelineResult

from pipeline import budget, plan, registry
from pipeline.beam_options import attempts, local_options, make_pipeline
from pipeline.commit import Committed, commit
from pipeline.finalize import finalize
from pipeline.handler import NAMESPACE, Grok1ModelHandler
from pipeline.options import JobOptions
from pipeline.prepare import Job, prepare_job
from pipeline.questions import Answers, Questions
from pipeline.read import read_span
from pipeline.spans import Span, spans
from pipeline.strikes import Ledger


def build_pipeline(
    options: JobOptions, beam_options: PipelineOptions | None = None
) -> beam.Pipeline:
    """Checks the job, claims its output folder, and returns the pipeline that does it, not yet run.

    Examples:
      >>> from pipeline import GenerateOptions, read_completions
      >>> options = GenerateOptions(checkpoint="grok-1", input=("prompts",), output="completions")
      >>> with build_pipeline(options):
      ...     pass  # leaving the block runs it
      >>> read_completions("completions").column("status").to_pylist()
      ['succeeded', 'succeeded']

    Args:
      options: the job.
      beam_options: Beam's own; by default those of a run on this machine.

    Raises:
      SetupError: the job cannot be done as it stands.
    """
    return wire(prepare_job(options), beam_options)


def wire(job: Job, beam_options: PipelineOptions | None = None) -> beam.Pipeline:
    """The pipeline of a job that ``prepare_job`` has checked."""
    job, pipeline = begin(job, beam_options)
    (
        pipeline
        | "ReadPrompts" >> ReadPrompts(job)
        | job.options.task.title() >> RunInference(model_handler(job))
        | "WriteCompletions" >> WriteCompletions(job)
    )
    return pipeline


def begin(job: Job, beam_options: PipelineOptions | None) -> tuple[Job, beam.Pipeline]:
    """A job as its runner will do it, and a pipeline to which nothing has been added."""
    beam_options = beam_options or local_options()
    setup = beam_options.view_as(SetupOptions)
    setup.beam_plugins = [*(setup.beam_plugins or []), "pipeline.worker"]
    job = dataclasses.replace(job, attempts=attempts(beam_options))
    return job, make_pipeline(beam_options)


def run(job: Job, beam_options: PipelineOptions | None = None) -> dict[str, int]:
    """Runs a job that ``prepare_job`` has checked, and waits.

    Returns:
      The run's counters by name, where the runner reports any; the manifest has the results.
    """
    result = wire(job, beam_options).run()
    result.wait_until_finish()
    return counters_of(result)


def counters_of(result: PipelineResult) -> dict[str, int]:
    """The counters of a run by name."""
    counters = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]
    return {counter.key.metric.name: counter.committed or 0 for counter in counters}


def model_handler(job: Job) -> Grok1ModelHandler:
    """The model of a job, for ``RunInference``."""
    return Grok1ModelHandler(
        job.options.checkpoint,
        tokenizer=job.tokenizer,
        options=registry.engine_settings(job).options,
        identity=job.settings["checkpoint"],
        stall_seconds=job.options.limits.stall_seconds,
        scores_only=job.options.task == "score",
        ledger=ledger_of(job),
    )


def ledger_of(job: Job) -> Ledger:
    """Where a job records which rows are in an engine."""
    return Ledger(
        output=job.folder,
        schema=job.output,
        run_seed=job.options.run_seed,
        start=job.start,
        attempts=job.attempts,
    )


class ReadPrompts(beam.PTransform):
    """The job's rows that are not done yet, as ``Questions`` elements.

    The graph holds the plan's address, not the plan: 100,000 chunks would not fit a job request.

    Examples:
      >>> from pipeline import GenerateOptions
      >>> job = prepare_job(GenerateOptions(checkpoint="grok-1", input=("prompts",), output="own"))
      >>> with beam.Pipeline(runner="FnApiRunner") as p:
      ...     chunks = p | ReadPrompts(job) | RunInference(model_handler(job))
      ...     _ = chunks | WriteCompletions(job)
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def expand(self, root: beam.Pipeline) -> beam.PCollection[Questions]:
        """Applies to the pipeline itself."""
        return (
            root
            | "Plan" >> beam.Create([None])
            | "Spans" >> beam.FlatMap(_missing_spans, self._job).with_output_types(Span)
            # Spans are spread over the workers here; all that follows is one fused stage.
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(_read, self._job).with_output_types(Questions)
        )


class WriteCompletions(beam.PTransform):
    """Commits each ``Answers`` as a part, then closes the output when all are there.

    Its output is the manifest, as one element.

    Examples:
      >>> from pipeline import GenerateOptions
      >>> job = prepare_job(GenerateOptions(checkpoint="grok-1", input=("prompts",), output="own"))
      >>> with beam.Pipeline(runner="FnApiRunner") as p:
      ...     chunks = p | ReadPrompts(job) | RunInference(model_handler(job))
      ...     rows = chunks | WriteCompletions(job) | beam.Map(lambda found: found["rows_out"])
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def expand(self, chunks: beam.PCollection[Answers]) -> beam.PCollection[dict]:
        """Applies to what ``RunInference`` returns."""
        committed = chunks | "Commit" >> beam.Map(_commit, self._job).with_output_types(int)
        return closed(committed, self._job)


def closed(done: beam.PCollection[int], job: Job) -> beam.PCollection[dict]:
    """The manifest's findings, once all that writes parts is done; each element is one of them."""
    # Parts that were there before leave no record, but the output must be closed all the same.
    start = done.pipeline | "Start" >> beam.Create([0])
    return (
        (done, start)
        | "Meet" >> beam.Flatten()
        # Each worker adds its own up: a key that all parts met under would be a hot one.
        | "All" >> beam.CombineGlobally(sum).without_defaults()
        | "Finalize" >> beam.Map(_finalize, job)
    )


def _missing_spans(_: Any, job: Job) -> Iterator[Span]:
    present = job.folder.names()
    chunks = plan.read_chunks(job.folder)
    missing = [chunk for chunk in chunks if chunk.part_name not in present]
    # Last those that an earlier attempt died with: what they may do, the others are done with.
    suspected = ledger_of(job).parts()
    missing.sort(key=lambda chunk: chunk.part_name in suspected)
    Metrics.counter(NAMESPACE, "parts_skipped").inc(len(chunks) - len(missing))
    yield from spans(missing)


def _read(span: Span, job: Job) -> Iterator[Questions]:
    for questions in read_span(job, span):
        if why := budget.reached(job):
            budget.stop(job, why)
            return
        yield questions


def _commit(chunk: Answers, job: Job) -> int:
    committed = commit(job, chunk)
    if chunk.saved or chunk.refused:
        ledger_of(job).forget(committed.part)
    budget.spend(job, committed.counts)
    _count(committed)
    return 1


def _count(committed: Committed) -> None:
    counts = committed.counts
    tallies = {
        "parts_committed" if committed.first else "parts_found": 1,
        "rows": counts.rows_in,
        "rows_succeeded": counts.succeeded,
        "rows_errored": counts.errored,
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
        **{f"errors_{code}": number for code, number in counts.errors.items()},
    }
    for name, number in tallies.items():
        if number:
            Metrics.counter(NAMESPACE, name).inc(number)


def _finalize(_: Any, job: Job) -> dict[str, Any]:
    return finalize(job)
