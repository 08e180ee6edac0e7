"""The one schema that all files' rows are read into, fixed before any is read."""

import dataclasses
from collections.abc import Callable, Sequence

import pyarrow as pa

from model.checkpoint import files
from pipeline.shards import Shard
from schemas.error import ErrorCode, RowError


def unify(
    shards: Sequence[Shard], fits: Callable[[pa.Schema], bool] = lambda schema: True
) -> tuple[pa.Schema | None, list[Shard]]:
    """The schema that every file's rows are read into: a column that a file lacks is null.

    Types widen without loss (int32 to int64, string to large_string); a dictionary column stays
    one if all files agree. What most files agree on is the measure: a file with two columns of one
    name, or with a type that cannot be merged with theirs, is left out and gets a fault.

    Args:
      shards: the files.
      fits: whether a schema would do for the job; one that does is no exception to one that does
        not, however many files have that.

    Returns:
      The schema, its columns in the order that the files bring them, or None if no file has one;
      and the files in their order.
    """
    groups: dict[pa.Schema, list[int]] = {}
    faults: dict[int, str] = {}
    for at, shard in enumerate(shards):
        if shard.metadata is None:
            continue
        schema = shard.metadata.schema.to_arrow_schema()
        doubled = [name for name in schema.names if schema.names.count(name) > 1]
        if doubled:
            faults[at] = f"two columns are named {doubled[0]!r}"
            continue
        plain = pa.schema([field.with_type(_unviewed(field.type)) for field in schema])
        groups.setdefault(plain, []).append(at)
    merged, misfits = _merge(sorted(groups, key=lambda s: (not fits(s), -len(groups[s]))))
    for schema, why in misfits.items():
        for at in groups[schema]:
            faults[at] = why
    marked = [_marked(shard, faults.get(at)) for at, shard in enumerate(shards)]
    if merged is None:
        return None, marked
    order = dict.fromkeys(
        name for schema in groups if schema not in misfits for name in schema.names
    )
    return pa.schema([merged.field(name) for name in order]), marked


def _marked(shard: Shard, fault: str | None) -> Shard:
    if fault is None:
        return shard
    message = f"{files.redact(shard.file.url)}: {fault}"
    return dataclasses.replace(shard, fault=RowError(ErrorCode.INPUT_SCHEMA, message))


def _merge(schemas: Sequence[pa.Schema]) -> tuple[pa.Schema | None, dict[pa.Schema, str]]:
    """The union of the schemas, the first the measure, and those that do not fit, with why."""
    if not schemas:
        return None, {}
    try:
        return pa.unify_schemas(schemas, promote_options="permissive"), {}
    except pa.ArrowException:
        pass
    merged: pa.Schema | None = None
    misfits: dict[pa.Schema, str] = {}
    for schema in schemas:
        plain = pa.schema([field.with_type(_decoded(field.type)) for field in schema])
        if merged is None:
            merged = plain
        elif clash := _clash(merged, plain):
            misfits[schema] = clash
        else:
            merged = pa.unify_schemas([merged, plain], promote_options="permissive")
    return merged, misfits


def _clash(merged: pa.Schema, schema: pa.Schema) -> str:
    """Which column cannot be merged; empty if all can."""
    for field in schema:
        at = merged.get_field_index(field.name)
        if at >= 0 and not _mergeable(merged.field(at).type, field.type):
            other = merged.field(at).type
            return f"column {field.name!r} is {field.type}, but {other} in the other files"
    return ""


def _mergeable(one: pa.DataType, other: pa.DataType) -> bool:
    try:
        pa.unify_schemas(
            [pa.schema([("x", one)]), pa.schema([("x", other)])], promote_options="permissive"
        )
    except pa.ArrowException:
        return False
    return True


def _decoded(kind: pa.DataType) -> pa.DataType:
    return _unviewed(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _unviewed(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind
