"""What the engine is asked and what it answers, by vLLM's names. No JAX."""

import dataclasses
import hashlib
from typing import Any

from schemas.error import RowError
from schemas.sampling import SamplingParams

NOT_HEALED = ("allowed_token_ids", "structured_outputs", "beam_width")
"""Parameters that say by themselves how a completion begins: no prompt is healed beside them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to complete.

    Attributes:
      prompt_token_ids: the prompt; at least one token.
      params: how to continue it.
      address: what its randomness derives from, such as run seed and row id; two requests with
        equal address, prompt and parameters get equal completions, whatever runs beside them.
      healed: a token that was taken off the prompt's end, or None: the first token drawn begins
        with its text, which the completion's text leaves out.
    """

    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    address: str = ""
    healed: int | None = None

    @property
    def question(self) -> tuple[tuple[int, ...], int | None, SamplingParams, str]:
        """What decides its answer: requests that have this in common have the same completions."""
        params = self.params
        if params.settled and params.seed is not None:
            params = dataclasses.replace(params, seed=None)
        drawn = not params.settled and params.seed is None
        return self.prompt_token_ids, self.healed, params, self.address if drawn else ""

    def within(self, max_context: int) -> "Request":
        """This request with ``max_tokens`` as a number, where it goes up to the context's end."""
        params = self.params.within(max_context - len(self.prompt_token_ids))
        return self if params is self.params else dataclasses.replace(self, params=params)

    @property
    def samples(self) -> int:
        """How many sequences go on from the prompt: a completion each, or a beam."""
        return self.params.beam_width or self.params.n

    @property
    def slots(self) -> int:
        """Decode slots that each takes."""
        return 1

    @property
    def scored_from(self) -> int | None:
        """Position of the first prompt token that is scored, or None."""
        return None if self.params.prompt_logprobs is None else 1

    @property
    def shareable_ids(self) -> tuple[int, ...]:
        """What may begin as other requests do; nothing if each of its tokens is scored."""
        return self.prompt_token_ids if self.params.prompt_logprobs is None else ()

    @property
    def cached_token_ids(self) -> tuple[int, ...]:
        """What its samples have in common; a prompt's last token is a decode step's."""
        return self.prompt_token_ids[:-1]

    def own_token_ids(self, sample: int) -> tuple[int, ...]:
        """Tokens to run for one sample alone, before it decodes."""
        return ()

    def longest(self, sample: int) -> int:
        """Tokens in the cache in the worst case; the last one drawn is never run."""
        return len(self.prompt_token_ids) + self.params.max_tokens - 1

    def asks(self, start: int, stop: int, sample: int | None) -> list[tuple[int, int, int]]:
        """What is to be judged after prompt rows ``start`` to ``stop``; see ``scoring.Ask``."""
        return [(row, self.prompt_token_ids[row + 1], 0) for row in range(start, stop)]

    @property
    def logprobs_wanted(self) -> int:
        """Likeliest tokens that each of those asks for."""
        return self.params.prompt_logprobs or 0

    def sample_key(self, sample_index: int) -> tuple[int, int]:
        """The two 32-bit words that seed one sample; positions are folded in on the device."""
        source = f"row:{self.address}"
        if self.params.seed is not None:
            source = f"seed:{self.params.seed}"
        digest = hashlib.blake2b(f"{source}|{sample_index}".encode(), digest_size=8).digest()
        return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probabilities at one position, of the raw logits.

    Attributes:
      token_id: the token that stands there.
      logprob: its log-probability.
      rank: how many tokens are at least as likely, itself included; 1 is the likeliest.
      top_token_ids: the likeliest tokens, likeliest first, as many as were asked for.
      top_logprobs: their log-probabilities.
    """

    token_id: int
    logprob: float
    rank: int
    top_token_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One completion of a prompt.

    Attributes:
      index: which of the ``n`` samples.
      text: the completion decoded as the prompt's continuation; empty without a tokenizer.
      token_ids: all tokens drawn, the one that stopped it included.
      cumulative_logprob: sum of the tokens' log-probabilities.
      logprobs: one entry a token, or None if not asked for.
      finish_reason: ``stop``, ``length`` or ``repetition``.
      stop_reason: the stop string or stop token id that ended it, or ``repetition_detected``; None
        at EOS and ``length``.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float
    logprobs: tuple[TokenLogprob, ...] | None
    finish_reason: str
    stop_reason: str | int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """The answer to one request: its completions, or the error that took their place.

    Attributes:
      prompt_token_ids: the prompt as it was run.
      outputs: ``n`` completions in order of their index; empty on error.
      prompt_logprobs: one entry a prompt token, None for the first; or None if not asked for.
      cached_tokens: prompt tokens whose cache entries another request had already computed.
      error: why there is no completion, or None.
    """

    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    cached_tokens: int = 0
    error: RowError | None = None


def detail(facts: Any, at: Any, wanted: int) -> TokenLogprob:
    """One row of what a step found, arrays on the host, with the ``wanted`` likeliest tokens."""
    likeliest = ()
    if wanted > 0:
        likeliest = tuple(facts.top_tokens[at][:wanted].tolist())
    return TokenLogprob(
        token_id=int(facts.token[at]),
        logprob=float(facts.logprob[at]),
        rank=int(facts.rank[at]),
        top_token_ids=likeliest,
        top_logprobs=tuple(facts.top_logprobs[at][: len(likeliest)].tolist()),
    )
