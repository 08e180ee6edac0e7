"""Requests under way, and what has come of them so far."""

import dataclasses
import time
from concurrent.futures import Future
from typing import Any

from model.engine.request import CompletionOutput, Request, RequestOutput, TokenLogprob
from model.engine.rules import Rules
from schemas.sampling import SamplingParams


@dataclasses.dataclass(slots=True, eq=False)
class Ticket:
    """A request under way, and what has come of it.

    Attributes:
      request: what was asked.
      rules: its parameters in token ids.
      future: gets the answer.
      cached_tokens: for the answer.
      prompt_logprobs: filled from the front as the prompt is scored; None if not asked for.
      outputs: completions by index.
      missing: samples that have not ended.
    """

    request: Request
    rules: Rules
    future: Future[RequestOutput]
    cached_tokens: int
    prompt_logprobs: list[TokenLogprob | None] | None
    outputs: list[CompletionOutput | None]
    missing: int


def open_ticket(
    request: Request, rules: Rules, future: Future[RequestOutput], cached_tokens: int = 0
) -> Ticket:
    """A ticket with nothing done."""
    asked, n = request.params.prompt_logprobs, request.params.n
    return Ticket(
        request, rules, future, cached_tokens, None if asked is None else [None], [None] * n, n
    )


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """Why a sample ended, but for stop strings, and the stop id if any."""

    finish_reason: str
    stop_reason: str | int | None = None

    def hides_last(self, params: SamplingParams) -> bool:
        """Whether the last token is none of the text: one that ends a completion, as in vLLM."""
        return self.finish_reason == "stop" and not params.include_stop_str_in_output


OVERDUE = End("overdue")
"""The end of a sample that took too long; its row is an error."""

LOOPED = End("repetition", "repetition_detected")
"""The end of a sample that was caught in a loop, by vLLM's words."""


@dataclasses.dataclass(slots=True, eq=False)
class Sample:
    """One sample's tokens as they are drawn; the engine's thread appends, the finisher reads.

    Attributes:
      ticket: whose.
      index: which sample.
      token_ids: drawn so far.
      logprobs: of each.
      details: rank and alternatives of each, or None if not asked for.
      matcher: what it may say next, if it is constrained; the mask makers' alone while they work.
      answered: whether the finisher is done with it; what is drawn beyond does not count.
      began: when it was admitted, monotonic.
    """

    ticket: Ticket
    index: int
    token_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    details: list[TokenLogprob] | None = None
    matcher: Any = None
    answered: bool = False
    began: float = dataclasses.field(default_factory=time.monotonic)

    @classmethod
    def of(cls, ticket: Ticket, index: int) -> "Sample":
        """A sample of which nothing is drawn."""
        details: list[TokenLogprob] | None = None
        if ticket.request.params.logprobs is not None:
            details = []
        grammar = ticket.rules.grammar
        return cls(ticket, index, details=details, matcher=grammar and grammar.start())

    def end(self) -> End | None:
        """Why the last token ended it, by the rule of the device's step."""
        params, rules, token = self.ticket.request.params, self.ticket.rules, self.token_ids[-1]
        if token in rules.stop_ids:
            return End("stop", None if token == rules.eos_token else token)
        return End("length") if len(self.token_ids) >= params.max_tokens else None
