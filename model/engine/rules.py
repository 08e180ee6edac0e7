"""Whether a request can be run, and what its parameters mean in token ids. NumPy only."""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from model.config import Grok1Config
from model.constraint import Constrainer, Grammar
from model.engine.request import NOT_HEALED, Request
from model.engine.tables import WORD_BITS
from model.tokenizer import Tokenizer
from schemas.checks import InvalidParameter
from schemas.error import ErrorCode, RowError
from schemas.sampling import MAX_BAD_WORD_TOKENS, SamplingParams


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """A request's parameters, resolved with the model's vocabulary.

    Attributes:
      stop_ids: ids that end a sequence, EOS first.
      early_ids: ids that may not be drawn before ``min_tokens``, EOS first even where it ends
        nothing; empty if there is no such minimum.
      eos_token: that id, or -1 if it does not end the sequence by itself.
      steers: whether the device's tables have to know of the request.
      bad_words: each a sequence of ids whose last may not follow the others.
      allowed: [V / WORD_BITS] uint32, a bit for each id that may be drawn; None for all.
      grammar: what the text must be like, or None.
      first_mask: what may be drawn first, as in ``allowed``; None for all, now and later. Of a
        healed prompt it holds for the first token only.
    """

    stop_ids: tuple[int, ...]
    early_ids: tuple[int, ...] = ()
    eos_token: int = -1
    steers: bool = False
    bad_words: tuple[tuple[int, ...], ...] = ()
    allowed: np.ndarray | None = None
    grammar: Grammar | None = None
    first_mask: np.ndarray | None = None


class Unanswerable(Exception):
    """A request that cannot be run.

    Attributes:
      error: why.
    """

    def __init__(self, error: RowError) -> None:
        super().__init__(error.message)
        self.error = error


def resolve(
    request: Request,
    config: Grok1Config,
    max_context: int,
    tokenizer: Tokenizer | None,
    constrainer: Callable[[], Constrainer],
) -> Rules:
    """The rules of a request.

    Args:
      request: what is asked.
      config: the model.
      max_context: most tokens of a prompt and its completion.
      tokenizer: needed where parameters hold text.
      constrainer: makes or finds what compiles constraints; asked for only if there is one.

    Raises:
      Unanswerable: it cannot be run.
    """
    _check(request, config.vocab_size, max_context)
    params = request.params
    grammar = None
    try:
        if tokenizer is None:
            _refuse_text(params)
        elif params.structured_outputs is not None:
            grammar = constrainer().compile(params.structured_outputs)
        return _rules(request, config, tokenizer, grammar)
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
    if len(ids) + params.least_room > max_context:
        message = f"prompt of {len(ids)} tokens and {params.told_room} exceed the context of "
        message += f"{max_context}"
        raise Unanswerable(RowError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, message, "max_tokens"))


def _refuse_text(params: SamplingParams) -> None:
    for name in ("stop", "bad_words", "structured_outputs"):
        if getattr(params, name):
            raise InvalidParameter(name, "is about text, which needs a tokenizer")


def _rules(
    request: Request, config: Grok1Config, tokenizer: Tokenizer | None, grammar: Grammar | None
) -> Rules:
    params = request.params
    stop_ids, eos_token = params.stop_token_ids, -1
    with_eos = tuple(dict.fromkeys((config.eos_token, *stop_ids)))
    # A constraint that has nothing more to say ends with EOS, whatever else is wished.
    if not params.ignore_eos or grammar is not None:
        stop_ids, eos_token = with_eos, config.eos_token
    early_ids = with_eos if params.min_tokens else ()
    bad_words = _spellings(params.bad_words, tokenizer) if params.bad_words and tokenizer else ()
    allowed = first_mask = None
    if params.allowed_token_ids is not None:
        left = set(params.allowed_token_ids) - {word[0] for word in bad_words if len(word) == 1}
        if not left - set(early_ids):
            raise InvalidParameter(
                "allowed_token_ids",
                "leaves nothing to draw: all are bad_words or may not come before min_tokens",
            )
        allowed = first_mask = pack_bits(params.allowed_token_ids, config.vocab_size)
    if request.healed is not None:
        for name in NOT_HEALED:
            if getattr(params, name) is not None:
                raise InvalidParameter(name, "must be null to heal a prompt's end")
        if tokenizer is None:
            raise InvalidParameter("healed", "is about text, which needs a tokenizer")
        first_mask = pack_bits(tokenizer.beginning_with(request.healed), config.vocab_size)
    if grammar is not None:
        first_mask = meet(grammar.first_mask(request.prompt_token_ids), allowed)
    return Rules(
        stop_ids=stop_ids,
        early_ids=early_ids,
        eos_token=eos_token,
        steers=bool(bad_words or params.logit_bias or params.penalises),
        bad_words=bad_words,
        allowed=allowed,
        grammar=grammar,
        first_mask=first_mask,
    )


def meet(mask: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
    """What both allow; where that is nothing, ``mask``, so that what must come can."""
    both = mask if allowed is None else mask & allowed
    return both if both.any() else mask


def pack_bits(ids: Iterable[int], vocabulary: int) -> np.ndarray:
    """[V / WORD_BITS] uint32 with a bit for each of the ids."""
    bits = np.zeros(-(-vocabulary // WORD_BITS) * WORD_BITS, bool)
    bits[list(ids)] = True
    return np.packbits(bits, bitorder="little").view("<u4")


def _spellings(words: Iterable[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """The ids of each word, where a text or a word begins and in the middle of a word."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        text = word.lstrip() or word
        try:
            spellings = tokenizer.encode(text), tokenizer.encode_inside(text)
        except ValueError as error:
            raise InvalidParameter("bad_words", f"cannot be tokenized: {error}") from None
        found.update((tuple(ids), None) for ids in spellings if ids)
    total = sum(map(len, found))
    if total > MAX_BAD_WORD_TOKENS:
        raise InvalidParameter(
            "bad_words", f"come to {total} tokens; at most {MAX_BAD_WORD_TOKENS} can be watched for"
        )
    return tuple(found)
