"""What the scheduler deals with: prompts, their samples, and the tokens to run for them. No JAX."""

import dataclasses
from typing import Any

from model.engine.request import Request
from model.engine.scoring import Ask, ScoreRequest


@dataclasses.dataclass(slots=True, eq=False)
class Prompt:
    """What a request's samples have in common, in the cache.

    Attributes:
      request: what was asked.
      ticket: what the engine wants to remember with it.
      tokens: what is run once for all samples.
      waiting: samples not yet admitted.
      pages: pages of its whole blocks, shared ones first; held by the prompt.
      tail: page of the tokens after the last whole block, copied for each sample; None if there is
        one sample or no such token.
      placed: whether it has its pages.
      running: samples admitted and not finished.
    """

    request: Request | ScoreRequest
    ticket: Any
    tokens: tuple[int, ...]
    waiting: int
    pages: list[int] = dataclasses.field(default_factory=list)
    tail: int | None = None
    placed: bool = False
    running: int = 0

    @property
    def scored(self) -> bool:
        """Whether tokens of it are scored: it runs in steps of that kind."""
        return self.request.scored_from is not None

    def shareable_blocks(self, block_size: int) -> int:
        """How many of its blocks other prompts may use: those whose rows no score needs."""
        scored_from = self.request.scored_from
        return (len(self.tokens) if scored_from is None else scored_from - 1) // block_size


@dataclasses.dataclass(slots=True, eq=False)
class Sequence:
    """One sample of a request.

    Attributes:
      prompt: what it continues.
      index: which sample.
      slot: where its state is on the device; -1 if it is only scored.
      pages: all its pages in order; it holds those after the prompt's whole blocks.
    """

    prompt: Prompt
    index: int
    slot: int
    pages: list[int]

    @property
    def request(self) -> Request:
        """What it draws for; not of one that is only scored."""
        assert isinstance(self.prompt.request, Request)
        return self.prompt.request


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of one block of a sequence, to be run through the network together.

    Attributes:
      prompt: whose.
      start: position of the first.
      tokens: the tokens.
      pages: the sequence's pages up to these tokens.
      asks: what is to be judged after which of them.
    """

    prompt: Prompt
    start: int
    tokens: tuple[int, ...]
    pages: list[int]
    asks: list[Ask]


@dataclasses.dataclass(frozen=True, slots=True)
class Admission:
    """A sequence that may go on once the segments planned with or before it have run.

    Attributes:
      sequence: which.
      copy: (source, target) pages to copy first, or None.
    """

    sequence: Sequence
    copy: tuple[int, int] | None


@dataclasses.dataclass(slots=True)
class Round:
    """What one prefill step is to do; all of it is scored or none.

    Attributes:
      copies: (source, target) pages to copy before it.
      segments: what it runs.
      admissions: sequences that may decode after it.
    """

    copies: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    segments: list[Segment] = dataclasses.field(default_factory=list)
    admissions: list[Admission] = dataclasses.field(default_factory=list)
