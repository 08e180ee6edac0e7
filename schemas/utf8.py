"""Strings whose bytes are no UTF-8, made readable, wherever in a column they stand.

Parquet readers such as DuckDB refuse a whole file for one such value, so a bad row would harm its
neighbours after all.
"""

import pyarrow as pa


def readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as it is if its strings are UTF-8, else with U+FFFD where bytes are none."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return pa.chunked_array([_repaired(chunk) for chunk in column.chunks], column.type)
    return column


def _repaired(array: pa.Array) -> pa.Array:
    kind, null = array.type, array.is_null()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = array.cast(pa.large_binary()).to_pylist()
        texts = [None if value is None else value.decode(errors="replace") for value in values]
        return pa.array(texts, kind)
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(array.indices, _repaired(array.dictionary))
    if array.offset:
        array = array.take(pa.array(range(len(array)), pa.int64()))
    if pa.types.is_struct(kind):
        children = [_repaired(array.field(i)) for i in range(kind.num_fields)]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=null)
    if pa.types.is_map(kind):
        keys, items = _repaired(array.keys), _repaired(array.items)
        return pa.MapArray.from_arrays(array.offsets, keys, items, kind, mask=null)
    if pa.types.is_list(kind):
        items = _repaired(array.values)
        return pa.ListArray.from_arrays(array.offsets, items, kind, mask=null)
    if pa.types.is_large_list(kind):
        items = _repaired(array.values)
        return pa.LargeListArray.from_arrays(array.offsets, items, kind, mask=null)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(_repaired(array.values), type=kind, mask=null)
    return array
