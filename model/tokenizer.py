"""Text to token ids and back, by the SentencePiece model that belongs to a checkpoint.

Encoding is sentencepiece's, decoding is ``model.detokenizer``'s.
"""

import functools
import hashlib
from collections.abc import Iterable, Sequence

import sentencepiece

from model import sentencepiece_file
from model.checkpoint import files
from model.config import Grok1Config
from model.detokenizer import Pieces, StreamDecoder
from schemas.error import SetupError

_MAX_BYTES = 64 << 20
"""The released model has 2 MB; a tokenizer is an untrusted file."""

_MOST_JOINED = 8
"""Characters that may join to what stands before; a stranger's model may have all do so."""

_SPACE = "▁"


class Tokenizer:
    """A SentencePiece model. Immutable; all methods may be called from several threads.

    Attributes:
      model: the file's bytes.
      identity: their SHA-256.
      vocab_size: V, number of ids.
      pad_id, bos_id, eos_id, unk_id: ids of the special tokens, or -1 where the model has none.
      special_ids: control tokens and the unknown token, which are no text. What a model calls
        "user defined", such as the release's ``<|separator|>``, is text.
    """

    def __init__(self, model: bytes, where: str = "the tokenizer") -> None:
        """Args: a model file's bytes, and how messages call it.

        Raises:
          SetupError: the bytes are no SentencePiece model, or one that asks for more memory or time
            than a tokenizer needs.
        """
        processor = sentencepiece.SentencePieceProcessor()
        try:
            sentencepiece_file.check(model)
            if not model:
                raise ValueError  # which sentencepiece takes for a model without pieces
            processor.LoadFromSerializedProto(model)
            ids = list(range(processor.vocab_size()))
            pieces = processor.id_to_piece(ids)
            is_byte = processor.is_byte(ids)
            is_control = processor.is_control(ids)
        except (RuntimeError, ValueError) as error:
            # The library's text quotes its own source.
            told = isinstance(error, sentencepiece_file.MalformedModel)
            raise SetupError(
                f"{where} is no SentencePiece model: {f'{error}; ' if told else ''}"
                "give the tokenizer.model that belongs to the checkpoint"
            ) from None
        self._processor = processor
        self.model = bytes(model)
        self.identity = hashlib.sha256(model).hexdigest()
        self.vocab_size = len(ids)
        self.pad_id, self.bos_id = processor.pad_id(), processor.bos_id()
        self.eos_id, self.unk_id = processor.eos_id(), processor.unk_id()
        byte_ids = frozenset(i for i in ids if is_byte[i])
        control_ids = frozenset(i for i in ids if is_control[i])
        self.special_ids = control_ids | ({self.unk_id} if self.unk_id >= 0 else set())
        # A byte piece is written <0x0A>.
        data = [
            bytes([int(piece[3:5], 16)]) if is_byte[i] else piece.replace(_SPACE, " ").encode()
            for i, piece in enumerate(pieces)
        ]
        self._by_byte = {data[i]: i for i in byte_ids}
        spaced = frozenset(i for i, piece in enumerate(pieces) if piece.startswith(_SPACE))
        strips_one, strips_all = self._leading_space(pieces, spaced)
        self._pieces = Pieces(
            data=data,
            names={i: pieces[i] for i in self.special_ids},
            special_ids=self.special_ids,
            control_ids=control_ids,
            byte_ids=byte_ids,
            spaced_ids=spaced,
            strips_one=strips_one,
            strips_all=strips_all,
        )
        # A look through all pieces takes milliseconds, and prompts end alike.
        self._beginning_with = functools.lru_cache(4096)(self._find_beginning_with)

    @classmethod
    def load(cls, url: str) -> "Tokenizer":
        """The tokenizer in a file, by fsspec URL or local path.

        Raises:
          SetupError: it cannot be read, or is no SentencePiece model.
        """
        return cls(files.read_bytes(url, _MAX_BYTES), files.redact(url))

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes]]:
        return Tokenizer, (self.model,)

    def check_against(self, config: Grok1Config) -> None:
        """Makes sure that the tokenizer can belong to a model.

        Raises:
          SetupError: its vocabulary is not the config's.
        """
        if self.vocab_size != config.vocab_size:
            raise SetupError(
                f"the tokenizer has {self.vocab_size} pieces, the checkpoint's config a vocabulary "
                f"of {config.vocab_size}: use the tokenizer that belongs to the checkpoint"
            )

    def encode(self, text: str, bos: bool = False) -> list[int]:
        """The ids of a text; text that looks like a control token ("[EOS]") is plain text.

        Args:
          text: any text without lone surrogates; NUL is a character like others.
          bos: whether to put the beginning-of-sequence id before it; the release does not.

        Raises:
          ValueError: the text holds a lone surrogate, or the model has no such id.
        """
        return self.encode_batch([text], bos)[0]

    def encode_batch(self, texts: Sequence[str], bos: bool = False) -> list[list[int]]:
        """The ids of each text, several at once; see ``encode``."""
        if bos and self.bos_id < 0:
            raise ValueError("the tokenizer has no beginning-of-sequence token")
        for text in texts:
            _reject_surrogates(text)
        # One text is not worth a thread; several share the machine's.
        threads = 1 if len(texts) < 2 else -1
        encoded = self._processor.encode(list(texts), out_type=int, num_threads=threads)
        return [[self.bos_id, *ids] for ids in encoded] if bos else encoded

    def encode_inside(self, text: str) -> list[int]:
        """The ids of a text that stands behind another: without the space that ``encode`` adds.

        Raises:
          ValueError: the text holds a lone surrogate.
        """
        begun: list[int] = []
        for _ in range(_MOST_JOINED):
            for before in ("\n", "="):
                lead, ids = self.encode_batch([before, before + text])
                if ids[: len(lead)] == lead:
                    return begun + ids[len(lead) :]
            # The text begins with what a piece joins to either.
            begun += self._spelled(text[0])
            text = text[1:]
        return begun + self._spelled(text)

    def _spelled(self, text: str) -> list[int]:
        """A text byte by byte; a byte that has no piece is unknown."""
        ids = (self.byte_id(bytes([byte])) for byte in text.encode())
        return [self.unk_id if i is None else i for i in ids]

    def byte_id(self, byte: bytes) -> int | None:
        """The id of the piece that stands for one byte, where the model has such."""
        return self._by_byte.get(byte)

    def token_bytes(self) -> list[bytes]:
        """By id: the bytes that a token stands for; of special tokens, their names'."""
        return [
            self._pieces.names[i].encode() if i in self.special_ids else data
            for i, data in enumerate(self._pieces.data)
        ]

    def begins_text(self, ids: Sequence[int]) -> bool:
        """Whether no text stands in ``ids`` yet, so that a first space would be dropped."""
        return self._pieces.strips_one and self.stream(ids).at_start

    @property
    def spaced_ids(self) -> frozenset[int]:
        """Ids of tokens that begin with the space which is dropped at the beginning of a text."""
        return self._pieces.spaced_ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence; a byte that belongs to no character becomes U+FFFD.

        Args:
          ids: the tokens.
          skip_special_tokens: leave ``special_ids`` out, else write them by their names.

        Raises:
          ValueError: an id is outside the vocabulary.
        """
        return self.decode_completion((), ids, skip_special_tokens)

    def decode_completion(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Iterable[int],
        skip_special_tokens: bool = True,
        healed: int | None = None,
    ) -> str:
        """The text of a completion as its prompt's continuation, its leading space kept.

        It is what ``decode(prompt + completion)`` has after ``decode(prompt)``. A character that
        begins in the prompt and ends in the completion is the completion's. If a token was
        ``healed``, the completion begins with its text, which is the prompt's and left out.
        """
        stream = self.stream(prompt_ids, skip_special_tokens, healed)
        return stream.push(completion_ids) + stream.finish()

    def stream(
        self,
        prompt_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
        healed: int | None = None,
    ) -> StreamDecoder:
        """A decoder of one completion as its tokens come; see ``decode_completion``."""
        known = 0 if healed is None else len(self._pieces.data[healed].decode())
        return StreamDecoder(self._pieces, prompt_ids, skip_special_tokens, known)

    def can_heal(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt's last token is text that other tokens begin with too.

        There must be text before it, since a text's first token is spelled in a way of its own.
        """
        text = [token for token in prompt_ids[:-1] if token not in self.special_ids]
        last = prompt_ids[-1] if text else None
        if last is None or last in self.special_ids or last in self._pieces.byte_ids:
            return False
        return len(self.beginning_with(last)) > 1

    def beginning_with(self, token: int) -> tuple[int, ...]:
        """Ids of all pieces that begin with the text of one, itself included."""
        return self._beginning_with(token)

    def _find_beginning_with(self, token: int) -> tuple[int, ...]:
        text, no_text = self._pieces.data[token], self.special_ids | self._pieces.byte_ids
        return tuple(
            i
            for i, data in enumerate(self._pieces.data)
            if data.startswith(text) and i not in no_text
        )

    def _leading_space(self, pieces: list[str], spaced: frozenset[int]) -> tuple[bool, bool]:
        """Whether decoding drops the space that begins a text, and all pieces that are one."""
        decode, space = self._processor.decode, self._processor.piece_to_id(_SPACE)
        word = next((i for i in sorted(spaced) if pieces[i][1:2] != _SPACE), None)
        if word is None:
            return False, False
        strips_one = not decode([word]).startswith(" ")
        strips_all = space in spaced and not decode([space, word]).startswith(" ")
        return strips_one, strips_one and strips_all


def _reject_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds a lone surrogate (U+{ord(text[error.start]):04X}) at character "
            f"{error.start}, which is no character"
        ) from None
