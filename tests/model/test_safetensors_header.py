import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint.safetensors_header import read_header, write_header
from schemas.error import SetupError

DTYPES = [np.dtype(name) for name in ("<f4", "<f2", "i1", "u1", "<i8", "?")]
DTYPES.append(np.dtype(ml_dtypes.bfloat16))


def located(file: bytes):
    asked = []

    def read(start, stop):
        asked.append((start, stop))
        assert 0 <= start <= stop <= len(file)
        return file[start:stop]

    return read_header(read, len(file), "a.safetensors")


def framed(header: object, data: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": [*shape], "data_offsets": [*offsets]}


_ARRAYS = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3).map(tuple)),
    max_size=4,
)


@given(arrays=_ARRAYS)
def test_what_is_written_is_read(arrays):
    given_ = [(name, dtype, shape) for name, (dtype, shape) in arrays.items()]
    header = write_header(given_)
    assert len(header) % 4096 == 0
    payloads = [bytes(int(np.prod(shape)) * dtype.itemsize) for _, dtype, shape in given_]
    found = located(header + b"".join(payloads))
    assert {name: (a.dtype, a.shape) for name, a in found.items()} == arrays


def test_the_formats_own_library_reads_what_is_written_and_writes_what_is_read(tmp_path):
    arrays = {
        "weight": np.arange(6, dtype=np.int8).reshape(2, 3),
        "scales": np.arange(4).astype(ml_dtypes.bfloat16),
        "norm": np.ones(5, np.float32),
    }
    header = write_header([(name, a.dtype, a.shape) for name, a in arrays.items()])
    path = tmp_path / "ours.safetensors"
    path.write_bytes(header + b"".join(a.tobytes() for a in arrays.values()))
    theirs = safetensors.numpy.load_file(path)
    for name, array in arrays.items():
        assert theirs[name].dtype == array.dtype
        np.testing.assert_array_equal(theirs[name], array)
    file = safetensors.numpy.save(arrays, {"format": "pt"})
    for name, at in located(file).items():
        data = file[at.offset : at.offset + at.length]
        np.testing.assert_array_equal(np.frombuffer(data, at.dtype).reshape(at.shape), arrays[name])


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"", "has only 0 bytes"),
        (b"\xff" * 8, "claims 18446744073709551615 bytes, more than"),
        (framed({"a": entry()}, 8)[:20], "has 20 bytes, fewer than"),
        (framed({"a": entry()}, 7), "has 76 bytes where its header describes 77"),
        (framed({"a": entry()}, 9), "has 78 bytes where its header describes 77"),
        (framed(b"{"), "is no JSON"),
        (framed(b"\xff\xfe"), "is no JSON"),
        (framed(b"[" * 100_000), "is no JSON"),
        (framed([1]), "is no JSON object"),
        (framed(b'{"a":1,"a":2}'), "gives a name twice"),
        (framed({"a": 1}), "'a' is not described by"),
        (framed({"a": {**entry(), "more": 1}}, 8), "'a' is not described by"),
        (framed({"a": entry(dtype="F8_E4M3")}, 8), "dtype 'F8_E4M3', which no weight"),
        (framed({"a": entry(dtype=["F32"])}, 8), "which no weight"),
        (framed({"a": entry(shape=(-2,))}, 8), "are no numbers"),
        (framed({"a": entry(shape=(2.0,))}, 8), "are no numbers"),
        (framed({"a": entry(shape=(True, 2))}, 8), "are no numbers"),
        (framed({"a": entry(offsets=(8, 0))}, 8), "make no sense"),
        (framed({"a": entry(offsets=(0, 8, 8))}, 8), "make no sense"),
        (framed({"a": entry(shape=(1,) * 9)}, 8), "make no sense"),
        (framed({"a": entry(shape=(3,))}, 8), "stores 8 bytes, not as many"),
        (framed({"a": entry(shape=(1 << 70,))}, 8), "stores 8 bytes, not as many"),
        (framed({"a": entry(offsets=(4, 12))}, 12), "'a' begins at byte"),
        (framed({"a": entry(), "b": entry(offsets=(4, 12))}, 12), "'b' begins at byte"),
    ],
)
def test_faults_are_told(file, reason):
    with pytest.raises(SetupError, match=reason) as caught:
        located(file)
    assert str(caught.value).startswith("a.safetensors is not readable as safetensors: ")
    assert str(caught.value).endswith("; get the file anew")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "I8", "X"]) | _JSON,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | _JSON,
        "data_offsets": st.lists(st.integers(-1, 20), min_size=2, max_size=2) | _JSON,
    }
)


@given(header=st.dictionaries(st.text(max_size=3), _ENTRY | _JSON) | _JSON, data=st.integers(0, 20))
def test_any_header_is_refused_or_stays_within_the_file(header, data):
    file = framed(header, data)
    try:
        found = located(file)
    except SetupError:
        return
    covered = sorted((a.offset, a.offset + a.length) for a in found.values())
    assert sum(stop - start for start, stop in covered) == data
    assert all(len(file) - data <= start <= stop <= len(file) for start, stop in covered)


@given(file=st.binary(max_size=200))
def test_any_bytes_are_refused_or_empty(file):
    try:
        assert located(file) == {}
    except SetupError as fault:
        assert "not readable" in str(fault)
