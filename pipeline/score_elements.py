"""A chunk of rows to score, and the same chunk scored."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from model import evaluation
from model.engine.scoring import Score, ScoreOutput, ScoreRequest
from pipeline.counts import Counts
from pipeline.elements import Answers, Ask, Questions
from schemas.completion import OutputRows
from schemas.error import RowError
from schemas.score import COLUMNS

if TYPE_CHECKING:
    from model.engine.engine import Engine

Ids = Sequence[int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """What the engine is to score for one row.

    Attributes:
      pairs: context and continuation of each of its continuations; or of a document's windows.
      is_document: which of the two.
      text_bytes: length in UTF-8 of each continuation; None for those that were given as token ids.
    """

    pairs: tuple[tuple[Ids, Ids], ...]
    is_document: bool
    text_bytes: tuple[int | None, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One row's answer.

    Attributes:
      scores: one a continuation, or the document's; empty on error.
      cached_tokens: for each, tokens that another of the chunk has computed.
      error: why there are none, or None.
    """

    scores: tuple[Score, ...] = ()
    cached_tokens: tuple[int, ...] = ()
    error: RowError | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreChunk(Questions):
    """Rows to score.

    Attributes:
      asked: for each of ``sources``, what the engine is to score.
      logprobs: per token, its rank and this many likeliest tokens; None for neither.
    """

    asked: tuple[Pieces, ...]
    logprobs: int | None

    def open(self, engine: "Engine") -> tuple[list[Ask], Callable[[Sequence[Any]], Sequence[Any]]]:
        """See ``Questions``; a context that several rows have is computed once, for all of them."""
        pairs = [pair for pieces in self.asked for pair in pieces.pairs]
        rows = [
            row for row, pieces in zip(self.sources, self.asked, strict=True) for _ in pieces.pairs
        ]
        groups = list(evaluation.group(pairs, engine.max_continuations, self.logprobs))
        starts = engine.score_starts([request for request, _ in groups])
        asks = [
            Ask(tuple(sorted({rows[place] for place in groups[at][1]})), start)
            for at, start in starts
        ]

        def outputs(answers: Sequence[ScoreOutput | None]) -> list[Scored | None]:
            scores: dict[int, tuple[Score, int]] = {}
            errors: dict[int, RowError] = {}
            for (at, _), output in zip(starts, answers, strict=True):
                if output is not None:
                    self._place(groups[at], output, pairs, scores, errors)
            places = iter(range(len(pairs)))
            return [self._answer(pieces, places, scores, errors) for pieces in self.asked]

        return asks, outputs

    @staticmethod
    def _place(
        group: tuple[ScoreRequest, Sequence[int]],
        output: ScoreOutput,
        pairs: Sequence[tuple[Ids, Ids]],
        scores: dict[int, tuple[Score, int]],
        errors: dict[int, RowError],
    ) -> None:
        request, places = group
        if output.error is not None:
            errors.update(dict.fromkeys(places, output.error))
            return
        cached = output.cached_tokens
        for place, found in zip(places, output.scores, strict=True):
            if found.token_ids != tuple(pairs[place][1]):
                raise AssertionError(f"the engine's answer {place} is to another question")
            scores[place] = found, cached
            cached = len(request.context_token_ids)

    def answered(self, outputs: Sequence[Scored | None], **facts: Any) -> "ScoredChunk":
        """See ``Questions``."""
        return ScoredChunk(prompts=self, outputs=tuple(outputs), **facts)

    def _answer(
        self,
        pieces: Pieces,
        places: Iterator[int],
        scores: dict[int, tuple[Score, int]],
        errors: dict[int, RowError],
    ) -> Scored | None:
        own = [next(places) for _ in pieces.pairs]
        if any(place not in scores and place not in errors for place in own):
            return None
        if wrong := next((errors[place] for place in own if place in errors), None):
            return Scored(error=wrong)
        found = [scores[place] for place in own]
        if pieces.is_document:
            joined = evaluation.join([score for score, _ in found])
            return Scored(scores=(joined,), cached_tokens=(sum(count for _, count in found),))
        return Scored(
            scores=tuple(score for score, _ in found),
            cached_tokens=tuple(count for _, count in found),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredChunk(Answers):
    """Rows scored."""

    prompts: ScoreChunk
    outputs: tuple[Scored | None, ...]

    def count_answers(self) -> Counts:
        """See ``Answers``."""
        good = [
            (pieces, output)
            for pieces, output in zip(self.prompts.asked, self.outputs, strict=True)
            if output and output.error is None
        ]
        scores = [score for _, output in good for score in output.scores]
        sizes = [size for pieces, _ in good for size in pieces.text_bytes]
        texts = [(s, size) for s, size in zip(scores, sizes, strict=True) if size is not None]
        return Counts(
            succeeded=len(good),
            rows_out=len(sizes),
            prompt_tokens=sum(len(context) for pieces, _ in good for context, _ in pieces.pairs),
            cached_tokens=sum(sum(output.cached_tokens) for _, output in good),
            scored_tokens=sum(len(score.token_ids) for score in scores),
            greedy=sum(score.is_greedy for score in scores),
            logprob=math.fsum(score.logprob for score in scores),
            text_bytes=sum(size for _, size in texts),
            text_logprob=math.fsum(score.logprob for score, _ in texts),
        )

    def fill(self, run_seed: int) -> OutputRows:
        """See ``Answers``; one row a continuation."""
        prompts, errors, rows = self.prompts, self.errors, OutputRows(COLUMNS)
        answers = dict(zip(prompts.sources, range(len(self.outputs)), strict=True))
        for row, row_uid in enumerate(prompts.row_uids):
            if row in errors:
                rows.add_error(row, row_uid, errors[row], continuation_index=0)
                continue
            answer = self.outputs[answers[row]] if row in answers else None
            if answer is None:
                continue
            pieces = prompts.asked[answers[row]]
            for index, (found, size, cached) in enumerate(
                zip(answer.scores, pieces.text_bytes, answer.cached_tokens, strict=True)
            ):
                rows.add(
                    row,
                    row_uid,
                    continuation_index=index,
                    logprob=found.logprob,
                    is_greedy=found.is_greedy,
                    token_ids=found.token_ids,
                    token_logprobs=found.token_logprobs,
                    logprobs=found.logprobs,
                    perplexity=evaluation.perplexity(found.logprob, len(found.token_ids)),
                    text_bytes=size,
                    byte_perplexity=None
                    if size is None
                    else evaluation.perplexity(found.logprob, size),
                    context_tokens=len(pieces.pairs[index][0]),
                    continuation_tokens=len(found.token_ids),
                    cached_tokens=cached,
                )
        return rows
