"""What the engine is asked to score, and how it answers. No JAX.

A question is a context and any number of continuations of it. The context is run once, whatever
their number; only rows whose next token is asked for reach the head.
"""

import dataclasses
import math
from concurrent.futures import Future

from model.engine.request import TokenLogprob
from model.engine.shapes import Shapes
from schemas.error import ErrorCode, RowError

Ask = tuple[int, int, int]
"""Position of a token row, the token that is to be judged after it, whose answer it is part of."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """One context, and what may follow it.

    Attributes:
      context_token_ids: at least one token.
      continuations: at least one, of at least one token each.
      logprobs: per token, its rank and this many likeliest tokens; None for neither.
    """

    context_token_ids: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    logprobs: int | None = None

    @property
    def samples(self) -> int:
        """How many continuations."""
        return len(self.continuations)

    @property
    def slots(self) -> int:
        """Decode slots that it takes: it draws nothing."""
        return 0

    @property
    def scored_from(self) -> int:
        """Position of the first token that is scored."""
        return len(self.context_token_ids)

    @property
    def shareable_ids(self) -> tuple[int, ...]:
        """What may begin as other requests do."""
        return self.context_token_ids

    @property
    def cached_token_ids(self) -> tuple[int, ...]:
        """What its continuations have in common; a single one's own tokens are part of it.

        The last token of a continuation is never run.
        """
        if self.samples > 1:
            return self.context_token_ids
        return self.context_token_ids + self.continuations[0][:-1]

    def own_token_ids(self, sample: int) -> tuple[int, ...]:
        """Tokens of one of several continuations to be run after what they have in common."""
        return self.continuations[sample][:-1] if self.samples > 1 else ()

    def longest(self, sample: int) -> int:
        """Tokens in the cache once a continuation has been run; 0 if it has none of its own."""
        if self.samples > 1 and len(self.continuations[sample]) == 1:
            return 0
        return len(self.context_token_ids) + len(self.continuations[sample]) - 1

    def asks(self, start: int, stop: int, sample: int | None) -> list[Ask]:
        """What is asked about the rows from ``start`` to ``stop`` of what continuations have in
        common, or of one ``sample``'s own tokens."""
        first = len(self.context_token_ids) - 1
        if sample is None and self.samples > 1:
            if stop <= first:
                return []
            return [(first, tokens[0], i) for i, tokens in enumerate(self.continuations)]
        tokens = self.continuations[sample or 0]
        rows = range(max(start, first), stop)
        return [(row, tokens[row - first], sample or 0) for row in rows]

    @property
    def logprobs_wanted(self) -> int:
        """As the device counts: -1 for not even the rank."""
        return -1 if self.logprobs is None else self.logprobs


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What the model thinks of one continuation.

    Attributes:
      token_ids: the continuation.
      logprob: sum of its tokens' log-probabilities.
      is_greedy: whether greedy decoding of the context would give it.
      token_logprobs: of each token.
      logprobs: rank and likeliest tokens at each, or None if not asked for.
    """

    token_ids: tuple[int, ...]
    logprob: float
    is_greedy: bool
    token_logprobs: tuple[float, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOutput:
    """The answer to one ``ScoreRequest``.

    Attributes:
      request: what was asked.
      scores: one a continuation, in order; empty on error.
      cached_tokens: tokens of the context that a request before it has in whole blocks too.
      error: why there are none, or None.
    """

    request: ScoreRequest
    scores: tuple[Score, ...] = ()
    cached_tokens: int = 0
    error: RowError | None = None


@dataclasses.dataclass(slots=True, eq=False)
class ScoreTicket:
    """A request under way, and what has come of it.

    Attributes:
      request: what was asked.
      future: gets the answer.
      cached_tokens: for the answer.
      details: of each continuation, its tokens' facts so far.
      greedy: of each, whether all of them were the likeliest.
      missing: tokens not yet scored.
    """

    request: ScoreRequest
    future: Future[ScoreOutput]
    cached_tokens: int
    details: list[list[TokenLogprob]]
    greedy: list[bool]
    missing: int

    def add(self, sample: int, fact: TokenLogprob, likeliest: int) -> None:
        """Takes the next token's score of a continuation."""
        self.details[sample].append(fact)
        self.greedy[sample] &= fact.token_id == likeliest
        self.missing -= 1

    def answer(self) -> ScoreOutput:
        """The answer, once nothing is missing."""
        scores = []
        for tokens, facts, greedy in zip(
            self.request.continuations, self.details, self.greedy, strict=True
        ):
            logprobs = tuple(fact.logprob for fact in facts)
            scores.append(
                Score(
                    token_ids=tokens,
                    logprob=math.fsum(logprobs),
                    is_greedy=greedy,
                    token_logprobs=logprobs,
                    logprobs=None if self.request.logprobs is None else tuple(facts),
                )
            )
        return ScoreOutput(
            request=self.request, scores=tuple(scores), cached_tokens=self.cached_tokens
        )


def open_score_ticket(request: ScoreRequest, cached_tokens: int = 0) -> ScoreTicket:
    """A ticket with nothing done."""
    count = request.samples
    missing = sum(map(len, request.continuations))
    details: list[list[TokenLogprob]] = [[] for _ in range(count)]
    return ScoreTicket(request, Future(), cached_tokens, details, [True] * count, missing)


def fault(request: ScoreRequest, vocab_size: int, shapes: Shapes) -> RowError | None:
    """Why a request cannot be scored, or None."""
    context = request.context_token_ids
    parts = [("context", context)] + [("continuation", c) for c in request.continuations]
    for name, ids in parts:
        if not ids:
            code = ErrorCode.PROMPT_EMPTY if ids is context else ErrorCode.CONTINUATION_EMPTY
            return RowError(code, f"the {name} has no tokens", name)
        wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
        if wrong is not None:
            message = f"{name}: token id {wrong} is outside the vocabulary of {vocab_size}"
            return RowError(ErrorCode.TOKEN_ID_OUT_OF_RANGE, message, name)
    longest = max(map(len, request.continuations), default=0)
    if len(context) + longest - 1 > shapes.max_context:
        message = (
            f"context of {len(context)} and continuation of {longest} tokens exceed the context "
            f"of {shapes.max_context}, the last token aside, which is not run"
        )
        return RowError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, message, "continuation")
    if not 0 < request.samples <= shapes.prefill_rows:
        message = f"{request.samples} continuations; 1 to {shapes.prefill_rows} fit a request"
        return RowError(ErrorCode.INVALID_PARAMETER, message, "continuations")
    return None
