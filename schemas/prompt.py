"""The input contract: which column means what, which types it may have, which rows are good."""

import dataclasses
import decimal
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from schemas.columns import (
    Undecodable,
    claim,
    is_number,
    is_text,
    is_token_ids,
    list_item,
    listed,
    plain_type,
    values,
)
from schemas.error import ErrorCode, RowError, SetupError
from schemas.sampling import ALIASES, PARAM_NAMES, InvalidParameter, SamplingParams
from schemas.structured import SHORTHANDS

ROLES = ("prompt", "prompt_token_ids", "custom_id", *PARAM_NAMES, *ALIASES, *SHORTHANDS)
"""What a column can be; a column of such a name plays that role unless the user says otherwise."""

_KNOWN = "prompt, prompt_token_ids, custom_id or a sampling parameter"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roles:
    """Which input column plays which role; every other column passes through untouched.

    Attributes:
      prompt: column of prompts as text, or None.
      prompt_token_ids: column of prompts as token ids, or None.
      custom_id: column of the user's own row ids, or None.
      sampling: sampling parameter -> the column that sets it per row.
    """

    prompt: str | None = None
    prompt_token_ids: str | None = None
    custom_id: str | None = None
    sampling: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """Columns whose text becomes tokens."""
        return [] if self.prompt is None else [self.prompt]

    @property
    def token_ids(self) -> list[str]:
        """Columns of tokens."""
        return [] if self.prompt_token_ids is None else [self.prompt_token_ids]

    @property
    def consumed(self) -> list[str]:
        """Columns that come out as ``param_<name>``."""
        return list(self.sampling.values())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """A row that keeps the contract; exactly one of ``text`` and ``token_ids`` is given.

    Attributes:
      index: its place in the batch.
      text: the prompt as text.
      token_ids: the prompt as token ids, not yet checked against a vocabulary.
      params: the job's sampling parameters with the row's own in their place.
    """

    index: int
    text: str | None
    token_ids: list[int] | None
    params: SamplingParams


def resolve(schema: pa.Schema, columns: Mapping[str, str], where: str) -> Roles:
    """Finds each role's column: by the user's map, else by the role's own name.

    Args:
      schema: the schema of the whole input.
      columns: role -> column name; an empty name says that the input has no such role, so that a
        column of the role's name passes through.
      where: what messages call the input.

    Raises:
      SetupError: a column is missing, claimed twice, or of a type that its role cannot have.
    """
    claims = claim(schema, columns, ROLES, where, _KNOWN)
    roles = _assign({role: column for column, role in claims.items()})
    if roles.prompt is None and roles.prompt_token_ids is None:
        raise SetupError(
            f"{where} has no column 'prompt' or 'prompt_token_ids', only {listed(schema.names)}; "
            "name the one that holds the prompts: --columns prompt=NAME"
        )
    if roles.prompt is not None:
        _check_type("prompt", schema.field(roles.prompt))
    if roles.prompt_token_ids is not None:
        _check_type("prompt_token_ids", schema.field(roles.prompt_token_ids))
    for param, column in roles.sampling.items():
        _check_type(param, schema.field(column))
    return roles


def validate(
    rows: pa.Table, roles: Roles, defaults: SamplingParams
) -> tuple[list[PromptRow], dict[int, RowError]]:
    """Sorts rows into good ones and errors; one bad row never touches its neighbours.

    Only the columns that play a role become Python objects.

    Args:
      rows: part of an input whose schema ``resolve`` accepted.
      roles: what ``resolve`` returned.
      defaults: the job's sampling parameters.

    Returns:
      The good rows in order, and row index -> error for the others.
    """
    texts = values(rows, roles.prompt)
    ids = values(rows, roles.prompt_token_ids)
    overrides = {param: values(rows, column) for param, column in roles.sampling.items()}
    good: list[PromptRow] = []
    errors: dict[int, RowError] = {}
    for i in range(rows.num_rows):
        try:
            text, token_ids = _prompt(texts[i], ids[i], roles)
            params = defaults
            if overrides:
                params = _override(defaults, {p: v[i] for p, v in overrides.items()})
        except _RowFault as fault:
            errors[i] = fault.error
        except InvalidParameter as fault:
            errors[i] = by_column(fault.row_error(), roles, rows, i)
        else:
            good.append(PromptRow(index=i, text=text, token_ids=token_ids, params=params))
    return good, errors


def by_column(error: RowError, roles: Roles, rows: pa.Table, row: int) -> RowError:
    """The error with the name of the column that the user has, where one set the parameter.

    Args:
      error: its ``param`` may be a sampling parameter, which a column by another name can set.
      roles: what ``resolve`` returned.
      rows: part of the input.
      row: its place among these.
    """
    param = error.param
    if param is None:
        return error
    names = (param, *SHORTHANDS) if param == "structured_outputs" else (param,)
    columns = (roles.sampling[name] for name in names if name in roles.sampling)
    column = next((name for name in columns if rows.column(name)[row].is_valid), param)
    if column == param:
        return error
    message = error.message
    if message.startswith(f"{param} "):
        message = f"{column}{message.removeprefix(param)}"
    return dataclasses.replace(error, message=message, param=column)


class _RowFault(Exception):
    def __init__(self, code: ErrorCode, message: str, param: str | None) -> None:
        super().__init__(message)
        self.error = RowError(code, message, param)


def _assign(columns: dict[str, str]) -> Roles:
    own = {role: columns.pop(role, None) for role in ("prompt", "prompt_token_ids", "custom_id")}
    sampling: dict[str, str] = {}
    for role, column in columns.items():
        param = ALIASES.get(role, role)
        if param in sampling:
            raise SetupError(
                f"columns {sampling[param]!r} and {column!r} both set {param}; "
                f"let one pass through: --columns {role}="
            )
        sampling[param] = column
    return Roles(**own, sampling=sampling)


def _check_type(role: str, field: pa.Field) -> None:
    kind = plain_type(field.type)
    item = list_item(kind)
    if role == "prompt":
        ok, want = is_text(kind), "strings"
    elif role in ("prompt_token_ids", "stop_token_ids", "allowed_token_ids"):
        ok, want = is_token_ids(kind), "lists of integers"
    elif role in ("stop", "bad_words", "guided_choice"):
        ok = is_text(kind) or (item is not None and (is_text(item) or item == pa.null()))
        want = "strings or lists of strings"
    elif role == "logit_bias":
        ok = pa.types.is_map(kind) or pa.types.is_struct(kind) or is_text(kind)
        want = "maps from token ids to numbers, structs, or JSON objects as strings"
    elif role in ("guided_json", "guided_regex", "guided_grammar"):
        ok, want = is_text(kind), "strings"
    elif role == "guided_json_object":
        ok, want = pa.types.is_boolean(kind), "booleans"
    elif role in ("repetition_detection", "structured_outputs"):
        ok = pa.types.is_struct(kind) or is_text(kind)
        want = "structs, or JSON objects as strings"
    elif isinstance(getattr(SamplingParams(), role), bool):
        ok, want = pa.types.is_boolean(kind), "booleans"
    else:
        # Whole numbers arrive as floats from pandas and as decimals from SQL: values decide.
        ok, want = is_number(kind), "numbers"
    if not ok and kind != pa.null():
        remedy = "or name another: --columns prompt=NAME"
        if role not in ("prompt", "prompt_token_ids"):
            remedy = f"or let it pass through without effect: --columns {role}="
        raise SetupError(
            f"column {field.name!r} holds {field.type}, but {role} takes {want}; cast it, {remedy}"
        )


def _prompt(text: Any, ids: Any, roles: Roles) -> tuple[str | None, list[int] | None]:
    if text is not None and ids is not None:
        raise _RowFault(
            ErrorCode.PROMPT_AMBIGUOUS,
            f"both {roles.prompt} and {roles.prompt_token_ids} are given",
            roles.prompt,
        )
    if text is None and ids is None:
        names = [name for name in (roles.prompt, roles.prompt_token_ids) if name]
        missing = f"{names[0]} is null" if len(names) == 1 else f"{' and '.join(names)} are null"
        raise _RowFault(ErrorCode.PROMPT_MISSING, missing, names[0])
    if isinstance(text, Undecodable):
        raise _RowFault(ErrorCode.PROMPT_TYPE, f"{roles.prompt} {text}", roles.prompt)
    if ids is not None and None in ids:
        raise _RowFault(
            ErrorCode.PROMPT_TYPE,
            f"{roles.prompt_token_ids} holds a null at position {ids.index(None)}",
            roles.prompt_token_ids,
        )
    return text, ids


def _override(defaults: SamplingParams, given: dict[str, Any]) -> SamplingParams:
    for param, value in given.items():
        if isinstance(value, Undecodable):
            raise InvalidParameter(param, str(value))
        if isinstance(value, decimal.Decimal):
            given[param] = float(value)
    return defaults.override(given)
