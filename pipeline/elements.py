"""What travels through the pipeline: a chunk of prompts, and the same chunk completed.

What the two have in common with other tasks comes first.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from model.engine.request import Request, RequestOutput
from pipeline.counts import Counts, tally
from pipeline.plan import Chunk
from pipeline.saved import Saved, merge
from schemas.completion import OutputRows, OutputSchema
from schemas.error import RowError

if TYPE_CHECKING:
    from model.engine.engine import Engine


@dataclasses.dataclass(frozen=True)
class Ask:
    """One question to the engine.

    Attributes:
      rows: of the chunk, that its answer is for; mostly one.
      start: puts it into the engine.
    """

    rows: tuple[int, ...]
    start: Callable[[], Future]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions(abc.ABC):
    """A chunk on its way to the model; the element that ``RunInference`` works on.

    Attributes:
      chunk: its address.
      rows: all its input rows, as the input has them.
      row_uids: the id of each row.
      sources: for each row that is asked about, in order, its place among the rows.
      errors: row -> why it cannot be asked.
    """

    chunk: Chunk
    rows: pa.Table
    row_uids: tuple[str, ...]
    sources: tuple[int, ...]
    errors: dict[int, RowError]

    def __len__(self) -> int:
        return self.rows.num_rows

    def __getstate__(self) -> dict[str, Any]:
        # A slice pickles with all of the batch it was cut from; Arrow's own format does not.
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.rows.schema) as writer:
            writer.write_table(self.rows)
        return {**self.__dict__, "rows": sink.getvalue().to_pybytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        rows = pa.ipc.open_stream(state["rows"]).read_all()
        self.__dict__.update({**state, "rows": rows})

    @abc.abstractmethod
    def open(self, engine: "Engine") -> tuple[list[Ask], Callable[[Sequence[Any]], Sequence[Any]]]:
        """What the engine is to be asked, in the order that is best.

        Returns:
          The questions, and what makes the answer to each of ``sources`` of their answers, None
          for those that were not asked.
        """

    @abc.abstractmethod
    def answered(self, outputs: Sequence[Any], **facts: Any) -> "Answers":
        """The chunk with these answers; ``facts`` are the other attributes of ``Answers``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers(abc.ABC):
    """A chunk with the model's answers.

    Attributes:
      prompts: what was asked.
      outputs: the answer to each of its ``sources``; None for those whose rows are in ``saved``, or
        that are not answered yet.
      saved: rows that another attempt at the chunk has answered.
      refused: row -> why it was not asked although it could have been.
      has_text: whether the engine had a tokenizer to decode with.
      engine: what the answers' bits depend on beside the job's settings; empty if no row was asked.
      seconds: from the first request to the last answer.
      decode_rows: rows of the engine's decode steps since the chunk before it was done.
      decode_rows_used: those that held a live sequence.
    """

    prompts: Any
    outputs: tuple[Any, ...]
    saved: tuple[Saved, ...] = ()
    refused: dict[int, RowError] = dataclasses.field(default_factory=dict)
    has_text: bool = False
    engine: dict[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    decode_rows: int = 0
    decode_rows_used: int = 0

    @property
    def errors(self) -> dict[int, RowError]:
        """Row -> why it has no answer, whoever found it, in row order; but for ``saved`` rows."""
        found = {**self.prompts.errors, **self.refused}
        for row, output in zip(self.prompts.sources, self.outputs, strict=True):
            if output is not None and output.error is not None:
                found[row] = output.error
        return dict(sorted(found.items()))

    def counts(self) -> Counts:
        """What was asked and answered, counted without a look at the table."""
        errors = self.errors
        own = Counts(errored=len(errors), errors=tally(str(e.code) for e in errors.values()))
        own += self.count_answers()
        own = dataclasses.replace(
            own, rows_in=own.succeeded + own.errored, rows_out=own.rows_out + own.errored
        )
        return sum((saved.counts for saved in self.saved), own)

    @abc.abstractmethod
    def count_answers(self) -> Counts:
        """The part of the counts that is about rows with an answer of this attempt."""

    def table(self, output: OutputSchema, run_seed: int) -> pa.Table:
        """The chunk's output rows, in input order: at least one a row, one for an error.

        Args:
          output: the output's schema.
          run_seed: stands in ``seed`` for rows without a seed of their own.
        """
        rows = self.fill(run_seed)
        own = Saved.of(rows.sources, rows.table(self.prompts.rows, output), Counts())
        return merge([own, *self.saved])

    @abc.abstractmethod
    def fill(self, run_seed: int) -> OutputRows:
        """The output rows of the rows with an answer of this attempt, or an error, in row order."""

    def save(self, output: OutputSchema, run_seed: int) -> Saved:
        """What was answered in this attempt, for later ones."""
        bare = dataclasses.replace(
            self, prompts=dataclasses.replace(self.prompts, errors={}), refused={}, saved=()
        )
        rows = bare.fill(run_seed)
        return Saved.of(rows.sources, rows.table(self.prompts.rows, output), bare.counts())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptChunk(Questions):
    """Prompts to complete.

    Attributes:
      requests: what the model is asked, in row order.
      prompt_tokens: row -> length of its prompt, for rows whose prompt is the error.
      cut: prompts that were cut to fit the context.
    """

    requests: tuple[Request, ...]
    prompt_tokens: dict[int, int]
    cut: int = 0

    def open(self, engine: "Engine") -> tuple[list[Ask], Callable[[Sequence[Any]], Sequence[Any]]]:
        """See ``Questions``."""
        shared = engine.shared(self.requests)
        asks = [
            Ask((row,), partial(engine.submit, request, cached))
            for row, request, cached in zip(self.sources, self.requests, shared, strict=True)
        ]
        return asks, self._checked

    def _checked(self, outputs: Sequence[RequestOutput | None]) -> Sequence[RequestOutput | None]:
        """Beam checks neither number nor order of what a handler returns."""
        for i, (request, output) in enumerate(zip(self.requests, outputs, strict=True)):
            if output is None:
                continue
            indexes = [sample.index for sample in output.outputs]
            if output.prompt_token_ids != request.prompt_token_ids or (
                output.error is None and indexes != list(range(request.params.n))
            ):
                raise AssertionError(f"the engine's answer {i} does not belong to its request")
        return outputs

    def answered(self, outputs: Sequence[RequestOutput | None], **facts: Any) -> "CompletionChunk":
        """See ``Questions``."""
        return CompletionChunk(prompts=self, outputs=tuple(outputs), **facts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletionChunk(Answers):
    """Prompts completed."""

    prompts: PromptChunk
    outputs: tuple[RequestOutput | None, ...]

    def count_answers(self) -> Counts:
        """See ``Answers``."""
        answered = [output for output in self.outputs if output and output.error is None]
        samples = [sample for output in answered for sample in output.outputs]
        due = sum(
            request.params.n
            for request, output in zip(self.prompts.requests, self.outputs, strict=True)
            if output and output.error is None
        )
        return Counts(
            succeeded=len(answered),
            rows_out=due,
            prompt_tokens=sum(len(output.prompt_token_ids) for output in answered),
            completion_tokens=sum(len(sample.token_ids) for sample in samples),
            cached_tokens=sum(output.cached_tokens for output in answered),
            finish_reasons=tally(sample.finish_reason for sample in samples),
        )

    def fill(self, run_seed: int) -> OutputRows:
        """See ``Answers``; ``n`` rows for a good one."""
        prompts, errors, rows = self.prompts, self.errors, OutputRows()
        answers = dict(zip(prompts.sources, range(len(self.outputs)), strict=True))
        for row, row_uid in enumerate(prompts.row_uids):
            if row in errors:
                length = prompts.prompt_tokens.get(row)
                if row in answers:
                    length = len(prompts.requests[answers[row]].prompt_token_ids)
                rows.add_error(
                    row,
                    row_uid,
                    errors[row],
                    sample_index=0,
                    finish_reason="error",
                    prompt_tokens=length,
                )
                continue
            answer = self.outputs[answers[row]] if row in answers else None
            if answer is None:
                continue
            request = prompts.requests[answers[row]]
            seed = request.params.seed
            for sample in answer.outputs:
                rows.add(
                    row,
                    row_uid,
                    sample_index=sample.index,
                    text=sample.text if self.has_text else None,
                    token_ids=sample.token_ids,
                    finish_reason=sample.finish_reason,
                    stop_reason=None if sample.stop_reason is None else str(sample.stop_reason),
                    cumulative_logprob=sample.cumulative_logprob,
                    logprobs=sample.logprobs,
                    prompt_logprobs=answer.prompt_logprobs,
                    prompt_tokens=len(answer.prompt_token_ids),
                    completion_tokens=len(sample.token_ids),
                    cached_tokens=answer.cached_tokens,
                    seed=run_seed if seed is None else seed,
                )
        return rows
