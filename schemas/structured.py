"""What a completion must look like, by vLLM's names."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from schemas.checks import InvalidParameter, boolean, parsed, plain, short, strings

KINDS = ("json", "regex", "choice", "grammar", "json_object")
"""The ways to say it; exactly one is given."""

SHORTHANDS: dict[str, str] = {f"guided_{kind}": kind for kind in KINDS}
"""vLLM's former names, each for one kind; as columns they go side by side."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """A constraint on a completion's text. Immutable and hashable; not yet compiled.

    Attributes:
      json: a JSON schema, as text.
      regex: a regular expression (Rust's syntax) that the whole text matches.
      choice: the text is one of these.
      grammar: a context-free grammar in Lark's or GBNF's notation.
      json_object: the text is any JSON object.
      disable_any_whitespace: JSON without optional white space.
      disable_additional_properties: JSON objects have the properties that the schema names only.
      whitespace_pattern: a regular expression for white space between JSON's tokens.
    """

    json: str | None = None
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    json_object: bool = False
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None


_FIELDS = tuple(field.name for field in dataclasses.fields(StructuredOutputs))


def structured(name: str, value: Any) -> StructuredOutputs | None:
    """Checks the parameter: None, a mapping, or a JSON object as text."""
    if value is None or isinstance(value, StructuredOutputs):
        return value
    if isinstance(value, str):
        value = parsed(name, value)
    if not isinstance(value, Mapping):
        raise InvalidParameter(name, f"must be an object, got {short(value)}")
    # A struct column has every field in every row, and so have the settings of a run.
    items = {key: plain(item) for key, item in value.items()}
    given = {key: item for key, item in items.items() if item is not None and item is not False}
    if unknown := [key for key in given if key not in _FIELDS]:
        raise InvalidParameter(name, f"has no {short(unknown[0])}, only {', '.join(_FIELDS)}")
    if len(kinds := [kind for kind in KINDS if kind in given]) != 1:
        told = " and ".join(kinds) or "none"
        raise InvalidParameter(name, f"must hold one of {', '.join(KINDS)}, got {told}")
    if "json" in given:
        given["json"] = _schema(name, given["json"], "disable_additional_properties" in given)
    if "choice" in given:
        given["choice"] = strings(name, given["choice"])
        if not given["choice"]:
            raise InvalidParameter(name, "must offer at least one choice")
    for key in ("regex", "grammar", "whitespace_pattern"):
        if key in given and not (isinstance(given[key], str) and given[key]):
            raise InvalidParameter(name, f"must hold {key} as text, got {short(given[key])}")
    for key in ("json_object", "disable_any_whitespace", "disable_additional_properties"):
        boolean(name, given.get(key, False))
    return StructuredOutputs(**given)


def _schema(name: str, schema: Any, closed: bool) -> str:
    """The schema as text, in one form."""
    if isinstance(schema, str):
        schema = parsed(name, schema)
    if not isinstance(schema, Mapping | bool):
        raise InvalidParameter(name, f"must hold a JSON schema, got {short(schema)}")
    try:
        return json.dumps(_closed(schema) if closed else schema, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise InvalidParameter(name, f"must hold a JSON schema, got {short(schema)}") from None


def _closed(schema: Any) -> Any:
    """The schema whose objects have no properties but those that it names."""
    if isinstance(schema, Mapping):
        inner = {key: _closed(value) for key, value in schema.items()}
        if "properties" in inner or "patternProperties" in inner:
            inner.setdefault("additionalProperties", False)
        return inner
    return [_closed(item) for item in schema] if isinstance(schema, list) else schema
