"""The pipeline, wired: read, infer, commit, finalize. What the steps do stands in their modules."""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import plan
from pipeline.commit import Committed, commit
from pipeline.elements import CompletionChunk, PromptChunk
from pipeline.finalize import finalize
from pipeline.handler import NAMESPACE, Grok1ModelHandler
from pipeline.options import GenerateOptions
from pipeline.plan import Span
from pipeline.prepare import Job, prepare
from pipeline.read import read_span


def build_pipeline(
    options: GenerateOptions, beam_options: PipelineOptions | None = None
) -> beam.Pipeline:
    """Checks the job, claims its output folder, and returns the pipeline that does it, not yet run.

    Example:
      >>> options = GenerateOptions(checkpoint="ckpt", input=("in/*.parquet",), output="out")
      >>> with build_pipeline(options, PipelineOptions(runner="FnApiRunner")):
      ...     pass  # leaving the block runs it

    Args:
      options: the job.
      beam_options: Beam's own; by default the local runner with ``LOCAL_THREADS`` threads.

    Raises:
      SetupError: the job cannot be done as it stands.
    """
    return wire(prepare(options), beam_options)


def wire(job: Job, beam_options: PipelineOptions | None = None) -> beam.Pipeline:
    """The pipeline of a job that ``prepare`` has checked."""
    pipeline = beam.Pipeline(options=beam_options or local_options())
    (
        pipeline
        | "ReadPrompts" >> ReadPrompts(job)
        | "Generate" >> RunInference(handler_of(job))
        | "WriteCompletions" >> WriteCompletions(job)
    )
    return pipeline


def handler_of(job: Job) -> Grok1ModelHandler:
    """The model of a job, for ``RunInference``."""
    return Grok1ModelHandler(
        job.options.checkpoint,
        tokenizer=job.tokenizer,
        options=job.engine,
        identity=job.settings["checkpoint"],
    )


class ReadPrompts(beam.PTransform):
    """The job's prompts that are not completed yet, as ``PromptChunk`` elements.

    The graph holds the plan's address, not the plan: 100,000 chunks would not fit a job request.
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def expand(self, root: beam.Pipeline) -> beam.PCollection[PromptChunk]:
        """Applies to the pipeline itself."""
        return (
            root
            | "Plan" >> beam.Create([None])
            | "Spans" >> beam.FlatMap(_missing_spans, self._job).with_output_types(Span)
            # Spans are spread over the workers here; all that follows is one fused stage.
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(_read, self._job).with_output_types(PromptChunk)
        )


class WriteCompletions(beam.PTransform):
    """Commits each ``CompletionChunk`` as a part, then closes the output when all are there.

    Its output is the manifest, as one element.
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def expand(self, chunks: beam.PCollection[CompletionChunk]) -> beam.PCollection[dict]:
        """Applies to what ``RunInference`` returns."""
        committed = chunks | "Commit" >> beam.Map(_commit, self._job).with_output_types(
            tuple[int, str]
        )
        # Parts that were there before leave no record, but the output must be closed all the same.
        start = chunks.pipeline | "Start" >> beam.Create([(0, "")])
        return (
            (committed, start)
            | "Meet" >> beam.Flatten()
            | "All" >> beam.GroupByKey()
            | "Finalize" >> beam.Map(_finalize, self._job)
        )


LOCAL_THREADS = 4
"""Chunks in flight in a local run, so that the engine's slots stay full across chunk ends."""


def local_options() -> PipelineOptions:
    """Beam's options of a run on this machine."""
    return PipelineOptions(local_arguments([]))


def local_arguments(arguments: list[str]) -> list[str]:
    """Beam's arguments, with the local runner where no other is named.

    ``DirectRunner`` may download another runner and run on that; the one that it stands for is
    named instead.
    """
    given = dict(a.removeprefix("--").partition("=")[::2] for a in arguments if a[:2] == "--")
    if given.get("runner", "DirectRunner") not in ("DirectRunner", "FnApiRunner"):
        return arguments
    ours = {
        "runner": "FnApiRunner",
        "direct_running_mode": "multi_threading",
        "direct_num_workers": str(LOCAL_THREADS),
    }
    kept = [a for a in arguments if not a.startswith("--runner=")]
    return kept + [
        f"--{name}={v}" for name, v in ours.items() if name == "runner" or name not in given
    ]


def _missing_spans(_: Any, job: Job) -> Iterator[Span]:
    present = job.folder.names()
    chunks = plan.read_chunks(job.folder)
    missing = [chunk for chunk in chunks if chunk.part_name not in present]
    Metrics.counter(NAMESPACE, "parts_skipped").inc(len(chunks) - len(missing))
    yield from plan.spans(missing)


def _read(span: Span, job: Job) -> Iterator[PromptChunk]:
    yield from read_span(job, span)


def _commit(chunk: CompletionChunk, job: Job) -> tuple[int, str]:
    committed = commit(job, chunk)
    _count(committed)
    return 0, committed.part


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
