"""A chunk of prompts, and the same chunk completed."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from model.engine.request import Request, RequestOutput
from pipeline.counts import Counts, tally
from pipeline.questions import Answers, Ask, Questions
from pipeline.results import add_completion_error, add_completions
from schemas.completion import OutputRows
from schemas.error import RowError
from schemas.prompt import Roles, by_column

if TYPE_CHECKING:
    from model.engine.engine import Engine


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptChunk(Questions):
    """Prompts to complete.

    Attributes:
      requests: what the model is asked, in row order.
      prompt_tokens: row -> length of its prompt, for rows whose prompt is the error.
      cut: prompts that were cut to fit the context.
      echoes: for each request, the prompt's text that goes before its completions', if any does.
      roles: which columns set what.
    """

    requests: tuple[Request, ...]
    prompt_tokens: dict[int, int]
    cut: int = 0
    echoes: tuple[str, ...] = ()
    roles: Roles = dataclasses.field(default_factory=Roles)

    def question(self, place: int) -> Hashable:
        """See ``Questions``."""
        return self.requests[place].question

    def open(self, engine: "Engine") -> tuple[list[Ask], Callable[[Sequence[Any]], Sequence[Any]]]:
        """See ``Questions``; prompts that begin alike follow one another."""
        first, shared = self.first(), engine.shared(self.requests)
        rows: dict[int, list[int]] = {}
        for row, at in zip(self.sources, first, strict=True):
            rows.setdefault(at, []).append(row)
        order = sorted(rows, key=lambda at: self.requests[at].prompt_token_ids)
        asks = [
            Ask(tuple(rows[at]), partial(engine.submit, self.requests[at], shared[at]))
            for at in order
        ]

        def outputs(answers: Sequence[RequestOutput | None]) -> list[RequestOutput | None]:
            found = dict(zip(order, answers, strict=True))
            copies = [_copied(found[at], shared[place]) for place, at in enumerate(first)]
            for place, copy in enumerate(copies):
                self._check(place, copy)
            return copies

        return asks, outputs

    def _check(self, place: int, output: RequestOutput | None) -> None:
        """Beam checks neither number nor order of what a handler returns."""
        if output is None:
            return
        request = self.requests[place]
        indexes = [sample.index for sample in output.outputs]
        if output.prompt_token_ids != request.prompt_token_ids or (
            output.error is None and indexes != list(range(request.params.n))
        ):
            raise AssertionError(f"the engine's answer {place} does not belong to its request")

    def told(self, row: int, error: RowError) -> RowError:
        """See ``Questions``."""
        return by_column(error, self.roles, self.rows, row)

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
            duplicates=self.duplicates(),
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
                add_completion_error(rows, row, row_uid, errors[row], length)
                continue
            answer = self.outputs[answers[row]] if row in answers else None
            if answer is None:
                continue
            request = prompts.requests[answers[row]]
            seed = request.params.seed
            echo = prompts.echoes[answers[row]] if prompts.echoes else ""
            add_completions(
                rows,
                row,
                row_uid,
                answer,
                seed=run_seed if seed is None else seed,
                echo=echo,
                has_text=self.has_text,
            )
        return rows


def _copied(output: RequestOutput | None, cached_tokens: int) -> RequestOutput | None:
    """The answer as that of a request which shares so many tokens with those before it."""
    if output is None or output.error is not None or output.cached_tokens == cached_tokens:
        return output
    return dataclasses.replace(output, cached_tokens=cached_tokens)
