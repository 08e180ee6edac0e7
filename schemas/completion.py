"""The output contract: one versioned Arrow schema for good and bad rows, and how rows are made."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from schemas.columns import listed
from schemas.error import RowError, SetupError
from schemas.utf8 import readable

SCHEMA_VERSION = 1
"""Raised when a column that this project adds changes its name, type or meaning."""

SUCCEEDED, ERRORED = "succeeded", "errored"
"""The two values of ``status``."""


def list_of(item: pa.DataType) -> pa.DataType:
    """A list whose item is called as Parquet does: a part reads back as it was written."""
    return pa.list_(pa.field("element", item))


LOGPROB = pa.struct(
    [
        ("token_id", pa.int32()),
        ("logprob", pa.float32()),
        ("rank", pa.int32()),
        ("top_token_ids", list_of(pa.int32())),
        ("top_logprobs", list_of(pa.float32())),
    ]
)
"""Log-probabilities at one position: of its token, and of the likeliest ones beside it."""

COLUMNS: dict[str, pa.DataType] = {
    "row_uid": pa.string(),
    "sample_index": pa.int32(),
    "status": pa.string(),
    "text": pa.string(),
    "token_ids": list_of(pa.int32()),
    "finish_reason": pa.string(),
    "stop_reason": pa.string(),
    "cumulative_logprob": pa.float64(),
    "logprobs": list_of(LOGPROB),
    "prompt_logprobs": list_of(LOGPROB),
    "prompt_tokens": pa.int32(),
    "completion_tokens": pa.int32(),
    "cached_tokens": pa.int32(),
    "seed": pa.int64(),
    "error_code": pa.string(),
    "error_message": pa.string(),
    "error_param": pa.string(),
}
"""What a completion adds to the input's own columns, in order. Types never depend on the data."""


class Logprob(Protocol):
    """What an entry of ``logprobs`` must offer; the engine's ``TokenLogprob`` does."""

    token_id: int
    logprob: float
    rank: int
    top_token_ids: Sequence[int]
    top_logprobs: Sequence[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputSchema:
    """The schema of all parts of one output.

    Attributes:
      schema: the input's columns under their output names, then the added ones.
      inputs: how many of its columns are the input's.
    """

    schema: pa.Schema
    inputs: int


def output_schema(
    input_schema: pa.Schema,
    consumed: Collection[str],
    *,
    columns: Mapping[str, pa.DataType] = COLUMNS,
    prefix: str = "",
    rename: Mapping[str, str] | None = None,
) -> OutputSchema:
    """The output's schema for an input's, or the collision that forbids it.

    Columns that set a sampling parameter come out as ``param_<name>``, since the added ``seed`` and
    ``logprobs`` say what was drawn, not what was asked for.

    Args:
      input_schema: the schema of the whole input.
      consumed: its columns that set a sampling parameter.
      columns: the columns to add.
      prefix: put before the name of each added column.
      rename: input column -> its name in the output.

    Raises:
      SetupError: two columns would have one name, or a column to rename is not there.
    """
    rename = dict(rename or {})
    if missing := [name for name in rename if name not in input_schema.names]:
        raise SetupError(
            f"--rename {missing[0]}={rename[missing[0]]}: the input has no column {missing[0]!r}, "
            f"only {listed(input_schema.names)}; name one of these"
        )
    fields = []
    for field in input_schema:
        name = f"param_{field.name}" if field.name in consumed else field.name
        # All may be null: a file that lacks the column is filled up, a bad page is not readable.
        fields.append(field.with_name(rename.get(field.name, name)).with_nullable(True))
    taken: dict[str, str] = {prefix + name: "" for name in columns}
    # DuckDB, BigQuery and Spark do not tell `Text` from `text`.
    folded = {name.casefold(): name for name in taken}
    for source, field in zip(input_schema.names, fields, strict=True):
        key = field.name.casefold()
        if key in folded:
            other = taken[folded[key]]
            what = f"input column {other!r}" if other else f"the added column {folded[key]!r}"
            remedy = "" if other else ", or give the added columns a prefix: --output-prefix PREFIX"
            raise SetupError(
                f"input column {source!r} would have the name of {what} in the output; "
                f"rename it: --rename {source}=NAME{remedy}"
            )
        folded[key] = field.name
        taken[field.name] = source
    added = [pa.field(prefix + name, kind) for name, kind in columns.items()]
    return OutputSchema(schema=pa.schema(fields + added), inputs=len(fields))


class OutputRows:
    """Output rows in the making: at least one for each input row, in the order they are added."""

    def __init__(
        self, columns: Mapping[str, pa.DataType] = COLUMNS, *, called: bool = False
    ) -> None:
        """Args: the columns that are added to the input's own, and as in ``RowError.sentence``."""
        self._called = called
        self._sources: list[int] = []
        self._kinds = columns
        self._columns: dict[str, list[Any]] = {name: [] for name in columns}

    @property
    def sources(self) -> list[int]:
        """For each row, the place of the input row that it belongs to."""
        return self._sources

    def add_error(self, source: int, row_uid: str, error: RowError, **values: Any) -> None:
        """Adds the row of an input row that has no answer.

        Args:
          source: the input row's place in its batch.
          row_uid: the input row's id.
          error: why.
          values: what is known of it, by the columns' names.
        """
        self._add(
            source,
            row_uid=row_uid,
            status=ERRORED,
            error_code=str(error.code),
            error_message=error.sentence(self._called),
            error_param=error.param,
            **values,
        )

    def add(self, source: int, row_uid: str, **values: Any) -> None:
        """Adds one row of an input row's answer; ``values`` by the columns' names."""
        self._add(source, row_uid=row_uid, status=SUCCEEDED, **values)

    def _add(self, source: int, **values: Any) -> None:
        self._sources.append(source)
        for name, column in self._columns.items():
            column.append(values.pop(name, None))
        if values:
            raise TypeError(f"no such output columns: {sorted(values)}")

    def table(self, inputs: pa.Table, output: OutputSchema) -> pa.Table:
        """The rows with the input's columns beside them.

        Args:
          inputs: the batch that ``source`` counts in.
          output: the schema, whose first columns are those of ``inputs``.
        """
        rows = pa.array(self._sources, pa.int64())
        in_place = self._sources == list(range(inputs.num_rows))
        carried = inputs if in_place else inputs.take(rows)
        arrays = [readable(column) for column in carried.columns]
        for name, kind in self._kinds.items():
            values = self._columns[name]
            is_logprobs = kind == list_of(LOGPROB)
            arrays.append(_logprobs(values) if is_logprobs else pa.array(values, kind))
        return pa.Table.from_arrays(arrays, schema=output.schema)


def _logprobs(values: Sequence[Sequence[Logprob | None] | None]) -> pa.Array:
    """list<struct>: a null for rows that did not ask, a null entry where nothing stands before."""
    entries = [entry for row in values for entry in row or ()]
    given = [entry for entry in entries if entry is not None]
    tops = {
        "top_token_ids": _lists([entry.top_token_ids for entry in given], pa.int32()),
        "top_logprobs": _lists([entry.top_logprobs for entry in given], pa.float32()),
    }
    flat = {
        "token_id": pa.array([entry.token_id for entry in given], pa.int32()),
        "logprob": pa.array([entry.logprob for entry in given], pa.float32()),
        "rank": pa.array([entry.rank for entry in given], pa.int32()),
    }
    structs = pa.StructArray.from_arrays([*flat.values(), *tops.values()], fields=list(LOGPROB))
    if len(given) < len(entries):
        places = iter(range(len(given)))
        at = [None if entry is None else next(places) for entry in entries]
        structs = structs.take(pa.array(at, pa.int64()))
    return pa.ListArray.from_arrays(
        _offsets(values), structs, type=list_of(LOGPROB), mask=_nulls(values)
    )


def _lists(values: Iterable[Sequence[Any]], item: pa.DataType) -> pa.Array:
    values = list(values)
    flat = pa.array([value for row in values for value in row], item)
    return pa.ListArray.from_arrays(_offsets(values), flat, type=list_of(item))


def _offsets(values: Sequence[Sequence[Any] | None]) -> pa.Array:
    offsets = [0]
    for row in values:
        offsets.append(offsets[-1] + len(row or ()))
    return pa.array(offsets, pa.int32())


def _nulls(values: Sequence[Any | None]) -> pa.Array:
    return pa.array([row is None for row in values], pa.bool_())
