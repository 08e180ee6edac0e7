"""Small generation jobs for tests."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.engine.request import CompletionOutput, Request, RequestOutput
from pipeline import plan
from pipeline.elements import CompletionChunk, PromptChunk
from pipeline.prepare import Job
from pipeline.read import read_span
from pipeline.spans import spans
from schemas.error import RowError

ENGINE = {"numerics": "float32", "slots": "8"}
"""What the engine of these answers is said to be."""


def write(path: pathlib.Path, columns: Mapping[str, Any] | pa.Table, **options: Any) -> str:
    """Writes a Parquet file, with the folders above it; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    pq.write_table(table, path, **options)
    return str(path)


def read_parts(output: str | pathlib.Path) -> list[dict[str, Any]]:
    """The rows of all parts in order of their names, read as anybody would."""
    parts = sorted(pathlib.Path(output).glob("part-*.parquet"))
    return [row for part in parts for row in pq.ParquetFile(part).read().to_pylist()]


def prompts_of(job: Job) -> list[PromptChunk]:
    """All chunks of a job that are not done, as they come to the model."""
    chunks = plan.read_chunks(job.folder)
    return [chunk for span in spans(chunks) for chunk in read_span(job, span)]


def answer(
    prompts: PromptChunk, fault: Callable[[int], RowError | None] = lambda i: None
) -> CompletionChunk:
    """The chunk completed without a model: each sample repeats its prompt.

    Args:
      prompts: what is asked.
      fault: request -> the error that takes the place of its answer.
    """
    outputs = answers(prompts.requests, fault)
    return CompletionChunk(
        prompts=prompts,
        outputs=tuple(outputs),
        has_text=True,
        engine=ENGINE if outputs else {},
        seconds=0.5,
    )


def answers(
    requests: Sequence[Request], fault: Callable[[int], RowError | None] = lambda i: None
) -> list[RequestOutput]:
    """The answers of ``answer`` alone."""
    return [
        RequestOutput(
            prompt_token_ids=request.prompt_token_ids,
            outputs=() if fault(i) else _echoes(request.prompt_token_ids, request.params.n),
            error=fault(i),
        )
        for i, request in enumerate(requests)
    ]


def _echoes(ids: Sequence[int], n: int) -> tuple[CompletionOutput, ...]:
    return tuple(
        CompletionOutput(
            index=index,
            text=" ".join(map(str, ids)),
            token_ids=tuple(ids),
            cumulative_logprob=-1.0,
            logprobs=None,
            finish_reason="length",
            stop_reason=None,
        )
        for index in range(n)
    )
