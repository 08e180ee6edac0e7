import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.utf8 import readable

ITEM = pa.string()


def as_bytes(kind: pa.DataType) -> pa.DataType:
    """The type with bytes in the place of strings."""
    if pa.types.is_list(kind):
        return pa.list_(as_bytes(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(as_bytes(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(as_bytes(kind.value_type), kind.list_size)
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(as_bytes(f.type)) for f in kind])
    return pa.binary() if pa.types.is_string(kind) else kind


def unchecked(values: list, kind: pa.DataType) -> pa.Array:
    """An array of a type of strings, made from bytes that may be none."""
    return pa.array(values, as_bytes(kind)).view(kind)


def decoded(value):
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list):
        return [decoded(v) for v in value]
    if isinstance(value, dict):
        return {k: decoded(v) for k, v in value.items()}
    return value


TEXT = st.none() | st.binary(max_size=6)
SHAPES = {
    "string": (ITEM, TEXT),
    "list": (pa.list_(ITEM), st.none() | st.lists(TEXT, max_size=3)),
    "large_list": (pa.large_list(ITEM), st.none() | st.lists(TEXT, max_size=3)),
    "pair": (pa.list_(ITEM, 2), st.none() | st.lists(TEXT, min_size=2, max_size=2)),
    "struct": (
        pa.struct([("a", ITEM), ("b", pa.list_(ITEM)), ("c", pa.int8())]),
        st.none()
        | st.fixed_dictionaries(
            {
                "a": TEXT,
                "b": st.none() | st.lists(TEXT, max_size=3),
                "c": st.none() | st.integers(0, 9),
            }
        ),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@given(data=st.data())
def test_every_string_becomes_utf8_and_nothing_else_changes(shape, data):
    kind, value = SHAPES[shape]
    values = data.draw(st.lists(value, max_size=6))
    skip = data.draw(st.integers(0, len(values)))
    column = pa.chunked_array([unchecked(values, kind).slice(skip)])
    result = readable(column)
    result.validate(full=True)
    assert result.type == kind
    assert result.to_pylist() == decoded(values[skip:])


def test_a_dictionary_stays_one():
    words = unchecked([b"good", b"b\xffd"], ITEM)
    column = pa.chunked_array([pa.DictionaryArray.from_arrays(pa.array([1, 0, None]), words)])
    result = readable(column)
    assert result.type == column.type
    assert result.to_pylist() == ["b\ufffdd", "good", None]


def test_a_map_keeps_its_keys():
    keys, items = unchecked([b"k\xff", b"l"], ITEM), unchecked([b"v", b"\xfe"], ITEM)
    column = pa.chunked_array([pa.MapArray.from_arrays([0, 1, 2], keys, items)])
    result = readable(column)
    assert result.type == column.type
    assert result.to_pylist() == [[("k\ufffd", "v")], [("l", "\ufffd")]]


def test_what_is_utf8_already_is_not_copied():
    column = pa.chunked_array([["a", "ü", None]])
    assert readable(column) is column
