"""What travels through the pipeline: a chunk of prompts, and the same chunk completed."""

import dataclasses
from typing import Any

import pyarrow as pa

from model.engine.request import Request, RequestOutput
from pipeline.plan import Chunk
from schemas.completion import CompletionRows, OutputSchema
from schemas.error import RowError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptChunk:
    """A chunk on its way to the model; the element that ``RunInference`` works on.

    Attributes:
      chunk: its address.
      rows: all its input rows, as the input has them.
      row_uids: the id of each row.
      sources: for each request, the row that it came from.
      requests: what the model is asked, in row order.
      errors: row -> why it cannot be asked.
      prompt_tokens: row -> length of its prompt, for rows whose prompt is the error.
      cut: prompts that were cut to fit the context.
    """

    chunk: Chunk
    rows: pa.Table
    row_uids: tuple[str, ...]
    sources: tuple[int, ...]
    requests: tuple[Request, ...]
    errors: dict[int, RowError]
    prompt_tokens: dict[int, int]
    cut: int = 0

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletionChunk:
    """A chunk with the model's answers.

    Attributes:
      prompts: what was asked.
      outputs: the answer to each of its requests.
      has_text: whether the engine had a tokenizer to decode with.
      engine: what the answers' bits depend on beside the job's settings; empty if no row was asked.
      seconds: from the first request to the last answer.
      decode_rows: rows of the engine's decode steps since the chunk before it was done.
      decode_rows_used: those that held a live sequence.
    """

    prompts: PromptChunk
    outputs: tuple[RequestOutput, ...]
    has_text: bool
    engine: dict[str, str]
    seconds: float
    decode_rows: int = 0
    decode_rows_used: int = 0

    @property
    def errors(self) -> dict[int, RowError]:
        """Row -> why it has no completion, whoever found it, in row order."""
        found = dict(self.prompts.errors)
        for row, output in zip(self.prompts.sources, self.outputs, strict=True):
            if output.error is not None:
                found[row] = output.error
        return dict(sorted(found.items()))

    def table(self, output: OutputSchema, run_seed: int) -> pa.Table:
        """The chunk's output rows, in input order: ``n`` a good row, one for an error.

        Args:
          output: the output's schema.
          run_seed: stands in ``seed`` for rows without a seed of their own.
        """
        prompts, errors, rows = self.prompts, self.errors, CompletionRows()
        answers = dict(zip(prompts.sources, range(len(self.outputs)), strict=True))
        for row, row_uid in enumerate(prompts.row_uids):
            if row in errors:
                length = prompts.prompt_tokens.get(row)
                if row in answers:
                    length = len(prompts.requests[answers[row]].prompt_token_ids)
                rows.add_error(row, row_uid, errors[row], length)
                continue
            request, answer = prompts.requests[answers[row]], self.outputs[answers[row]]
            seed = request.params.seed
            for sample in answer.outputs:
                rows.add_completion(
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
