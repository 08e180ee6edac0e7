"""Released tensors are pickles: what is read of them, and what broken ones give."""

import io
import pathlib
import pickle
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.checkpoint.pickle_read import locate_arrays
from schemas.error import SetupError
from tests.model.pickles import (
    BFLOAT16,
    FLOAT32,
    INT8,
    QUANTIZED,
    array,
    array_with,
    locate,
    named,
    text,
)


def quantized(cls, weight=INT8, scales=BFLOAT16):
    made = cls()
    made.weight, made.scales = weight, scales
    return made


# What NumPy writes is read.


@pytest.mark.parametrize("numpy_version", [1, 2])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "written",
    [INT8, FLOAT32, BFLOAT16, np.asfortranarray(INT8), FLOAT32.T, FLOAT32[:, ::2], FLOAT32[0]],
    ids=["int8", "float32", "bfloat16", "fortran", "transposed", "strided", "vector"],
)
def test_arrays_of_all_protocols_and_numpy_versions(written, protocol, numpy_version):
    data = pickle.dumps(written, protocol)
    if numpy_version == 1:
        for module in (b"multiarray", b"numeric"):
            new, old = b"numpy._core." + module, b"numpy.core." + module
            data = data.replace(struct.pack("B", len(new)) + new, struct.pack("B", len(old)) + old)
            data = data.replace(new, old)
    found = locate(data)
    assert found.scales is None
    np.testing.assert_array_equal(array(data, found.values), written)
    assert found.values.dtype == written.dtype


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_quantized_weights_of_all_protocols(quantized_class, protocol):
    data = pickle.dumps(quantized(quantized_class), protocol)
    found = locate(data)
    np.testing.assert_array_equal(array(data, found.values), INT8)
    np.testing.assert_array_equal(array(data, found.scales), BFLOAT16)
    elsewhere = data.replace(b"c__main__\n", b"cmodel\n").replace(b"\x08__main__", b"\x05model")
    assert str(locate(elsewhere)) == "int8[2, 3, 4] with scales bfloat16[4, 6]"


def test_only_windows_beside_the_payloads_are_read():
    written = np.zeros(1 << 22, np.uint8)
    data = pickle.dumps(written, 4)
    asked = []

    def read(start, stop):
        asked.append(stop - start)
        return data[start:stop]

    assert locate_arrays(read, len(data), "x").values.shape == (1 << 22,)
    assert len(asked) <= 3
    assert sum(asked) <= 3 * 4096


def test_rows_are_byte_ranges():
    data = pickle.dumps(INT8, 4)
    start, stop = locate(data).values.rows(3 + 1, 3 + 3)
    assert data[start:stop] == INT8[1, 1:3].tobytes()
    for written, protocol, kind in ((INT8.T, 4, "in Fortran order"), (INT8, 2, "as text")):
        with pytest.raises(SetupError, match=kind):
            locate(pickle.dumps(written, protocol)).values.rows(0, 1)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (FLOAT32.astype(">f4"), "byte order '>'"),
        (np.zeros((3, 4, 5), np.int8).transpose(1, 0, 2), "order 'K'"),
        (np.zeros(3, "S5"), "dtype 'S5'"),
        (np.zeros(3, np.dtype([("a", "i4")])), "dtype 'V4'"),
        (np.float32(1), "multiarray.scalar"),
        (1, "something else than one tensor"),
        ([INT8], "EMPTY_LIST"),
        ({"weight": INT8}, "something else than one tensor"),
        ((INT8, INT8), "something else than one tensor"),
    ],
)
def test_what_is_no_tensor_is_refused_by_name(written, reason):
    with pytest.raises(SetupError, match=reason):
        locate(pickle.dumps(written, 5))


# What is broken is told in a sentence, at once, and takes no memory.


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "ends at byte 0"),
        (b".", "something else"),
        (b"\xff", "no pickle opcode"),
        (b"<html>", "no pickle opcode|opcode"),
        (b"t.", "make no sense"),
        (b"h\x05.", "make no sense"),
        (b"(K\x01\x86.", "make no sense"),
        (b"N" * 10_000, "more than 400 opcodes"),
        (b"c" + b"x" * 10_000, "more than 256 bytes"),
        (b"X\xff\xff\xff\x7fabc", "2147483647 that byte 5 announces"),
        (b"\x8e" + b"\xff" * 8, "announces"),
        (array_with() + b"N", "1 bytes follow its end"),
        (array_with(shape=b"J\xff\xff\xff\x7f" * 3 + b"\x87"), "takes .* bytes, it stores 24"),
        (array_with(shape=b"(" + b"J\xff\xff\xff\x7f" * 9 + b"t"), "no proper shape"),
        (array_with(shape=b"J\xff\xff\xff\xff\x85"), "no proper shape"),
        (array_with(shape=b"K\x18"), "no proper shape"),
        (array_with(shape=b"\x88\x85"), "no proper shape"),
        (array_with(shape=b"K\x17\x85"), r"int8\[23\] takes 23 bytes, it stores 24"),
        (array_with(payload=b"N"), "state of a Array"),
    ],
)
def test_malformed_files(data, reason):
    start = time.monotonic()
    with pytest.raises(SetupError, match=reason):
        locate(data)
    assert time.monotonic() - start < 1


def test_nested_tuples_that_share_their_parts_take_no_time():
    bomb = text("x") + b"\x94"
    for depth in range(60):
        bomb += b"h" + bytes([depth]) + b"h" + bytes([depth]) + b"\x87\x94"
    ends = [
        b".",
        b"R.",
        b"b.",
        b"\x93.",
        b"\x81.",
        b"}(" + b"h\x3cNu.",
        named("numpy", "dtype") + b"h\x3c\x85R.",
        named("numpy", "dtype") + b"h\x3cR.",
        QUANTIZED + b")\x81h\x3cb.",
        QUANTIZED + b")\x81}(h\x3cNub.",
    ]
    start = time.monotonic()
    for end in [*ends, array_with(shape=b"h\x3c"), array_with(dtype=b"h\x3c")]:
        with pytest.raises(SetupError):
            locate(bomb + end)
    assert time.monotonic() - start < 1


def test_a_file_cut_short_anywhere_is_refused(tiny):
    data = pathlib.Path(tiny, "ckpt-0", "tensor00001_000").read_bytes()
    for stop in range(len(data)):
        with pytest.raises(SetupError):
            locate(data[:stop])


class _Checked(pickle.Unpickler):
    """Python's own unpickler for those names only that cannot run anything."""

    def find_class(self, module, name):
        if name == "QuantizedWeight8bit":
            return type(name, (), {})
        assert name in ("_reconstruct", "ndarray", "dtype", "bfloat16", "_frombuffer", "encode")
        return super().find_class(module, name)


def _originals():
    folder = pathlib.Path(__file__).parents[1] / "data" / "grok1-tiny" / "ckpt-0"
    written = [(folder / f"tensor{i:05d}_000").read_bytes() for i in (1, 5, 13)]
    return written + [pickle.dumps(INT8, protocol) for protocol in (2, 3, 5)]


@st.composite
def mutated(draw):
    data = bytearray(draw(st.sampled_from(_originals())))
    # Payloads may hold anything; the opcodes are at both ends and between.
    places = st.integers(0, len(data) - 1) | st.integers(0, min(300, len(data) - 1))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(places) % len(data)
        match draw(st.sampled_from(["set", "insert", "delete", "copy", "cut"])):
            case "set":
                data[at] = draw(st.integers(0, 255))
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del data[at : at + draw(st.integers(1, 8))]
            case "copy":
                other = draw(places) % len(data)
                data[at:at] = data[other : other + draw(st.integers(1, 32))]
            case "cut":
                del data[at:]
        data = data or bytearray(b".")
    return bytes(data)


@settings(max_examples=1500, deadline=1000)
@given(data=mutated() | st.binary(max_size=64))
def test_any_bytes_are_read_as_python_would_or_refused(data):
    try:
        found = locate(data)
    except SetupError:
        return
    for location in filter(None, (found.values, found.scales)):
        assert location.offset + location.length <= len(data)
    try:
        expected = _Checked(io.BytesIO(data)).load()
    except Exception:
        return  # such as a wrong frame length, which has no meaning here
    if found.scales is not None:
        np.testing.assert_array_equal(
            array(data, found.scales).view(np.uint8), expected.scales.view(np.uint8)
        )
        expected = expected.weight
    np.testing.assert_array_equal(
        np.ascontiguousarray(array(data, found.values)).view(np.uint8),
        np.ascontiguousarray(expected).view(np.uint8),
    )
