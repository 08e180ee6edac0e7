"""Trains a small tokenizer of the release's kind on text that every Python brings along."""

import io
import pathlib
import sysconfig
from collections.abc import Iterable, Iterator

import sentencepiece

from schemas.error import SetupError

_SYMBOLS = [
    *("\n" * n for n in range(1, 11)),
    *"0123456789",
    *("\t" * n for n in range(1, 9)),
    *(" " * n for n in range(2, 17)),
    "<|separator|>",
    "<|mask|>",
    *(f"<|control{n}|>" for n in range(1, 21)),
]
"""The release's own. With these and the 256 bytes, ids up to 324 mean what they mean there."""

_TEXT_BYTES = 1 << 20
_MIN_VOCAB = 512
_MAX_VOCAB = 8192


def synthesize_tokenizer(vocab_size: int, lines: Iterable[str] | None = None) -> bytes:
    """A SentencePiece model with the release's settings and special ids, trained in a second.

    The text is Python's manual and the source of its standard library, so the same versions of
    Python and sentencepiece give the same bytes; others give another tokenizer.

    Args:
      vocab_size: from 512 to 8192.
      lines: text to train on instead, line by line.

    Raises:
      SetupError: the size is out of bounds, or this Python lacks its library's source.
    """
    if not _MIN_VOCAB <= vocab_size <= _MAX_VOCAB:
        raise SetupError(
            f"a trained tokenizer has {_MIN_VOCAB} to {_MAX_VOCAB} pieces, not {vocab_size}: "
            "give a tokenizer file for other sizes"
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_lines() if lines is None else lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=0.9995,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            user_defined_symbols=_SYMBOLS,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece="[PAD]",
            bos_piece="[BOS]",
            eos_piece="[EOS]",
            unk_piece="[UNK]",
            unk_surface="[UNK]",
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise SetupError(f"no tokenizer could be trained on Python's library: {error}") from None
    return model.getvalue()


def _lines() -> Iterator[str]:
    """The text, line by line: the manual's topics, then modules in the order of their names."""
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    left = _TEXT_BYTES
    for path in [library / "pydoc_data" / "topics.py", *sorted(library.glob("*.py"))]:
        if left <= 0 or not path.is_file():
            continue
        text = path.read_text("utf-8", errors="ignore")[:left]
        left -= len(text)
        yield from (line for line in text.splitlines() if line.strip())
