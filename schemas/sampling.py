"""Sampling parameters by vLLM's names, meaning and bounds; for a job, or for one row."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from schemas import checks
from schemas.checks import InvalidParameter
from schemas.repetition import RepetitionDetection, repetition
from schemas.structured import SHORTHANDS, StructuredOutputs, structured

MAX_LOGPROBS = 20
"""Most top log-probabilities a token may ask for (vLLM's default bound)."""

MAX_BEAM_WIDTH = MAX_LOGPROBS // 2
"""Each beam looks at twice as many tokens, so that enough remain if some end the completion."""

MAX_BIASES = 1024
MAX_BAD_WORD_TOKENS = 1024
MAX_EARLY_STOPS = 128
"""vLLM's bounds on the device: token ids in ``logit_bias``, tokens of all ``bad_words`` together,
and stop ids of a row that has ``min_tokens``, the end of the text included."""

MAX_SAMPLES = 16384
"""Most completions of one prompt (vLLM's default bound)."""

TO_CONTEXT_END = -1
"""As ``max_tokens``: as many tokens as the context has room for (vLLM's None, which a null cannot
say in a column: there it leaves the job's value)."""

MAX_TEMPERATURE = 2.0
MIN_TEMPERATURE = 0.01
"""Above the former a temperature is refused, as by vLLM and OpenAI; one below the latter, unless it
is 0, is taken as that, as by vLLM."""

MAX_REPETITION_PENALTY = 1e30
"""vLLM has no bound but 0. A logit times more than this, over the lowest temperature, would leave
float32, and so would one divided by less than its inverse."""

ALIASES: dict[str, str] = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "until": "stop",
    "sampling_seed": "seed",
}
"""Names that users bring from other tools, and what they mean here."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to continue a prompt. Immutable; every value has been checked.

    Examples:
      >>> params = SamplingParams(temperature=0.7, max_tokens=256, stop=["Q:"])
      >>> params.override({"temperature": 0, "seed": None}).temperature
      0.0
      >>> SamplingParams(top_p=2)
      Traceback (most recent call last):
        ...
      schemas.checks.InvalidParameter: top_p must be above 0 and at most 1, got 2

    Attributes:
      n: completions of one prompt, each drawn on its own, or the best that a search finds.
      beam_width: search for the likeliest completions with this many beams, instead of drawing;
        temperature, top-k and the like mean nothing then.
      length_penalty: a search goes by the sum of log-probabilities over the length of prompt and
        completion to this power.
      temperature: divides the logits; 0 takes the most likely token (greedy).
      top_p: keep the smallest set of tokens whose probability reaches this, in (0, 1].
      top_k: keep the k most likely tokens; 0 or -1 keeps all.
      min_p: keep tokens at least this part as likely as the likeliest; 0 keeps all.
      repetition_penalty: divides the logit, if positive, else multiplies it, of tokens that stand
        in the prompt or the completion; 1 changes nothing, 1e30 is the most.
      presence_penalty: subtracted from the logits of tokens that stand in the completion.
      frequency_penalty: subtracted from them once for each time that they stand there.
      logit_bias: added to logits by token id, in [-100, 100]; kept as sorted pairs.
      allowed_token_ids: only these may be drawn; None allows all.
      bad_words: texts whose tokens may not be drawn one after the other, at the beginning of a
        word or in its middle; only the last token of each is kept from being drawn.
      seed: replaces the row's address as the source of its randomness.
      stop: strings that end the completion; they may begin inside one token and end in another.
      stop_token_ids: token ids that end the completion.
      include_stop_str_in_output: keep the stop string at the end of the text.
      ignore_eos: go on past the end-of-sequence token.
      max_tokens: most tokens of a completion; -1, or None in Python, for up to the context's end.
      min_tokens: no EOS, even an ignored one, no stop token and no end by a stop string before this
        many tokens.
      logprobs: per token, its log-probability and those of this many likeliest tokens; True is 1.
      prompt_logprobs: the same for the prompt's tokens.
      repetition_detection: when the completion is caught in a loop and ends; None for never.
      structured_outputs: what the text must look like; None for anything.
      skip_special_tokens: leave special tokens out of the text (never out of ``token_ids``).

    Raises:
      InvalidParameter: a value is out of bounds or of another type.
    """

    n: int = 1
    beam_width: int | None = None
    length_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    repetition_detection: RepetitionDetection | None = None
    structured_outputs: StructuredOutputs | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.seed == -1:  # as vLLM has it
            object.__setattr__(self, "seed", None)
        if self.min_tokens > self.max_tokens != TO_CONTEXT_END:
            raise InvalidParameter(
                "min_tokens",
                f"must not exceed max_tokens={self.max_tokens}, got {self.min_tokens}",
            )
        if self.min_tokens and len(self.stop_token_ids) >= MAX_EARLY_STOPS:
            raise InvalidParameter(
                "stop_token_ids",
                f"must hold fewer than {MAX_EARLY_STOPS} ids when min_tokens is set, "
                f"got {len(self.stop_token_ids)}",
            )
        if self.beam_width is not None:
            self._check_search(self.beam_width)
        elif self.temperature == 0 and self.n > 1:
            raise InvalidParameter("n", f"must be 1 when temperature is 0 (greedy), got {self.n}")

    def _check_search(self, beam_width: int) -> None:
        if self.n > beam_width:
            raise InvalidParameter("n", f"must not exceed beam_width={beam_width}, got {self.n}")
        for field in dataclasses.fields(self):
            if field.name in _NOT_SEARCHED and getattr(self, field.name) != field.default:
                raise InvalidParameter(field.name, "does not go together with beam_width")

    @property
    def settled(self) -> bool:
        """Whether nothing is left to chance: the likeliest token is taken, or a search is made."""
        return self.temperature == 0 or self.beam_width is not None

    @property
    def steered(self) -> bool:
        """Whether each token has to be seen before the next can be drawn."""
        return self.beam_width is not None or self.structured_outputs is not None

    @property
    def penalises(self) -> bool:
        """Whether a token's logit depends on what has been drawn before."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )

    @property
    def watched(self) -> bool:
        """Whether a completion's tokens have to be looked at to know whether it has ended."""
        return bool(self.stop) or self.repetition_detection is not None

    @property
    def least_room(self) -> int:
        """Tokens of the context that a prompt has to leave free."""
        return max(1, self.min_tokens, self.max_tokens)

    @property
    def told_room(self) -> str:
        """The same as messages call it."""
        to_end = self.max_tokens == TO_CONTEXT_END
        return f"{'a completion of ' if to_end else 'max_tokens='}{self.least_room}"

    def within(self, room: int) -> "SamplingParams":
        """These parameters where the context has ``room``, at least the least, for a completion."""
        to_end = self.max_tokens == TO_CONTEXT_END
        return dataclasses.replace(self, max_tokens=room) if to_end else self

    def token_id_lists(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Each parameter that holds token ids, and these, to be checked against a vocabulary."""
        return (
            ("stop_token_ids", self.stop_token_ids),
            ("allowed_token_ids", self.allowed_token_ids or ()),
            ("logit_bias", tuple(token_id for token_id, _ in self.logit_bias)),
        )

    def override(self, values: Mapping[str, Any]) -> "SamplingParams":
        """These parameters with a row's own values in their place; null values change nothing.

        Raises:
          InvalidParameter: a value is out of bounds, or a name is unknown.
        """
        given = {ALIASES.get(name, name): v for name, v in values.items() if v is not None}
        if checks.plain(given.get("guided_json_object")) is False:  # in a row beside others
            del given["guided_json_object"]
        for name in [name for name in given if name in SHORTHANDS]:
            if "structured_outputs" in given:
                raise InvalidParameter(name, "must be the only constraint of its row")
            given["structured_outputs"] = structured(name, {SHORTHANDS[name]: given.pop(name)})
        for name in given:
            if name not in _CHECKS:
                raise InvalidParameter(name, "is no sampling parameter")
        return dataclasses.replace(self, **given) if given else self

    def result_settings(self) -> dict[str, Any]:
        """All values as JSON-ready types, for fingerprints and provenance."""
        return {
            k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()
        }


def _temperature(name: str, value: Any) -> float:
    value = checks.number(0, MAX_TEMPERATURE)(name, value)
    return value if value == 0 else max(value, MIN_TEMPERATURE)


def _max_tokens(name: str, value: Any) -> int:
    value = checks.integer(TO_CONTEXT_END, 2**31 - 1, optional=True)(name, value)
    if value == 0:
        raise InvalidParameter(name, f"must be at least 1, or {TO_CONTEXT_END}, got 0")
    return TO_CONTEXT_END if value is None else value


def _logprobs(name: str, value: Any) -> int | None:
    value = 1 if checks.plain(value) is True else value  # as vLLM has it
    return checks.integer(0, MAX_LOGPROBS, optional=True)(name, value)


_CHECKS: dict[str, checks.Check] = {
    "n": checks.integer(1, MAX_SAMPLES),
    "beam_width": checks.integer(1, MAX_BEAM_WIDTH, optional=True),
    "length_penalty": checks.number(-10, 10),
    "temperature": _temperature,
    "top_p": checks.number(0, 1, open_low=True),
    "top_k": checks.integer(-1),
    "min_p": checks.number(0, 1),
    "repetition_penalty": checks.number(1 / MAX_REPETITION_PENALTY, MAX_REPETITION_PENALTY),
    "presence_penalty": checks.number(-2, 2),
    "frequency_penalty": checks.number(-2, 2),
    "logit_bias": checks.biases(MAX_BIASES),
    "allowed_token_ids": checks.some_token_ids,
    "bad_words": checks.strings,
    "seed": checks.integer(-(2**63), 2**63 - 1, optional=True),
    "stop": checks.strings,
    "stop_token_ids": checks.token_ids,
    "include_stop_str_in_output": checks.boolean,
    "ignore_eos": checks.boolean,
    "max_tokens": _max_tokens,
    "min_tokens": checks.integer(0, 2**31 - 1),
    "logprobs": _logprobs,
    "prompt_logprobs": _logprobs,
    "repetition_detection": repetition,
    "structured_outputs": structured,
    "skip_special_tokens": checks.boolean,
}

_NOT_SEARCHED = (
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "stop",
    "min_tokens",
    "repetition_detection",
    "structured_outputs",
)
"""What changes which token is likeliest, or is found out too late for a search."""

PARAM_NAMES = tuple(_CHECKS)
"""All sampling parameters; an input column of one of these names sets it per row."""
