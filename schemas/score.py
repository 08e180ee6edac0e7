"""Rows to score: what they may hold, and what is added to them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from schemas.columns import (
    Undecodable,
    claim,
    is_text,
    is_token_ids,
    list_item,
    listed,
    plain_type,
    values,
)
from schemas.completion import LOGPROB, list_of
from schemas.error import ErrorCode, RowError, SetupError

COLUMNS: dict[str, pa.DataType] = {
    "row_uid": pa.string(),
    "continuation_index": pa.int32(),
    "status": pa.string(),
    "logprob": pa.float64(),
    "is_greedy": pa.bool_(),
    "token_ids": list_of(pa.int32()),
    "token_logprobs": list_of(pa.float32()),
    "logprobs": list_of(LOGPROB),
    "perplexity": pa.float64(),
    "text_bytes": pa.int64(),
    "byte_perplexity": pa.float64(),
    "context_tokens": pa.int32(),
    "continuation_tokens": pa.int32(),
    "cached_tokens": pa.int32(),
    "error_code": pa.string(),
    "error_message": pa.string(),
    "error_param": pa.string(),
}
"""The columns that a score adds to the input's own, in order. Types never depend on the data."""

ROLES = (
    "context",
    "context_token_ids",
    "continuation",
    "continuation_token_ids",
    "continuations",
    "document",
    "document_token_ids",
    "custom_id",
)
"""What a column can be; a column of such a name plays that role unless the user says otherwise."""

Text = str | list[int]
"""A text, or its tokens, not yet checked against a vocabulary."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roles:
    """Which input column plays which role; every other column passes through untouched.

    There are continuations or documents, never both.

    Attributes:
      context: column of contexts as text, or None.
      context_token_ids: column of contexts as token ids, or None.
      continuation: column of what is to be scored after them, as text, or None.
      continuation_token_ids: the same as token ids, or None.
      continuations: column of lists of such, as text or as token ids, or None.
      document: column of whole texts to be scored, or None.
      document_token_ids: the same as token ids, or None.
      custom_id: column of the user's own row ids, or None.
      listed_ids: whether ``continuations`` holds token ids.
    """

    context: str | None = None
    context_token_ids: str | None = None
    continuation: str | None = None
    continuation_token_ids: str | None = None
    continuations: str | None = None
    document: str | None = None
    document_token_ids: str | None = None
    custom_id: str | None = None
    listed_ids: bool = False

    @property
    def texts(self) -> list[str]:
        """Columns whose text becomes tokens."""
        own = [self.context, self.continuation, self.document]
        own += [] if self.listed_ids else [self.continuations]
        return [column for column in own if column is not None]

    @property
    def token_ids(self) -> list[str]:
        """Columns of tokens."""
        own = [self.context_token_ids, self.continuation_token_ids, self.document_token_ids]
        own += [self.continuations] if self.listed_ids else []
        return [column for column in own if column is not None]

    @property
    def consumed(self) -> list[str]:
        """No column sets a parameter."""
        return []


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """A row that keeps the contract.

    Attributes:
      index: its place in the batch.
      context: what its continuations follow; None for the beginning of a text.
      continuations: what is to be scored, of one kind with the context; one entry for a document.
      is_document: whether it may be longer than the model's context.
    """

    index: int
    context: Text | None
    continuations: tuple[Text, ...]
    is_document: bool


def resolve(schema: pa.Schema, columns: Mapping[str, str], where: str) -> Roles:
    """Finds each role's column: by the user's map, else by the role's own name.

    Args:
      schema: the schema of the whole input.
      columns: role -> column name; see ``columns.claim``.
      where: what messages call the input.

    Raises:
      SetupError: a column is missing, claimed twice, or of a type that its role cannot have.
    """
    claims = claim(schema, columns, ROLES, where, ", ".join(ROLES))
    own = {role: column for column, role in claims.items()}
    scored = [own[r] for r in ROLES[2:5] if r in own]
    documents = [own[r] for r in ROLES[5:7] if r in own]
    if not scored and not documents:
        raise SetupError(
            f"{where} has no column 'continuation', 'continuation_token_ids', 'continuations' or "
            f"'document', only {listed(schema.names)}; name the one that is to be scored: "
            "--columns continuation=NAME"
        )
    if scored and documents:
        raise SetupError(
            f"{where} has continuations in {scored[0]!r} and documents in {documents[0]!r}; score "
            f"them apart, and let one pass through: --columns {claims[documents[0]]}="
        )
    if documents and ("context" in own or "context_token_ids" in own):
        context = own.get("context") or own["context_token_ids"]
        raise SetupError(
            f"a document has no context, but {where} has one in {context!r}; let it pass "
            f"through: --columns {claims[context]}="
        )
    if "continuations" in own and len(scored) > 1:
        other = next(column for column in scored if column != own["continuations"])
        raise SetupError(
            f"columns {own['continuations']!r} and {other!r} of {where} both hold what is to be "
            f"scored; let one pass through: --columns {claims[other]}="
        )
    for column, role in claims.items():
        _check_type(role, schema.field(column))
    listed_ids = False
    if "continuations" in own:
        item = list_item(schema.field(own["continuations"]).type)
        listed_ids = item is not None and is_token_ids(item)
    return Roles(**own, listed_ids=listed_ids)


def validate(rows: pa.Table, roles: Roles) -> tuple[list[ScoreRow], dict[int, RowError]]:
    """Sorts rows into good ones and errors; one bad row never touches its neighbours.

    Args:
      rows: part of an input whose schema ``resolve`` accepted.
      roles: what ``resolve`` returned.

    Returns:
      The good rows in order, and row index -> error for the others.
    """
    columns = {role: values(rows, getattr(roles, role)) for role in ROLES if role != "custom_id"}
    good: list[ScoreRow] = []
    errors: dict[int, RowError] = {}
    for i in range(rows.num_rows):
        try:
            good.append(_row(i, {role: column[i] for role, column in columns.items()}, roles))
        except _RowFault as fault:
            errors[i] = fault.error
    return good, errors


class _RowFault(Exception):
    def __init__(self, code: ErrorCode, message: str, param: str | None) -> None:
        super().__init__(message)
        self.error = RowError(code, message, param)


def _row(index: int, given: Mapping[str, Any], roles: Roles) -> ScoreRow:
    if roles.document or roles.document_token_ids:
        document = _one("document", given, roles)
        if document is None:
            raise _missing(("document", "document_token_ids"), roles)
        return ScoreRow(index=index, context=None, continuations=(document,), is_document=True)
    context = _one("context", given, roles)
    if roles.continuations is None:
        continuation = _one("continuation", given, roles)
        if continuation is None:
            raise _missing(("continuation", "continuation_token_ids"), roles)
        continuations: tuple[Text, ...] = (continuation,)
    else:
        continuations = _several(given["continuations"], roles.continuations, roles)
    if context is not None and any(type(c) is not type(context) for c in continuations):
        raise _RowFault(
            ErrorCode.PROMPT_TYPE,
            "the context is text and what follows it is token ids, or the other way round",
            roles.context or roles.context_token_ids,
        )
    return ScoreRow(index=index, context=context, continuations=continuations, is_document=False)


def _one(role: str, given: Mapping[str, Any], roles: Roles) -> Text | None:
    """A row's text or token ids in a role, whichever is there."""
    text, ids = given[role], given[f"{role}_token_ids"]
    column, ids_column = getattr(roles, role), getattr(roles, f"{role}_token_ids")
    if text is not None and ids is not None:
        raise _RowFault(
            ErrorCode.PROMPT_AMBIGUOUS, f"both {column} and {ids_column} are given", column
        )
    if ids is not None:
        return _checked(ids, ids_column)
    return None if text is None else _checked(text, column)


def _several(given: Any, column: str, roles: Roles) -> tuple[Text, ...]:
    if given is None:
        raise _missing(("continuations",), roles)
    if isinstance(given, Undecodable):
        raise _RowFault(ErrorCode.PROMPT_TYPE, f"{column} {given}", column)
    if not given:
        raise _RowFault(ErrorCode.CONTINUATION_EMPTY, f"{column} is an empty list", column)
    if None in given:
        raise _RowFault(
            ErrorCode.PROMPT_TYPE, f"{column} holds a null at {given.index(None)}", column
        )
    return tuple(_checked(entry, column) for entry in given)


def _checked(value: Any, column: str) -> Text:
    if isinstance(value, bytes):  # a string inside a list
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise _RowFault(ErrorCode.PROMPT_TYPE, f"{column} is not valid UTF-8", column) from None
    if isinstance(value, Undecodable):
        raise _RowFault(ErrorCode.PROMPT_TYPE, f"{column} {value}", column)
    if not isinstance(value, str) and None in value:
        raise _RowFault(
            ErrorCode.PROMPT_TYPE, f"{column} holds a null at {value.index(None)}", column
        )
    return value


def _missing(which: Sequence[str], roles: Roles) -> _RowFault:
    names = [name for role in which if (name := getattr(roles, role)) is not None]
    message = f"{names[0]} is null" if len(names) == 1 else f"{' and '.join(names)} are null"
    return _RowFault(ErrorCode.PROMPT_MISSING, message, names[0])


def _check_type(role: str, field: pa.Field) -> None:
    kind = plain_type(field.type)
    if role == "custom_id" or kind == pa.null():
        return
    if role == "continuations":
        item = list_item(kind)
        ok = item is not None and (is_text(item) or is_token_ids(item) or item == pa.null())
        want = "lists of strings, or of lists of integers"
    elif role.endswith("_token_ids"):
        ok, want = is_token_ids(kind), "lists of integers"
    else:
        ok, want = is_text(kind), "strings"
    if not ok:
        raise SetupError(
            f"column {field.name!r} holds {field.type}, but {role} takes {want}; cast it, or name "
            f"another: --columns {role}=NAME"
        )
