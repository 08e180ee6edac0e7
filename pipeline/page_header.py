"""Headers of Parquet pages: how long a page is, how many rows it holds, and a page of nulls.

They are written in Thrift's compact protocol; https://github.com/apache/parquet-format has both.
"""

from collections.abc import Mapping
from typing import Any

_DATA, _DATA_V2 = 0, 3
"""Page types."""

_I32, _STRUCT, _FALSE = 5, 12, 2
"""Types of the compact protocol that a header is written with here."""

_MOST_DEPTH = 4


def read_extent(data: bytes, at: int, repeated: bool) -> tuple[int, int]:
    """A page's length, header included, and its rows; no rows if it is a dictionary.

    Args:
      data: a column of a row group, from its first page.
      at: where the page begins.
      repeated: whether the column holds lists.

    Raises:
      ValueError: there is no whole page, or its header does not say how many rows it holds.
    """
    try:
        header, begin = _read_struct(data, at)
        kind, length = header[1], begin - at + header[3]
        if kind == _DATA_V2:
            rows = header[8][3]
        elif kind == _DATA:
            if repeated:
                raise ValueError("version 1 of a page counts values, not rows")
            rows = header[5][1]
        else:
            rows = 0
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError("no page header") from error
    if header[3] < 0 or rows < 0 or at + length > len(data):
        raise ValueError("a page cannot have such a size")
    return length, rows


def page_of_nulls(rows: int, length: int, repeated: bool) -> bytes | None:
    """A page of just this length whose rows are all null; None if that is too short.

    Version 2 of the data page, whose levels and values need no compression. What stands behind the
    levels would be values, of which it has none.
    """
    definition = _varint(rows << 1) + b"\0"
    repetition = definition if repeated else b""
    levels = repetition + definition
    for header_bytes in range(20, 64):
        size = length - header_bytes
        header = _v2_header(size, rows, len(definition), len(repetition))
        if len(header) == header_bytes and size >= len(levels):
            return header + levels + bytes(size - len(levels))
    return None


def _v2_header(size: int, rows: int, definition_bytes: int, repetition_bytes: int) -> bytes:
    levels = {1: rows, 2: rows, 3: rows, 4: 0, 5: definition_bytes, 6: repetition_bytes}
    fields = b"".join(_field(1, _I32) + _varint(value << 1) for value in levels.values())
    page = {1: _DATA_V2, 2: size, 3: size}
    head = b"".join(_field(1, _I32) + _varint(value << 1) for value in page.values())
    return head + _field(5, _STRUCT) + fields + _field(1, _FALSE) + b"\0\0"


def _field(step: int, kind: int) -> bytes:
    return bytes([step << 4 | kind])


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def _read_struct(data: bytes, at: int, depth: int = 0) -> tuple[Mapping[int, Any], int]:
    """A struct's fields by number, and where it ends.

    Raises:
      ValueError, IndexError: it is none.
    """
    if depth > _MOST_DEPTH:
        raise ValueError("a page header is not nested so deep")
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        step, kind = head >> 4, head & 0x0F
        if step:
            number += step
        else:
            raw, at = _read_varint(data, at)
            number = raw >> 1 ^ -(raw & 1)
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind == 3:
            fields[number], at = data[at], at + 1
        elif kind in (4, 5, 6):
            raw, at = _read_varint(data, at)
            fields[number] = raw >> 1 ^ -(raw & 1)
        elif kind == 8:
            length, at = _read_varint(data, at)
            at += length
        elif kind == _STRUCT:
            fields[number], at = _read_struct(data, at, depth + 1)
        else:
            raise ValueError(f"type {kind} stands in no page header")
    return fields, at + 1


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number without an end")
