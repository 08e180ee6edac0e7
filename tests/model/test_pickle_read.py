import copyreg
import io
import os
import pathlib
import pickle
import struct
import time

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import __main__
from model.checkpoint.pickle_read import UnsafePickle, locate_arrays
from schemas.error import SetupError

INT8 = np.arange(24, dtype=np.int8).reshape(2, 3, 4) - 12
FLOAT32 = np.linspace(-2, 2, 24, dtype=np.float32).reshape(4, 6)
BFLOAT16 = FLOAT32.astype(ml_dtypes.bfloat16)


def locate(data: bytes):
    return locate_arrays(lambda start, stop: data[start:stop], len(data), "tensor00007_000")


def array(data: bytes, location) -> np.ndarray:
    raw = data[location.offset : location.offset + location.length]
    if location.latin1:
        raw = raw.decode().encode("latin-1")
    return np.frombuffer(raw, location.dtype).reshape(location.shape, order=location.order)


@pytest.fixture
def quantized_class(monkeypatch):
    """A stand-in for the class of the release's code, where its pickles look for it."""
    cls = type("QuantizedWeight8bit", (), {"__module__": "__main__"})
    monkeypatch.setattr(__main__, "QuantizedWeight8bit", cls, raising=False)
    return cls


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


# What would run is refused, and has not run.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def array_with(shape: bytes = b"K\x18\x85", dtype: bytes = b"", payload: bytes = b"") -> bytes:
    """A pickled int8[24] with a part replaced by other opcodes."""
    dtype = dtype or named("numpy", "dtype") + text("i1") + b"\x89\x88\x87R"
    return (
        named("numpy._core.multiarray", "_reconstruct")
        + named("numpy", "ndarray")
        + b"K\x00\x85C\x01b\x87R(K\x01"
        + (shape + dtype + b"\x89" + (payload or b"C\x18" + bytes(24)) + b"tb.")
    )


def evil_pickles(command: str) -> dict[str, tuple[bytes, str]]:
    """Pickles that run the command, each with what its refusal must name."""
    run = text(command) + b"\x85R"
    return {
        "GLOBAL": (b"cposix\nsystem\n" + run + b".", "posix.system"),
        "GLOBAL os": (b"cos\nsystem\n" + run + b".", "os.system"),
        "STACK_GLOBAL": (b"\x80\x04" + named("posix", "system") + run + b".", "posix.system"),
        "dotted": (
            b"\x80\x04" + named("numpy", "os.system") + run + b".",
            r"numpy.os.system",
        ),
        "dotted below an allowed name": (
            b"\x80\x04" + named("numpy.core.multiarray", "_reconstruct.__class__") + b".",
            "_reconstruct.__class__",
        ),
        "eval": (
            b"\x80\x04"
            + named("builtins", "eval")
            + text(f"__import__('os').system({command!r})")
            + b"\x85R.",
            "builtins.eval",
        ),
        "INST": (b"(" + text(command) + b"iposix\nsystem\n.", "posix.system"),
        "OBJ": (b"(cposix\nsystem\n" + text(command) + b"o.", "posix.system"),
        "NEWOBJ": (
            b"\x80\x04" + named("subprocess", "Popen") + text(command) + b"\x85\x81.",
            "subprocess.Popen",
        ),
        "NEWOBJ_EX": (
            b"\x80\x04" + named("subprocess", "Popen") + text(command) + b"\x85}\x92.",
            "subprocess.Popen",
        ),
        "memo": (
            b"\x80\x04"
            + text("system")
            + b"r\x00\x10\x00\x000"
            + text("posix")
            + b"j\x00\x10\x00\x00\x93"
            + run
            + b".",
            "POP",
        ),
        "memo without POP": (
            b"\x80\x04"
            + text("posix")
            + b"\x94"
            + text("system")
            + b"\x93q\x05"
            + text(command)
            + b"\x85R.",
            "posix.system",
        ),
        "__setstate__": (
            b"\x80\x04"
            + named("__main__", "QuantizedWeight8bit")
            + b")\x81}("
            + text("__setstate__")
            + named("posix", "system")
            + b"ub"
            + text(command)
            + b"b.",
            "posix.system",
        ),
        "EXT1": (b"\x80\x02\x82\xf0" + run + b".", "extension 240"),
        "EXT2": (b"\x80\x02\x83\xf0\x00" + run + b".", "extension 240"),
        "EXT4": (b"\x80\x02\x84\xf0\x00\x00\x00" + run + b".", "extension 240"),
        "object array": (pickle.dumps(np.array([Evil(command)], object), 4), "dtype 'O8'"),
        "in a shape": (array_with(shape=named("posix", "system") + run), "posix.system"),
        "as a dtype": (array_with(dtype=named("posix", "system") + run), "posix.system"),
        "as payload": (array_with(payload=named("posix", "system") + run), "posix.system"),
        "before the array": (
            named("posix", "system") + run + b"0" + array_with(),
            "posix.system",
        ),
        "Evil": (pickle.dumps(Evil(command)), "system"),
        "Evil scales": (
            pickle.dumps({"weight": INT8, "scales": Evil(command)}, 4),
            "posix.system",
        ),
    }


@pytest.mark.parametrize("case", evil_pickles(""))
def test_nothing_runs_and_the_refusal_names_it(case, tmp_path, quantized_class):
    marker = tmp_path / "ran"
    data, names = evil_pickles(f"touch {marker}")[case]
    with pytest.raises(UnsafePickle, match=names) as caught:
        locate(data)
    assert not marker.exists()
    assert isinstance(caught.value, SetupError)
    assert str(caught.value).startswith("tensor00007_000 asks to ")
    assert "nothing in it was run" in str(caught.value)


_HARMLESS_TO_PYTHON = {"NEWOBJ", "NEWOBJ_EX", "dotted", "dotted below an allowed name"}


@pytest.mark.parametrize("case", sorted(set(evil_pickles("")) - _HARMLESS_TO_PYTHON))
def test_these_pickles_are_really_hostile(case, tmp_path, quantized_class):
    """Else the test before would prove nothing."""
    marker = tmp_path / "ran"
    data, _ = evil_pickles(f"touch {marker}")[case]
    copyreg.add_extension("posix", "system", 240)
    try:
        pickle.loads(data)
    except (TypeError, ValueError, pickle.UnpicklingError):
        pass  # after the command has run
    finally:
        copyreg.remove_extension("posix", "system", 240)
        copyreg.clear_extension_cache()
    assert marker.exists()


QUANTIZED = named("__main__", "QuantizedWeight8bit")


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"Pevil\n.", "opcode PERSID"),
        (b"\x80\x04" + text("evil") + b"Q.", "opcode BINPERSID"),
        (QUANTIZED + b")R.", "call __main__.QuantizedWeight8bit"),
        (QUANTIZED + b"K\x01\x85\x81.", "make an object of __main__.QuantizedWeight8bit"),
        (QUANTIZED + b")}\x92.", "opcode NEWOBJ_EX"),
        (QUANTIZED + b")\x81}(" + text("__class__") + b"Nub.", "attribute '__class__'"),
        (QUANTIZED + b")\x81" + text("state") + b"b.", "state of a Quantized"),
        (QUANTIZED + b")\x81N}\x86b.", "state of a Quantized"),
        (b"(i__main__\nQuantizedWeight8bit\n.", "opcode INST"),
        (b"(" + QUANTIZED + b"o.", "opcode OBJ"),
        (named("numpy", "ndarray") + b"(K\x01ltR.", "opcode LIST"),
        (named("numpy", "ndarray") + b")\x81.", "make an object of numpy.ndarray"),
        (named("numpy", "ndarray") + b")R.", "call numpy.ndarray"),
        (named("numpy", "dtype") + b"K\x01\x85R.", "call numpy.dtype"),
        (named("numpy", "dtype") + text("O") + b"\x85R.", "dtype 'O'"),
        (named("numpy", "dtype") + text("9999999f8,f8") + b"\x85R.", "dtype '9999999f8,f8'"),
        (named("_codecs", "encode") + text("x") + text("rot13") + b"\x86R.", "call _codecs.encode"),
        (named("_codecs", "decode") + b".", "_codecs.decode"),
        (named("numpy.core.multiarray", "fromfile") + b".", "numpy.core.multiarray.fromfile"),
        (text("x") + b"\x85b.", "something|sense"),
        (b"N)b.", "state of a NoneType"),
        (named("numpy", "dtype") + b"}b.", "state of numpy.dtype"),
        (b"K\x01(" + text("a") + b"Nu.", "set items"),
        (b"}(K\x01Nu.", "set items"),
        (b"\x8f.", "opcode EMPTY_SET"),
        (b"\x97.", "opcode NEXT_BUFFER"),
        (named("evil\n\x1b[31m", "x" * 200) + b".", r"load evil\\n\\x1b\[31m\.xxx"),
    ],
)
def test_refusals_by_name(data, names):
    with pytest.raises(SetupError, match=names) as caught:
        locate(data)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


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
