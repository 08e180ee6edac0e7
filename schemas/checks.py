"""Checks of one parameter each: the value in its canonical, hashable form, or why it is wrong."""

import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from schemas.error import ErrorCode, RowError

Check = Callable[[str, Any], Any]
"""Takes a parameter's name and a value, returns the value as it is kept."""


class InvalidParameter(ValueError):
    """A sampling parameter that is out of bounds or of the wrong type.

    Attributes:
      param: the parameter's name.
      reason: what is wrong with it, as the sentence goes on after the name.
    """

    def __init__(self, param: str, reason: str) -> None:
        super().__init__(f"{param} {reason}")
        self.param, self.reason = param, reason

    def row_error(self) -> RowError:
        """The same fault, as the error of a row."""
        return RowError(ErrorCode.INVALID_PARAMETER, str(self), self.param)


def integer(low: int, high: int | None = None, optional: bool = False) -> Check:
    """An integer within bounds; a float of integral value counts as one."""
    bounds = f"at least {low}" if high is None else f"between {low} and {high}"

    def check(name: str, value: Any) -> int | None:
        if value is None and optional:
            return None
        value = plain(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidParameter(name, f"must be an integer, got {short(value)}")
        if value < low or (high is not None and value > high):
            raise InvalidParameter(name, f"must be {bounds}, got {short(value)}")
        return value

    return check


def number(low: float, high: float = math.inf, open_low: bool = False) -> Check:
    """A finite number within bounds, as a float."""
    bounds = f"{'above' if open_low else 'at least'} {low:g}"
    bounds += "" if math.isinf(high) else f" and at most {high:g}"

    def check(name: str, value: Any) -> float:
        value = plain(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidParameter(name, f"must be a number, got {short(value)}")
        within = low <= value <= min(high, sys.float_info.max)  # false for nan, too
        if not within or (open_low and value == low):
            raise InvalidParameter(name, f"must be {bounds}, got {short(value)}")
        return float(value)

    return check


def boolean(name: str, value: Any) -> bool:
    """True or false, and nothing that merely counts as such."""
    value = plain(value)
    if not isinstance(value, bool):
        raise InvalidParameter(name, f"must be true or false, got {short(value)}")
    return value


def strings(name: str, value: Any) -> tuple[str, ...]:
    """Strings, none of them empty and none twice; a single one may stand alone."""
    values = (value,) if isinstance(value, str) else items(name, value)
    for item in values:
        if not isinstance(item, str):
            raise InvalidParameter(name, f"must hold strings, got {short(item)}")
        if not item:
            raise InvalidParameter(name, "must not hold an empty string")
    return tuple(dict.fromkeys(map(str, values)))


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """Token ids, none twice, not yet checked against a vocabulary."""
    check = integer(0, 2**31 - 1)
    return tuple(dict.fromkeys(check(name, item) for item in items(name, value)))


def some_token_ids(name: str, value: Any) -> tuple[int, ...] | None:
    """Token ids, at least one, or None."""
    if value is None:
        return None
    ids = token_ids(name, value)
    if not ids:
        raise InvalidParameter(name, "must hold at least one token id; leave it null to allow all")
    return ids


def biases(limit: int) -> Check:
    """Token id -> number as sorted pairs, at most ``limit``; numbers are cut to [-100, 100].

    They may come as a mapping, as pairs (Arrow's maps), or as a JSON object; a null number stands
    for a token without one, since a struct column has every field in every row.
    """
    token = integer(0, 2**31 - 1)

    def check(name: str, value: Any) -> tuple[tuple[int, float], ...]:
        if isinstance(value, str):
            value = parsed(name, value)
        pairs = value.items() if isinstance(value, Mapping) else items(name, value)
        kept: dict[int, float] = {}
        for pair in pairs:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise InvalidParameter(name, f"must map token ids to numbers, got {short(pair)}")
            key, bias = map(plain, pair)
            if isinstance(key, str) and re.fullmatch("[0-9]{1,10}", key):
                key = int(key)
            if bias is None:
                continue
            if isinstance(bias, bool) or not isinstance(bias, int | float) or bias != bias:
                raise InvalidParameter(name, f"must map to numbers, got {short(bias)}")
            kept[token(name, key)] = float(min(100, max(-100, bias)))
        if len(kept) > limit:
            raise InvalidParameter(name, f"must hold at most {limit} token ids, got {len(kept)}")
        return tuple(sorted(kept.items()))

    return check


def parsed(name: str, text: str) -> Any:
    """The value that JSON text stands for."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidParameter(name, f"must be JSON, got {short(text)}") from None


def items(name: str, value: Any) -> tuple[Any, ...]:
    """The items of a list; None is an empty one."""
    if value is None:
        return ()
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        raise InvalidParameter(name, f"must be a list, got {short(value)}")
    return tuple(value)


def plain(value: Any) -> Any:
    """The Python number that a scalar of NumPy holds; anything else as it is."""
    # By its looks, since the contracts have no need of NumPy otherwise.
    is_scalar = type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0
    return value.item() if is_scalar else value


def short(value: Any) -> str:
    """How messages show a value."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
