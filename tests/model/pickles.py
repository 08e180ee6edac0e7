"""Arrays, and the opcodes that make pickles of them, for tests."""

import struct

import ml_dtypes
import numpy as np

from model.checkpoint.pickle_read import locate_arrays

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


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


QUANTIZED = named("__main__", "QuantizedWeight8bit")


def array_with(shape: bytes = b"K\x18\x85", dtype: bytes = b"", payload: bytes = b"") -> bytes:
    """A pickled int8[24] with a part replaced by other opcodes."""
    dtype = dtype or named("numpy", "dtype") + text("i1") + b"\x89\x88\x87R"
    return (
        named("numpy._core.multiarray", "_reconstruct")
        + named("numpy", "ndarray")
        + b"K\x00\x85C\x01b\x87R(K\x01"
        + (shape + dtype + b"\x89" + (payload or b"C\x18" + bytes(24)) + b"tb.")
    )
