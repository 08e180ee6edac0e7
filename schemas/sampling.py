"""Sampling parameters by vLLM's names, meaning and bounds; for a job, or for one row."""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from schemas.error import ErrorCode, RowError

MAX_LOGPROBS = 20
"""Most top log-probabilities a token may ask for (vLLM's default bound)."""

ALIASES: dict[str, str] = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "until": "stop",
    "sampling_seed": "seed",
}
"""Names that users bring from other tools, and what they mean here."""


class InvalidParameter(ValueError):
    """A sampling parameter that is out of bounds or of the wrong type.

    Attributes:
      param: the parameter's name.
    """

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param} {message}")
        self.param = param

    def row_error(self) -> RowError:
        """The same fault, as the error of a row."""
        return RowError(ErrorCode.INVALID_PARAMETER, str(self), self.param)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to continue a prompt. Immutable; every value has been checked.

    Attributes:
      n: completions of one prompt, each drawn on its own.
      temperature: divides the logits; 0 takes the most likely token (greedy).
      top_p: keep the smallest set of tokens whose probability reaches this, in (0, 1].
      top_k: keep the k most likely tokens; 0 or -1 keeps all.
      seed: replaces the row's address as the source of its randomness.
      stop: strings that end the completion; they may begin inside one token and end in another.
      stop_token_ids: token ids that end the completion.
      include_stop_str_in_output: keep the stop string at the end of the text.
      ignore_eos: go on past the end-of-sequence token.
      max_tokens: most tokens of a completion.
      min_tokens: no end by EOS, stop token or stop string before this many tokens.
      logprobs: per token, its log-probability and those of this many likeliest tokens.
      prompt_logprobs: the same for the prompt's tokens.
      skip_special_tokens: leave special tokens out of the text (never out of ``token_ids``).

    Raises:
      InvalidParameter: a value is out of bounds or of another type.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.min_tokens > self.max_tokens:
            raise InvalidParameter(
                "min_tokens",
                f"must not exceed max_tokens={self.max_tokens}, got {self.min_tokens}",
            )
        if self.temperature == 0 and self.n > 1:
            raise InvalidParameter("n", f"must be 1 when temperature is 0 (greedy), got {self.n}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken at every step."""
        return self.temperature == 0

    def override(self, values: Mapping[str, Any]) -> "SamplingParams":
        """These parameters with a row's own values in their place; null values change nothing.

        Raises:
          InvalidParameter: a value is out of bounds, or a name is unknown.
        """
        given = {ALIASES.get(name, name): v for name, v in values.items() if v is not None}
        for name in given:
            if name not in _CHECKS:
                raise InvalidParameter(name, "is no sampling parameter")
        return dataclasses.replace(self, **given) if given else self

    def result_settings(self) -> dict[str, Any]:
        """All values as JSON-ready types, for fingerprints and provenance."""
        return {
            k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()
        }


def _integer(
    low: int, high: int | None = None, optional: bool = False
) -> Callable[[str, Any], Any]:
    bounds = f"at least {low}" if high is None else f"between {low} and {high}"

    def check(name: str, value: Any) -> int | None:
        if value is None and optional:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidParameter(name, f"must be an integer, got {_short(value)}")
        if value < low or (high is not None and value > high):
            raise InvalidParameter(name, f"must be {bounds}, got {_short(value)}")
        return value

    return check


def _number(low: float, high: float, open_low: bool = False) -> Callable[[str, Any], float]:
    bounds = f"{'above' if open_low else 'at least'} {low:g}"
    bounds += "" if math.isinf(high) else f" and at most {high:g}"

    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidParameter(name, f"must be a number, got {_short(value)}")
        within = low <= value <= min(high, sys.float_info.max)  # false for nan, too
        if not within or (open_low and value == low):
            raise InvalidParameter(name, f"must be {bounds}, got {_short(value)}")
        return float(value)

    return check


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidParameter(name, f"must be true or false, got {_short(value)}")
    return value


def _strings(name: str, value: Any) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else _items(name, value)
    for item in values:
        if not isinstance(item, str):
            raise InvalidParameter(name, f"must hold strings, got {_short(item)}")
        if not item:
            raise InvalidParameter(name, "must not hold an empty string")
    return values


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    check = _integer(0, 2**31 - 1)
    return tuple(check(name, item) for item in _items(name, value))


def _items(name: str, value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        raise InvalidParameter(name, f"must be a list, got {_short(value)}")
    return tuple(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


_CHECKS = {
    "n": _integer(1, 4096),
    "temperature": _number(0, math.inf),
    "top_p": _number(0, 1, open_low=True),
    "top_k": _integer(-1),
    "seed": _integer(-(2**63), 2**63 - 1, optional=True),
    "stop": _strings,
    "stop_token_ids": _token_ids,
    "include_stop_str_in_output": _boolean,
    "ignore_eos": _boolean,
    "max_tokens": _integer(1, 2**31 - 1),
    "min_tokens": _integer(0, 2**31 - 1),
    "logprobs": _integer(0, MAX_LOGPROBS, optional=True),
    "prompt_logprobs": _integer(0, MAX_LOGPROBS, optional=True),
    "skip_special_tokens": _boolean,
}

PARAM_NAMES = tuple(_CHECKS)
"""All sampling parameters; an input column of one of these names sets it per row."""
