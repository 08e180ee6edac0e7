"""SentencePiece models that no trainer makes, written field by field."""

import struct
from collections.abc import Iterator

UNIGRAM, BPE, WORD, CHAR = 1, 2, 3, 4
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""As ``sentencepiece_model.proto`` numbers them; so are the fields below."""


def _varint(number: int) -> bytes:
    low = [number >> shift & 127 for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([*(digit | 128 for digit in low[:-1]), low[-1]])


def field(number: int, value: int | float | str | bytes) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def overlong(field: bytes, last: int = 0x10) -> bytes:
    """The same field, numbered below 16, behind a tag of five bytes.

    Of the last byte's bits, a protocol buffer's reader keeps four: it is the same field to it.
    """
    return bytes([field[0] | 128, 128, 128, 128, last]) + field[1:]


def piece(text: str | bytes, score: float = 0.0, kind: int = NORMAL) -> bytes:
    return field(1, field(1, text) + field(2, score) + field(3, kind))


SPECIAL = piece("<unk>", kind=UNKNOWN) + piece("<s>", kind=CONTROL) + piece("</s>", kind=CONTROL)
LETTERS = b"".join(piece(letter, -float(i)) for i, letter in enumerate("▁abcdef日"))


def model(more: bytes = b"", kind: int = BPE, charsmap: bytes | None = None) -> bytes:
    """A model of some letters; ``more`` fields follow its pieces."""
    normalizer = field(1, "custom") + (b"" if charsmap is None else field(2, charsmap))
    return SPECIAL + LETTERS + more + field(2, field(3, kind)) + field(3, normalizer)


def charsmap(of_a: bytes = b"bb", of_ab: bytes = b"c") -> bytes:
    """A table that puts other text in the place of "a" and "ab": a double array as Darts has it."""
    root, leaf, below = 256 << 10, 1 << 31, 1 << 8 | 256 << 10
    units = [0] * 512
    units[0] = root
    units[256 ^ ord("a")] = ord("a") | below
    units[ord("a")] = leaf | 0
    units[ord("a") ^ ord("b")] = ord("b") | below
    units[ord("a") ^ ord("b") ^ 256] = leaf | len(of_a) + 1
    trie = struct.pack("<512I", *units)
    return struct.pack("<I", len(trie)) + trie + of_a + b"\0" + of_ab + b"\0"


def small() -> Iterator[bytes]:
    """Good ones, of each kind and with all that a model may hold."""
    for kind in (UNIGRAM, BPE, WORD, CHAR):
        yield model(piece("ab") + piece("▁ab", -1.0), kind)
    yield model(piece("<|a|>", kind=USER_DEFINED) + piece("aa", kind=UNUSED), charsmap=charsmap())
    yield model() + field(5, field(2, charsmap())) + field(4, field(1, _sample("de", "▁ d e")))
    in_bytes = b"".join(piece(f"<0x{byte:02X}>", kind=BYTE) for byte in range(256))
    yield model(in_bytes) + field(2, field(35, 1))


def _sample(text: str, pieces: str) -> bytes:
    return field(1, text) + field(2, pieces)
