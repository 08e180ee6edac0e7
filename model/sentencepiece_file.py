"""What a SentencePiece model file may ask of the library that reads it.

The library checks what it reads, but believes a file in how much to make of it: thirty times the
file's size for pieces of two bytes each, a text of any length for each character of a prompt. So
the file, which is a stranger's, is gone through first: a protocol buffer's outermost fields, as
``sentencepiece_model.proto`` numbers them.
"""

import itertools
from collections.abc import Iterator

_MAX_PIECES = 1 << 20
"""Eight times the release's, and more than any model in use has."""

_MAX_PIECE_BYTES = 1024
"""With score and kind. Encoding takes time by the length of pieces that begin alike."""

_MAX_REPLACEMENT_BYTES = 64
"""What normalizing makes of a few characters; Unicode's own longest has 33."""

_MAX_TEST_BYTES = 1 << 20
"""Texts that the library encodes whenever it reads the file."""

_MAX_FIELDS = 2 * _MAX_PIECES
"""Outer and inner together: a file of small unknown ones would take long to go through."""

_MAX_TAG = 0xFFFFFFFF
"""The library keeps only so many bits, and would see another field than is seen here."""

_PIECES, _NORMALIZER, _TEST, _DENORMALIZER = 1, 3, 4, 5
_CHARSMAP = 2
_FIXED = {1: 8, 5: 4}
"""Wire type -> bytes."""


class MalformedModel(ValueError):
    """Its text says what is wrong with the file, to follow a colon."""


def check(model: bytes) -> None:
    """Goes through a file.

    Raises:
      MalformedModel: it is no protocol buffer, or asks for more than a tokenizer needs.
    """
    pieces = tests = 0
    counter = itertools.count(1)
    for number, start, stop in _fields(model, 0, len(model), counter):
        if number == _PIECES:
            pieces += 1
            if pieces > _MAX_PIECES:
                raise MalformedModel(f"it has more than {_MAX_PIECES} pieces")
            if stop - start > _MAX_PIECE_BYTES:
                raise MalformedModel(
                    f"piece {pieces - 1} takes {stop - start} bytes, "
                    f"more than the {_MAX_PIECE_BYTES} expected"
                )
        elif number in (_NORMALIZER, _DENORMALIZER):
            for inner, at, end in _fields(model, start, stop, counter):
                if inner == _CHARSMAP:
                    _check_charsmap(model[at:end])
        elif number == _TEST:
            tests += stop - start
            if tests > _MAX_TEST_BYTES:
                raise MalformedModel(f"its own tests have more than {_MAX_TEST_BYTES} bytes")


def _check_charsmap(data: bytes) -> None:
    """Bounds the texts of a normalization table: bytes of a trie, the trie, texts that end by 0."""
    texts = data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")
    longest = max(map(len, texts))
    if longest > _MAX_REPLACEMENT_BYTES:
        raise MalformedModel(
            f"its normalization puts {longest} bytes in a character's place, "
            f"more than the {_MAX_REPLACEMENT_BYTES} expected"
        )


def _fields(
    data: bytes, at: int, stop: int, counter: Iterator[int]
) -> Iterator[tuple[int, int, int]]:
    """Each field's number, and where its value begins and ends; all are counted together."""
    while at < stop:
        if next(counter) > _MAX_FIELDS:
            raise MalformedModel(f"it has more than {_MAX_FIELDS} fields")
        begin = at
        tag, at = _varint(data, at, stop)
        if tag > _MAX_TAG or (at - begin > 1 and not data[at - 1]):
            raise MalformedModel("it is cut short or damaged")
        number, wire = tag >> 3, tag & 7
        if wire == 2:
            length, at = _varint(data, at, stop)
            end = at + length
        elif wire == 0:
            _, end = _varint(data, at, stop)
        elif wire in _FIXED:
            end = at + _FIXED[wire]
        else:
            raise MalformedModel(f"field {number} has wire type {wire}")
        if not number or end > stop:
            raise MalformedModel("it is cut short or damaged")
        yield number, at, end
        at = end


def _varint(data: bytes, at: int, stop: int) -> tuple[int, int]:
    """A number of up to 64 bits, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise MalformedModel("it is cut short or damaged")
