"""Whether a request can be run, and what its parameters mean in token ids. NumPy only."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from model.config import Grok1Config
from model.engine.request import Request
from model.engine.tables import WORD_BITS
from model.tokenizer import Tokenizer
from schemas.checks import InvalidParameter
from schemas.error import ErrorCode, RowError
from schemas.sampling import MAX_BAD_WORD_TOKENS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """A request's parameters, resolved with the model's vocabulary.

    Attributes:
      stop_ids: ids that end a sequence, EOS first.
      bad_words: each a sequence of ids whose last may not follow the others.
      allowed: [V / WORD_BITS] uint32, a bit for each id that may be drawn, of a healed prompt at
        first; None for all.
      steers: whether the device's tables have to know of it.
    """

    stop_ids: tuple[int, ...]
    steers: bool
    bad_words: tuple[tuple[int, ...], ...] = ()
    allowed: np.ndarray | None = None


class Unanswerable(Exception):
    """A request that cannot be run.

    Attributes:
      error: why.
    """

    def __init__(self, error: RowError) -> None:
        super().__init__(error.message)
        self.error = error


def resolve(
    request: Request, config: Grok1Config, max_context: int, tokenizer: Tokenizer | None
) -> Rules:
    """The rules of a request.

    Raises:
      Unanswerable: it cannot be run.
    """
    _check(request, config.vocab_size, max_context)
    try:
        return _rules(request, config, tokenizer)
    except InvalidParameter as fault:
        raise Unanswerable(fault.row_error()) from None


def _check(request: Request, vocabulary: int, max_context: int) -> None:
    ids, params = request.prompt_token_ids, request.params
    if not ids:
        raise Unanswerable(RowError(ErrorCode.PROMPT_EMPTY, "the prompt has no tokens", "prompt"))
    for name, given in (("prompt_token_ids", ids), *params.token_id_lists()):
        wrong = next((i for i in given if not 0 <= i < vocabulary), None)
        if wrong is not None:
            message = f"{name} holds {wrong}, outside the vocabulary of {vocabulary}"
            raise Unanswerable(RowError(ErrorCode.TOKEN_ID_OUT_OF_RANGE, message, name))
    if len(ids) + params.max_tokens > max_context:
        message = (
            f"prompt of {len(ids)} tokens and max_tokens={params.max_tokens} exceed the "
            f"context of {max_context}"
        )
        raise Unanswerable(RowError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, message, "max_tokens"))


def _rules(request: Request, config: Grok1Config, tokenizer: Tokenizer | None) -> Rules:
    params = request.params
    stop_ids = params.stop_token_ids
    if not params.ignore_eos:
        stop_ids = tuple(dict.fromkeys((config.eos_token, *stop_ids)))
    if tokenizer is None:
        for name, given in (("stop", params.stop), ("bad_words", params.bad_words)):
            if given:
                raise InvalidParameter(name, "holds text, which needs a tokenizer")
    bad_words = _spellings(params.bad_words, tokenizer) if params.bad_words and tokenizer else ()
    if request.healed is not None:
        if tokenizer is None or params.allowed_token_ids is not None:
            raise InvalidParameter(
                "allowed_token_ids", "must be null, and a tokenizer there, to heal a prompt's end"
            )
        allowed = pack_bits(tokenizer.beginning_with(request.healed), config.vocab_size)
        return Rules(stop_ids=stop_ids, bad_words=bad_words, steers=True, allowed=allowed)
    if params.allowed_token_ids is None:
        steers = bool(bad_words or params.logit_bias or params.penalises)
        return Rules(stop_ids=stop_ids, bad_words=bad_words, steers=steers)
    left = set(params.allowed_token_ids) - {word[0] for word in bad_words if len(word) == 1}
    if params.min_tokens:
        left -= set(stop_ids)
    if not left:
        raise InvalidParameter(
            "allowed_token_ids", "leaves nothing to draw: all are bad_words or end the completion"
        )
    return Rules(
        stop_ids=stop_ids,
        steers=True,
        bad_words=bad_words,
        allowed=pack_bits(params.allowed_token_ids, config.vocab_size),
    )


def pack_bits(ids: Iterable[int], vocabulary: int) -> np.ndarray:
    """[V / WORD_BITS] uint32 with a bit for each of the ids."""
    bits = np.zeros(-(-vocabulary // WORD_BITS) * WORD_BITS, bool)
    bits[list(ids)] = True
    return np.packbits(bits, bitorder="little").view("<u4")


def _spellings(words: Iterable[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """The ids of each word where a text or a word begins, and of each in the middle of a word.

    SentencePiece puts a space before a text; what follows a line's end has none.
    """
    lead = tokenizer.encode("\n")
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        text = word.lstrip() or word
        found[tuple(tokenizer.encode(text))] = None
        inside = tokenizer.encode("\n" + text)
        if inside[: len(lead)] == lead and len(inside) > len(lead):
            found[tuple(inside[len(lead) :])] = None
    total = sum(map(len, found))
    if total > MAX_BAD_WORD_TOKENS:
        raise InvalidParameter(
            "bad_words", f"come to {total} tokens; at most {MAX_BAD_WORD_TOKENS} can be watched for"
        )
    return tuple(found)
