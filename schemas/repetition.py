"""When a completion counts as caught in a loop, by vLLM's names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from schemas.checks import InvalidParameter, integer, parsed, short

MAX_PATTERN_SIZE = 2048
"""Longest pattern that is looked for; vLLM's default bound."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionDetection:
    """A completion ends once its last tokens are one pattern, several times over.

    Attributes:
      max_pattern_size: tokens of the longest pattern.
      min_pattern_size: tokens of the shortest.
      min_count: how often the pattern must stand there, at least 2.
    """

    max_pattern_size: int
    min_pattern_size: int
    min_count: int


_FIELDS = tuple(field.name for field in dataclasses.fields(RepetitionDetection))


def repetition(name: str, value: Any) -> RepetitionDetection | None:
    """Checks the parameter: None, a mapping, or a JSON object as text; pattern size 0 is None."""
    if isinstance(value, RepetitionDetection):
        return value
    if isinstance(value, str):
        value = parsed(name, value)
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidParameter(name, f"must be an object, got {short(value)}")
    # A struct column has every field in every row.
    given = {key: item for key, item in value.items() if item is not None}
    if unknown := [key for key in given if key not in _FIELDS]:
        raise InvalidParameter(name, f"has {', '.join(_FIELDS)}, but {short(unknown[0])} was given")
    largest = integer(0, MAX_PATTERN_SIZE)(name, given.get("max_pattern_size", 0))
    smallest = integer(0, largest)(name, given.get("min_pattern_size", 0))
    if largest == 0:
        return None
    if "min_count" not in given:
        raise InvalidParameter(name, "must say how often a pattern repeats: min_count")
    return RepetitionDetection(
        max_pattern_size=largest,
        min_pattern_size=max(smallest, 1),
        min_count=integer(2, 2**31 - 1)(name, given["min_count"]),
    )
