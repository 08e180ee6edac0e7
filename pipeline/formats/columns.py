"""Records as Arrow columns whose types do not depend on which rows happen to come first."""

import contextlib
import dataclasses
import json
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from schemas.sampling import ALIASES, SamplingParams
from schemas.structured import SHORTHANDS

_TEXTS = ("stop", "until", "bad_words", "guided_choice")
"""Lists of strings, of which a single one may stand alone."""

_SCALARS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def _known() -> dict[str, pa.DataType]:
    """Types of the columns that play a role; a parameter of another kind is stored as JSON text."""
    hints = typing.get_type_hints(SamplingParams)
    kinds: dict[str, pa.DataType] = {}
    for field in dataclasses.fields(SamplingParams):
        arms = [arm for arm in typing.get_args(hints[field.name]) if arm is not type(None)]
        arm = hints[field.name] if hints[field.name] in _SCALARS else (arms or [None])[0]
        kinds[field.name] = _SCALARS.get(arm, pa.string())
    kinds |= {"stop": pa.list_(pa.string()), "bad_words": pa.list_(pa.string())}
    for name in ("stop_token_ids", "allowed_token_ids"):
        kinds[name] = pa.list_(pa.int64())
    kinds = {name: kind for name, kind in kinds.items() if name in hints}
    kinds |= {name: pa.string() for name in SHORTHANDS}
    kinds |= {"guided_choice": pa.list_(pa.string()), "guided_json_object": pa.bool_()}
    kinds |= {alias: kinds[name] for alias, name in ALIASES.items()}
    return {
        "prompt": pa.string(),
        "prompt_token_ids": pa.list_(pa.int32()),
        "custom_id": pa.string(),
        **kinds,
    }


KNOWN = _known()
"""Column name -> its type."""


class Kinds:
    """What kinds of values a file's other columns hold; it sees each record before any is kept."""

    def __init__(self) -> None:
        self._seen: dict[str, set[type]] = {}

    def add(self, values: Mapping[str, Any]) -> None:
        """Looks at one record."""
        for name, value in values.items():
            seen = self._seen.setdefault(name, set())
            if value is not None:
                seen.add(type(value))

    def schema(self) -> pa.Schema:
        """Columns in order of their first appearance."""
        return pa.schema(
            [(name, KNOWN.get(name) or _kind(seen)) for name, seen in self._seen.items()]
        )


def _kind(seen: set[type]) -> pa.DataType:
    """Whole numbers widen to floats; whatever else is mixed or nested is kept as JSON text."""
    if seen == {int, float}:
        return pa.float64()
    return _SCALARS.get(next(iter(seen)), pa.string()) if len(seen) == 1 else pa.string()


def convert(value: Any, name: str, kind: pa.DataType) -> Any:
    """The value as its column stores it.

    Raises:
      ValueError: it cannot be stored there; says why, and what to do.
    """
    if value is None:
        return None
    if isinstance(value, str) and kind != pa.string() and name in KNOWN:
        value = _parsed(value, name)
    if pa.types.is_list(kind):
        if isinstance(value, str) and name in _TEXTS:
            value = [value]
        item = int if pa.types.is_integer(kind.value_type) else str
        if not isinstance(value, list) or any(type(v) is not item for v in value):
            items = "integers" if item is int else "strings"
            raise ValueError(f"{name} is no list of {items}; write [ ] around them")
        if item is int and any(not -(2**31) <= v < 2**31 for v in value):
            raise ValueError(f"{name} holds a number beyond 32 bits; give ids of the tokenizer")
        return value if item is int else [_encodable(v, name) for v in value]
    if kind == pa.string():
        if name in ("prompt", "custom_id") and not isinstance(value, str | int):
            raise ValueError(f"{name} is no string; put it in quotes")
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return _encodable(text, name)
    if pa.types.is_floating(kind) and type(value) in (int, float):
        with contextlib.suppress(OverflowError):
            return float(value)
    whole = type(value) is int and -(2**63) <= value < 2**63
    if (whole and pa.types.is_integer(kind)) or (type(value) is bool and kind == pa.bool_()):
        return value
    want = {pa.bool_(): "true or false", pa.int64(): "an integer", pa.float64(): "a number"}
    raise ValueError(f"{name} is {value!r:.40}; give {want[kind]}, or leave it out")


def _encodable(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{name} holds a lone surrogate, which is no character; leave that out"
        ) from None
    return text


def _parsed(text: str, name: str) -> Any:
    """A CSV field as the value it writes; text that writes none stays text."""
    if name in _TEXTS and not text.startswith("["):
        return text
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return text


def table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Converted rows as a table."""
    rows = list(rows)
    return pa.Table.from_arrays(
        [pa.array([row.get(field.name) for row in rows], field.type) for field in schema],
        schema=schema,
    )
