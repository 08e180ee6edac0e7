"""Input columns: who claims which, what types they have, and their values as Python objects."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import pyarrow as pa

from schemas.error import SetupError


class Roles(Protocol):
    """What a job needs to know of its input's columns, whatever it does with them."""

    @property
    def custom_id(self) -> str | None:
        """Column of the user's own row ids, or None."""

    @property
    def texts(self) -> list[str]:
        """Columns whose text becomes tokens."""

    @property
    def token_ids(self) -> list[str]:
        """Columns of tokens."""

    @property
    def consumed(self) -> list[str]:
        """Columns that come out as ``param_<name>``, since they set a parameter."""


class Undecodable(str):
    """Stands where a value was that Python has no object for, such as bad UTF-8; says why."""


def claim(
    schema: pa.Schema,
    columns: Mapping[str, str],
    roles: Collection[str],
    where: str,
    known: str,
) -> dict[str, str]:
    """The role of each column that has one: by the user's map, else by the role's own name.

    Args:
      schema: the schema of the whole input.
      columns: role -> column name; an empty name says that the input has no such role, so that a
        column of the role's name passes through.
      roles: all that there are.
      where: what messages call the input.
      known: what they call the roles.

    Returns:
      Column -> role.

    Raises:
      SetupError: a column is missing, or claimed twice.
    """
    claims: dict[str, str] = {}
    for role, column in columns.items():
        if role not in roles:
            raise SetupError(f"--columns {role}={column}: {role!r} is no role; a role is {known}")
        if column and column not in schema.names:
            raise SetupError(
                f"--columns {role}={column}: {where} has no column {column!r}, "
                f"only {listed(schema.names)}; name one of these"
            )
        if column in claims:
            raise SetupError(
                f"--columns maps both {claims[column]} and {role} to column {column!r}; "
                "a column has one role"
            )
        if column:
            claims[column] = role
    for role in roles:
        if role in schema.names and role not in columns:
            claims.setdefault(role, role)
    return claims


def values(rows: pa.Table | pa.RecordBatch, column: str | None) -> list[Any]:
    """A column as Python objects, text as ``str``; nothing in it can raise."""
    if column is None:
        return [None] * rows.num_rows
    array = rows.column(column)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if not _is_binary(array.type):
        try:
            return array.to_pylist()
        except Exception:  # each value for itself, then
            pass
    return [_value(scalar) for scalar in array]


def row_of(batch: pa.RecordBatch, place: int) -> dict[str, Any]:
    """One row by columns, its values as ``values`` gives them."""
    one = batch.slice(place, 1)
    return {name: values(one, name)[0] for name in one.schema.names}


def _value(scalar: pa.Scalar) -> Any:
    try:
        value = scalar.as_py()
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        return Undecodable(f"is not valid UTF-8 (byte 0x{byte:02x} at {error.start})")
    except Exception as error:  # dates past the year 9999, time zones that nobody knows
        reason = " ".join(str(error).split())[:100]
        return Undecodable(f"cannot be read as {scalar.type} ({reason or type(error).__name__})")


def is_text(kind: pa.DataType) -> bool:
    """Whether values are strings."""
    # Some writers leave the UTF-8 mark off their strings, so bytes are taken for text as well.
    kind = plain_type(kind)
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in text) or _is_binary(kind)


def is_number(kind: pa.DataType) -> bool:
    """Whether values are numbers of any kind."""
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return any(test(kind) for test in numbers)


def is_token_ids(kind: pa.DataType) -> bool:
    """Whether values are lists of integers, or lists that are always empty."""
    item = list_item(kind)
    return item is not None and (pa.types.is_integer(item) or item == pa.null())


def list_item(kind: pa.DataType) -> pa.DataType | None:
    """The type of a list's items; None for what is no list."""
    kind = plain_type(kind)
    lists = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return kind.value_type if any(test(kind) for test in lists) else None


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values behind a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def listed(names: list[str]) -> str:
    """Columns' names in a message."""
    shown = ", ".join(repr(name)[:60] for name in names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown or "none"


def _is_binary(kind: pa.DataType) -> bool:
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in binary)
