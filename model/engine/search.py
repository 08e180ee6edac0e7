"""Beam search: the likeliest completions of a prompt, searched for instead of drawn.

By vLLM's rule: each beam goes on with its 2 W likeliest tokens, those that a stop id ends are set
aside, and the W best of the others are the next beams. A completion's worth is the sum of its
log-probabilities over its length to the power of ``length_penalty``; the length is that of prompt
and completion, without the token that ended it. No JAX, no slots and no pages.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from model.engine.request import TokenLogprob
from model.engine.ticket import End, Sample, Ticket


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Beam:
    """A completion, as its last token and what stands before.

    Attributes:
      before: all but the last token; None if there is none yet.
      fact: the last token.
      length: in tokens.
      total: sum of their log-probabilities.
      end: why it goes no further, or None.
    """

    before: "Beam | None" = None
    fact: TokenLogprob | None = None
    length: int = 0
    total: float = 0.0
    end: End | None = None

    def facts(self) -> list[TokenLogprob]:
        """Its tokens in order."""
        found = []
        beam: Beam | None = self
        while beam is not None and beam.fact is not None:
            found.append(beam.fact)
            beam = beam.before
        return found[::-1]


class Search:
    """The beams of one request.

    Attributes:
      beams: those that go on.
      done: whether none needs to.
    """

    def __init__(self, ticket: Ticket) -> None:
        self._ticket, self._params = ticket, ticket.request.params
        self._prompt_tokens = len(ticket.request.prompt_token_ids)
        self._completed: list[Beam] = []
        self.beams = [Beam()]
        self.done = False

    def advance(self, likeliest: list[list[TokenLogprob]]) -> list[int]:
        """Goes on by one token, given for each beam the likeliest that may follow, best first.

        Returns:
          For each of the next beams, which of the last ones it goes on.
        """
        rules, width = self._ticket.rules, self._params.beam_width
        found: list[tuple[int, Beam]] = []
        for at, (beam, facts) in enumerate(zip(self.beams, likeliest, strict=True)):
            for fact in facts:
                total, length = beam.total + fact.logprob, beam.length + 1
                if fact.token_id in rules.stop_ids:
                    named = None if fact.token_id == rules.eos_token else fact.token_id
                    self._completed.append(Beam(beam, fact, length, total, End("stop", named)))
                else:
                    found.append((at, Beam(beam, fact, length, total)))
        found.sort(key=lambda item: -self._worth(item[1]))
        self.beams = [beam for _, beam in found[:width]]
        self.done = not self.beams or self.beams[0].length == self._params.max_tokens
        self.done = self.done or self._decided()
        return [at for at, _ in found[:width]]

    def best(self) -> list[Beam]:
        """The ``n`` best completions, best first."""
        ended = [*self._completed, *self.beams]
        return sorted(ended, key=lambda beam: -self._worth(beam))[: self._params.n]

    def samples(self) -> Iterator[tuple[Sample, End]]:
        """The same, as the request's samples."""
        for index, beam in enumerate(self.best()):
            facts = beam.facts()
            sample = Sample.of(self._ticket, index)
            sample.token_ids = [fact.token_id for fact in facts]
            sample.logprobs = [fact.logprob for fact in facts]
            sample.details = None if sample.details is None else facts
            yield sample, beam.end or End("length")

    def overdue(self, began: float) -> Sample:
        """What stands for the search, if it has to end before anything is found."""
        sample = Sample.of(self._ticket, 0)
        sample.began = began
        return sample

    def _worth(self, beam: Beam) -> float:
        length = self._prompt_tokens + beam.length - (beam.end is not None)
        return beam.total / length**self._params.length_penalty

    def _decided(self) -> bool:
        """Whether no beam can come to more than the n-th best of those that have ended.

        A sum of log-probabilities only falls; a longer text may make it count for less.
        """
        if len(self._completed) < self._params.n:
            return False
        last = sorted(map(self._worth, self._completed))[-self._params.n]
        lengths = self._prompt_tokens + np.array([self.beams[0].length, self._params.max_tokens])
        most = max(lengths.astype(float) ** self._params.length_penalty)
        return last >= max(beam.total for beam in self.beams) / most
