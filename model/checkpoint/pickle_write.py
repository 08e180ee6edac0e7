"""Writes arrays as the release's pickles are: protocol 4, byte for byte, payloads streamed.

Python's own pickler would need ``QuantizedWeight8bit`` defined in ``__main__`` and each array
whole in memory; this writes the same opcodes, frames and memo numbers without either.
"""

import dataclasses
import math
import struct
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

_FRAME_TARGET = 64 << 10
"""Python closes a frame that has grown past this, and leaves payloads as long out of frames."""

_FRAME_LEAST = 4
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """An array to be written.

    Attributes:
      shape: of the array.
      dtype: int8, bfloat16 or float32.
      chunks: gives its bytes in C order, piece by piece; called when they are due.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: Callable[[], Iterable[bytes | memoryview]]

    @classmethod
    def of(cls, array: np.ndarray) -> "ArraySource":
        """The source of an array in memory."""
        data = np.ascontiguousarray(array)
        return cls(data.shape, data.dtype, lambda: [data.reshape(-1).view(np.uint8).data])

    @property
    def nbytes(self) -> int:
        """Length of its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_array(file: BinaryIO, array: ArraySource) -> None:
    """Writes a plain array: norm, router or embedding."""
    _Pickler(file).dump(_ndarray(array))


def write_quantized(file: BinaryIO, weight: ArraySource, scales: ArraySource) -> None:
    """Writes a ``QuantizedWeight8bit``: int8 weight and bfloat16 scales."""
    attributes = {"weight": _ndarray(weight), "scales": _ndarray(scales)}
    _Pickler(file).dump(_Object(_QUANTIZED, (), attributes, new=True))


@dataclasses.dataclass(frozen=True, eq=False)
class _Global:
    module: str
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Object:
    """What ``cls(*args)`` and then a state make; ``new`` if without calling its ``__init__``."""

    cls: _Global
    args: tuple[Any, ...]
    state: Any
    new: bool = False


_QUANTIZED = _Global("__main__", "QuantizedWeight8bit")
_RECONSTRUCT = _Global("numpy.core.multiarray", "_reconstruct")
_NDARRAY = _Global("numpy", "ndarray")
_DTYPE = _Global("numpy", "dtype")
_BFLOAT16_TYPE = _Global("ml_dtypes", "bfloat16")
_TYPE_CODE = b"b"


def _ndarray(array: ArraySource) -> _Object:
    if array.dtype == _BFLOAT16:
        dtype = _Object(_DTYPE, (_BFLOAT16_TYPE, False, True), (3, "<", None, None, None, 2, 2, 64))
    else:
        code, order = array.dtype.str[1:], array.dtype.str[0]
        dtype = _Object(_DTYPE, (code, False, True), (3, order, None, None, None, -1, -1, 0))
    state = (1, array.shape, dtype, False, array)
    return _Object(_RECONSTRUCT, (_NDARRAY, (0,), _TYPE_CODE), state)


class _Pickler:
    """As much of Python's pickler as the above needs."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame = bytearray()
        self._memo: dict[str | bytes | _Global, int] = {}
        self._memoized = 0

    def dump(self, value: Any) -> None:
        self._file.write(b"\x80\x04")
        self._save(value)
        self._frame += b"."
        self._close_frame()

    def _save(self, value: Any) -> None:
        if len(self._frame) >= _FRAME_TARGET:
            self._close_frame()
        write = self._frame.extend
        match value:
            case None:
                write(b"N")
            case bool():
                write(b"\x88" if value else b"\x89")
            case int():
                write(_integer(value))
            case str() | bytes() | _Global() if value in self._memo:
                write(struct.pack("<cB", b"h", self._memo[value]))
            case str():
                write(struct.pack("<cB", b"\x8c", len(value)) + value.encode())
                self._memoize(value)
            case bytes():
                write(struct.pack("<cB", b"C", len(value)) + value)
                self._memoize(value)
            case _Global():
                self._save(value.module)
                self._save(value.name)
                write(b"\x93")
                self._memoize(value)
            case tuple():
                self._save_tuple(value)
            case dict():
                write(b"}")
                self._memoize()
                write(b"(")
                for item in value.items():
                    for part in item:
                        self._save(part)
                write(b"u")
            case _Object():
                self._save(value.cls)
                self._save(value.args)
                write(b"\x81" if value.new else b"R")
                self._memoize()
                self._save(value.state)
                write(b"b")
            case ArraySource():
                self._save_payload(value)

    def _save_tuple(self, items: tuple[Any, ...]) -> None:
        if len(items) > 3:
            self._frame += b"("
        for item in items:
            self._save(item)
        self._frame += (b")", b"\x85", b"\x86", b"\x87", b"t")[min(len(items), 4)]
        if items:
            self._memoize()

    def _save_payload(self, array: ArraySource) -> None:
        size = array.nbytes
        if size < 1 << 8:
            header = struct.pack("<cB", b"C", size)
        elif size < 1 << 32:
            header = struct.pack("<cI", b"B", size)
        else:
            header = struct.pack("<cQ", b"\x8e", size)
        if size < _FRAME_TARGET:
            self._frame += header + b"".join(array.chunks())
        else:
            self._close_frame()
            self._file.write(header)
            for chunk in array.chunks():
                self._file.write(chunk)
        self._memoize()

    def _memoize(self, value: str | bytes | _Global | None = None) -> None:
        if value is not None:
            self._memo[value] = self._memoized
        self._memoized += 1
        self._frame += b"\x94"

    def _close_frame(self) -> None:
        if len(self._frame) >= _FRAME_LEAST:
            self._file.write(struct.pack("<cQ", b"\x95", len(self._frame)))
        self._file.write(self._frame)
        self._frame.clear()


def _integer(value: int) -> bytes:
    if 0 <= value < 1 << 8:
        return struct.pack("<cB", b"K", value)
    if 0 <= value < 1 << 16:
        return struct.pack("<cH", b"M", value)
    return struct.pack("<ci", b"J", value)
