"""A chunk of rows to score, and the same chunk scored."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from model import evaluation
from model.engine.scoring import Score, ScoreOutput, ScoreRequest
from pipeline.counts import Counts
from pipeline.questions import Answers, Ask, Questions
from pipeline.results import add_score
from schemas.completion import OutputRows
from schemas.error import RowError
from schemas.score import COLUMNS

if TYPE_CHECKING:
    from model.engine.engine import Engine

Ids = tuple[int, ...]


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

    def question(self, place: int) -> Hashable:
        """See ``Questions``."""
        return self.asked[place].pairs

    def open(self, engine: "Engine") -> tuple[list[Ask], Callable[[Sequence[Any]], Sequence[Any]]]:
        """See ``Questions``; a context that several rows have is computed once, for all of them."""
        first = self.first()
        rows: dict[int, set[int]] = {}
        for row, at in zip(self.sources, first, strict=True):
            rows.setdefault(at, set()).add(row)
        owners = [at for at in rows for _ in self.asked[at].pairs]
        pairs = [pair for at in rows for pair in self.asked[at].pairs]
        groups = list(evaluation.group(pairs, engine.max_continuations, self.logprobs))
        starts = engine.score_starts([request for request, _ in groups])
        asks = [
            Ask(tuple(sorted(set().union(*(rows[owners[i]] for i in groups[at][1])))), start)
            for at, start in starts
        ]
        cached = self._cached(engine, [request for request, _ in groups])

        def outputs(answers: Sequence[ScoreOutput | None]) -> list[Scored | None]:
            found: dict[int, list[Score | RowError]] = {at: [] for at in rows}
            placed: list[Score | RowError | None] = [None] * len(pairs)
            for (at, _), output in zip(starts, answers, strict=True):
                if output is not None:
                    for k, place in enumerate(groups[at][1]):
                        placed[place] = output.error or output.scores[k]
            for at, pair, answer in zip(owners, pairs, placed, strict=True):
                if isinstance(answer, Score) and answer.token_ids != pair[1]:
                    raise AssertionError("the engine's answer is to another question")
                if answer is not None:
                    found[at].append(answer)
            return [
                _scored(self.asked[place], found[at], cached[place])
                for place, at in enumerate(first)
            ]

        return asks, outputs

    def _cached(self, engine: "Engine", requests: Sequence[ScoreRequest]) -> list[list[int]]:
        """For each of ``sources``, and each of its pairs, context tokens that others have too.

        A context that has come before is computed wholly then; so this is no matter of ``dedupe``.
        """
        known: dict[Ids, int] = {}
        for request, shared in zip(requests, engine.shared(requests), strict=True):
            known.setdefault(request.context_token_ids, shared)
        cached: list[list[int]] = []
        for pieces in self.asked:
            cached.append([])
            for context, _ in pieces.pairs:
                cached[-1].append(known[context])
                known[context] = len(context)
        return cached

    def answered(self, outputs: Sequence[Scored | None], **facts: Any) -> "ScoredChunk":
        """See ``Questions``."""
        return ScoredChunk(prompts=self, outputs=tuple(outputs), **facts)


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
            duplicates=self.duplicates(),
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
                context = len(pieces.pairs[index][0])
                add_score(rows, row, row_uid, index, found, context, cached, size)
        return rows


def _scored(
    pieces: Pieces, found: Sequence[Score | RowError], cached: Sequence[int]
) -> Scored | None:
    """A row's answer from those to its pieces; None if some of these are not there."""
    if error := next((answer for answer in found if isinstance(answer, RowError)), None):
        return Scored(error=error)
    scores = [answer for answer in found if isinstance(answer, Score)]
    if len(scores) < len(pieces.pairs):
        return None
    if pieces.is_document:
        return Scored(scores=(evaluation.join(scores),), cached_tokens=(sum(cached),))
    return Scored(scores=tuple(scores), cached_tokens=tuple(cached))
