"""Token ids to text, as they come.

It is done here rather than by sentencepiece, from a table of the bytes that each id stands for,
since a completion is decoded apart from its prompt and as it grows. Over a whole text it gives what
sentencepiece gives; a test says so.
"""

import codecs
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

_BROKEN = re.compile("[\udc80-\udcff]")
"""What ``surrogateescape`` makes of a byte that belongs to no character."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """What decoding needs to know of a SentencePiece model.

    Attributes:
      data: by id, the bytes that it stands for.
      names: special id -> its name.
      special_ids: control tokens and the unknown token, which are no text.
      control_ids: the former.
      byte_ids: tokens that stand for a single byte.
      spaced_ids: tokens that begin with a space.
      strips_one: whether the space that begins a text is dropped.
      strips_all: whether all tokens that are one are.
    """

    data: Sequence[bytes]
    names: Mapping[int, str]
    special_ids: frozenset[int]
    control_ids: frozenset[int]
    byte_ids: frozenset[int]
    spaced_ids: frozenset[int]
    strips_one: bool
    strips_all: bool


class StreamDecoder:
    """Decodes a completion as its tokens come, giving out what later tokens cannot change.

    All that ``push`` and at last ``finish`` return, end to end, is ``Tokenizer.decode_completion``.
    """

    def __init__(
        self,
        pieces: Pieces,
        prompt_ids: Sequence[int],
        skip_special_tokens: bool,
        known: int = 0,
    ) -> None:
        """See ``Tokenizer.stream``; ``known`` characters at the beginning are left out."""
        self._pieces = pieces
        self._known = known
        self._skip_special_tokens = skip_special_tokens
        self._held = b""
        self._at_start = True
        for token in prompt_ids:
            if not self._at_start:
                break
            self._bytes_of(token)
        self._held = self._unfinished(prompt_ids[-3:])
        # Bytes of the prompt among those held: left out, unless they become a character.
        self._owed = len(self._held)

    @property
    def at_start(self) -> bool:
        """Whether no text has come yet."""
        return self._at_start

    def push(self, ids: Iterable[int]) -> str:
        """The text that is certain once these tokens have come.

        Raises:
          ValueError: an id is outside the vocabulary.
        """
        text, data = [], [self._held]
        for token in ids:
            if token in self._pieces.special_ids:
                text.append(self._decode(b"".join(data), final=True))
                data.clear()
                if not self._skip_special_tokens:
                    text.append(self._pieces.names[token])
            data.append(self._bytes_of(token))
        text.append(self._decode(b"".join(data), final=False))
        return self._without_known("".join(text))

    def finish(self) -> str:
        """The rest, when no more tokens come: U+FFFD for each byte of an unfinished character."""
        return self._without_known(self._decode(self._held, final=True))

    def _without_known(self, text: str) -> str:
        kept = text[self._known :]
        self._known -= len(text) - len(kept)
        return kept

    def _bytes_of(self, token: int) -> bytes:
        pieces = self._pieces
        if not 0 <= token < len(pieces.data):
            raise ValueError(f"token id {token} is outside the {len(pieces.data)} of the model")
        if token in pieces.special_ids:
            self._at_start = self._at_start and token in pieces.control_ids
            return b""
        data = pieces.data[token]
        if self._at_start:
            if pieces.strips_one and token in pieces.spaced_ids:
                data = data[1:]
            self._at_start = pieces.strips_all and not data
        return data

    def _unfinished(self, last: Sequence[int]) -> bytes:
        """The bytes at the end of a prompt that may begin a character, at most three."""
        data = b""
        for token in reversed(last):
            if token not in self._pieces.byte_ids:
                break
            data = self._pieces.data[token] + data
        return data[codecs.utf_8_decode(data, "surrogateescape", False)[1] :]

    def _decode(self, data: bytes, final: bool) -> str:
        text, used = codecs.utf_8_decode(data, "surrogateescape", final)
        self._held = data[used:]
        if used and self._owed:
            if _BROKEN.match(text):  # the prompt's bytes became no character: one mark for each
                text = text[self._owed :]
            self._owed = 0
        return _BROKEN.sub("\ufffd", text)
