"""A checkpoint's tokenizer as GGUF holds it: every piece with its score and kind."""

from types import ModuleType
from typing import Any

import sentencepiece

from model.checkpoint.base import Checkpoint
from model.tokenizer import Tokenizer


def add_vocabulary(writer: Any, gguf: ModuleType, checkpoint: Checkpoint) -> None:
    """Tells a GGUF writer the vocabulary, or that there is none but a number of ids.

    Raises:
      SetupError: the tokenizer cannot be read, or is not the model's.
    """
    config = checkpoint.config
    writer.add_vocab_size(config.vocab_size)
    if checkpoint.tokenizer_url is None:
        writer.add_tokenizer_model("no_vocab")
        return
    tokenizer = Tokenizer.load(checkpoint.tokenizer_url)
    tokenizer.check_against(config)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    ids = list(range(tokenizer.vocab_size))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.encode() for piece in processor.id_to_piece(ids)])
    writer.add_token_scores(processor.get_score(ids))
    writer.add_token_types([_kind(gguf.TokenType, processor, i) for i in ids])
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_id),
        (writer.add_eos_token_id, tokenizer.eos_id),
        (writer.add_unk_token_id, tokenizer.unk_id),
        (writer.add_pad_token_id, tokenizer.pad_id),
    ):
        if token >= 0:
            add(token)
    writer.add_add_bos_token(False)  # the release adds none
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(False)


def _kind(kinds: Any, processor: Any, token: int) -> Any:
    if processor.is_unknown(token):
        return kinds.UNKNOWN
    if processor.is_control(token):
        return kinds.CONTROL
    return kinds.BYTE if processor.is_byte(token) else kinds.NORMAL
