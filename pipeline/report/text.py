"""Values of any column as text for a person."""

import json
from typing import Any


def text_of(value: Any, most: int | None = None) -> str:
    """A value as text: token ids as numbers, what holds other values as JSON; it never raises.

    Args:
      value: of a column, as Arrow gives it to Python.
      most: items of a list that are looked at; None for all.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list | tuple):
        value = value[:most]
        if all(type(item) is int for item in value):
            return " ".join(map(str, value))
    if value is None or isinstance(value, bool | list | tuple | dict):
        try:
            return json.dumps(value, ensure_ascii=False, default=text_of)
        except (TypeError, ValueError, RecursionError):  # keys that JSON cannot have
            return repr(value)
    return str(value)
