"""What travels through the pipeline: a chunk of prompts, and the same chunk completed.

What the two have in common with other tasks comes first.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from model.engine.request import Request, RequestOutput
from pipeline.counts import Counts, tally
from pipeline.plan import Chunk
from schemas.completion import OutputRows, OutputSchema
from schemas.error import RowError

if TYPE_CHECKING:
    from model.engine.engine import Engine


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
    def ask(self, engine: "Engine") -> Sequence[Any]:
        """Asks the engine for all rows, and waits; returns the answer to each of ``sources``."""

    @abc.abstractmethod
    def answered(self, outputs: Sequence[Any], **facts: Any) -> "Answers":
        """The chunk with these answers; ``facts`` are the other attributes of ``Answers``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers(abc.ABC):
    """A chunk with the model's answers.

    Attributes:
      prompts: what was asked.
      outputs: the answer to each of its ``sources``.
      has_text: whether the engine had a tokenizer to decode with.
      engine: what the answers' bits depend on beside the job's settings; empty if no row was asked.
      seconds: from the first request to the last answer.
      decode_rows: rows of the engine's decode steps since the chunk before it was done.
      decode_rows_used: those that held a live sequence.
    """

    prompts: Any
    outputs: tuple[Any, ...]
    has_text: bool = False
    engine: dict[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    decode_rows: int = 0
    decode_rows_used: int = 0

    @property
    def errors(self) -> dict[int, RowError]:
        """Row -> why it has no answer, whoever found it, in row order."""
        found = dict(self.prompts.errors)
        for row, output in zip(self.prompts.sources, self.outputs, strict=True):
            if output.error is not None:
                found[row] = output.error
        return dict(sorted(found.items()))

    @abc.abstractmethod
    def counts(self) -> Counts:
        """What was asked and answered, counted without a look at the table."""

    @abc.abstractmethod
    def table(self, output: OutputSchema, run_seed: int) -> pa.Table:
        """The chunk's output rows, in input order: at least one a row, one for an error.

        Args:
          output: the output's schema.
          run_seed: stands in ``seed`` for rows without a seed of their own.
        """


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

    def ask(self, engine: "Engine") -> tuple[RequestOutput, ...]:
        """See ``Questions``."""
        outputs = tuple(future.result() for future in engine.submit_all(self.requests))
        # Beam checks neither number nor order of what a handler returns.
        for i, (request, output) in enumerate(zip(self.requests, outputs, strict=True)):
            indexes = [sample.index for sample in output.outputs]
            if output.prompt_token_ids != request.prompt_token_ids or (
                output.error is None and indexes != list(range(request.params.n))
            ):
                raise AssertionError(f"the engine's answer {i} does not belong to its request")
        return outputs

    def answered(self, outputs: Sequence[RequestOutput], **facts: Any) -> "CompletionChunk":
        """See ``Questions``."""
        return CompletionChunk(prompts=self, outputs=tuple(outputs), **facts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletionChunk(Answers):
    """Prompts completed."""

    prompts: PromptChunk
    outputs: tuple[RequestOutput, ...]

    def counts(self) -> Counts:
        """See ``Answers``."""
        answered = [output for output in self.outputs if output.error is None]
        samples = [sample for output in answered for sample in output.outputs]
        due = sum(
            request.params.n
            for request, output in zip(self.prompts.requests, self.outputs, strict=True)
            if output.error is None
        )
        return Counts(
            rows_in=len(self.prompts),
            succeeded=len(answered),
            errored=len(self.errors),
            rows_out=due + len(self.errors),
            prompt_tokens=sum(len(output.prompt_token_ids) for output in answered),
            completion_tokens=sum(len(sample.token_ids) for sample in samples),
            cached_tokens=sum(output.cached_tokens for output in answered),
            finish_reasons=tally(sample.finish_reason for sample in samples),
            errors=tally(str(error.code) for error in self.errors.values()),
        )

    def table(self, output: OutputSchema, run_seed: int) -> pa.Table:
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
            request, answer = prompts.requests[answers[row]], self.outputs[answers[row]]
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
        return rows.table(prompts.rows, output)
