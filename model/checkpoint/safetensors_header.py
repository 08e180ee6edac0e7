"""The header of a safetensors file: what it holds and where, read as untrusted and written.

The format's own library maps local files and writes from memory; checkpoints are read by ranges
from any store, and written while they are made.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from model.checkpoint.location import ArrayLocation
from schemas.error import SetupError

_LENGTH_BYTES = 8
_MAX_HEADER = 16 << 20
"""Bytes; one of a large checkpoint takes about a hundredth."""

_MAX_DIMENSIONS = 8
_ALIGNMENT = 4096
"""Data of files that we write begins at a page."""

_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def read_header(
    read: Callable[[int, int], bytes], size: int, where: str
) -> dict[str, ArrayLocation]:
    """Where the arrays of a file lie, by name; the file is believed in nothing.

    Args:
      read: gives the file's bytes ``[start, stop)``.
      size: of the file, in bytes.
      where: how messages call the file.

    Raises:
      SetupError: it is cut short, has bytes that belong to no array, or is no safetensors file.
    """
    try:
        if size < _LENGTH_BYTES:
            raise _Malformed(f"it has only {size} bytes")
        length = int.from_bytes(read(0, _LENGTH_BYTES), "little")
        start = _LENGTH_BYTES + length
        if length > _MAX_HEADER:
            raise _Malformed(f"its header claims {length} bytes, more than the {_MAX_HEADER} held")
        if start > size:
            raise _Malformed(f"it has {size} bytes, fewer than its header claims to have")
        return _locate(_parse(read(_LENGTH_BYTES, start)), start, size)
    except _Malformed as fault:
        raise SetupError(
            f"{where} is not readable as safetensors: {fault}; get the file anew"
        ) from None


def write_header(
    arrays: Sequence[tuple[str, np.dtype, tuple[int, ...]]], made_for: str = "np"
) -> bytes:
    """What a file of these arrays (name, dtype, shape) begins with; their bytes follow in order.

    ``made_for`` names a framework by its short name; transformers refuses what is not for ``pt``.
    """
    header: dict[str, Any] = {"__metadata__": {"format": made_for}}
    at = 0
    for name, dtype, shape in arrays:
        end = at + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


class _Malformed(Exception):
    pass


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise _Malformed(f"its header is no JSON ({str(error)[:80]})") from None
    if not isinstance(header, dict):
        raise _Malformed("its header is no JSON object")
    header.pop("__metadata__", None)
    return header


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Malformed("its header gives a name twice")
    return found


def _locate(header: Mapping[str, Any], start: int, size: int) -> dict[str, ArrayLocation]:
    """All arrays, whose bytes fill the file from ``start`` to its end without holes or overlaps."""
    found = {name: _array(name, entry, start) for name, entry in header.items()}
    at = start
    for name, array in sorted(found.items(), key=lambda item: (item[1].offset, item[1].length)):
        if array.offset != at:
            raise _Malformed(f"array {name!r:.80} begins at byte {array.offset}, not at {at}")
        at += array.length
    if at != size:
        raise _Malformed(f"it has {size} bytes where its header describes {at}")
    return found


def _array(name: str, entry: Any, start: int) -> ArrayLocation:
    what = f"array {name!r:.80}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _Malformed(f"{what} is not described by dtype, shape and data_offsets")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise _Malformed(f"{what} has dtype {entry['dtype']!r:.40}, which no weight here has")
    shape, offsets = entry["shape"], entry["data_offsets"]
    for numbers in shape, offsets:
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise _Malformed(f"{what} has a shape or offsets that are no numbers")
    if len(shape) > _MAX_DIMENSIONS or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise _Malformed(f"{what} has a shape or offsets that make no sense")
    length = offsets[1] - offsets[0]
    if math.prod(shape) * dtype.itemsize != length:
        raise _Malformed(f"{what} stores {length} bytes, not as many as its shape takes")
    return ArrayLocation(start + offsets[0], length, tuple(shape), dtype)
