"""What a constrained completion may say next, token by token: llguidance over our vocabulary.

No JAX. The library is an extra, ``grok1-batch[constraints]``, imported when a constraint is used.
"""

import functools
import importlib.util
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from model.tokenizer import Tokenizer
from schemas.checks import InvalidParameter
from schemas.structured import KINDS, StructuredOutputs

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from llguidance._lib import JsonCompileOptions

_OBJECT = '{"type": "object"}'

_CACHED = 256
"""Compiled constraints that are kept: a job has one, or one a row."""


NEEDED = "needs llguidance: pip install 'grok1-batch[constraints]'"
"""What is said where the library is not installed."""


def available() -> bool:
    """Whether the library is installed."""
    return importlib.util.find_spec("llguidance") is not None


def check(wanted: StructuredOutputs) -> None:
    """Makes sure that a constraint makes sense, without a vocabulary.

    Raises:
      InvalidParameter: it does not, or the library is not installed.
    """
    if not available():
        raise InvalidParameter("structured_outputs", NEEDED)
    from llguidance import LLMatcher

    wrong, messages = LLMatcher.validate_grammar_with_warnings(source(wanted))
    if wrong:
        raise _fault(wanted, messages[0])


class Grammar:
    """A compiled constraint."""

    def __init__(self, matcher: "LLMatcher", mask: np.ndarray, tokenizer: Tokenizer) -> None:
        """``mask`` is what ``matcher``, at the beginning, allows."""
        self._matcher, self._mask, self._tokenizer = matcher, mask, tokenizer

    def first_mask(self, prompt_token_ids: Sequence[int]) -> np.ndarray:
        """[V / 32] uint32, a bit for each token that a completion of the prompt may begin with."""
        if not self._tokenizer.begins_text(prompt_token_ids):
            return self._mask
        # A piece's space that begins a text is dropped when it is decoded, a bare byte's is not.
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        spaced, bare = list(self._tokenizer.spaced_ids), self._tokenizer.byte_id(b" ")
        if bare is not None and bits[spaced].any() and self.start().consume_token(bare):
            bits[bare] = 1
        bits[spaced] = 0
        left = np.packbits(bits, bitorder="little").view(np.uint32)
        return left if left.any() else self._mask

    def start(self) -> "LLMatcher":
        """A matcher at the beginning of a completion, apart from all others."""
        return self._matcher.deep_copy()


class Constrainer:
    """Compiles constraints for one vocabulary. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises InvalidParameter: the library is not installed, or nothing could end a text."""
        if not available():
            raise InvalidParameter("structured_outputs", NEEDED)
        if tokenizer.eos_id < 0:
            raise InvalidParameter(
                "structured_outputs", "needs a tokenizer with an end-of-sequence token"
            )
        import llguidance

        self._tokenizer = tokenizer
        self._vocabulary = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(tokenizer)), n_vocab=tokenizer.vocab_size
        )
        self._width = -(-tokenizer.vocab_size // 32)
        self._compile = functools.lru_cache(_CACHED)(self._compiled)

    def compile(self, wanted: StructuredOutputs) -> Grammar:
        """The constraint, ready to be matched; what has been compiled lately is found.

        Raises:
          InvalidParameter: the library cannot make sense of it.
        """
        return self._compile(wanted)

    def _compiled(self, wanted: StructuredOutputs) -> Grammar:
        import llguidance
        from llguidance.numpy import fill_next_token_bitmask

        matcher = llguidance.LLMatcher(self._vocabulary, source(wanted), log_level=0)
        _check(wanted, matcher)
        mask = np.zeros((1, self._width), np.int32)
        fill_next_token_bitmask(matcher, mask)
        _check(wanted, matcher)
        return Grammar(matcher, mask[0].view(np.uint32), self._tokenizer)


def source(wanted: StructuredOutputs) -> str:
    """The constraint in the library's own words.

    Raises:
      InvalidParameter: it is not well formed.
    """
    import llguidance

    matcher = llguidance.LLMatcher
    try:
        if wanted.json is not None:
            return matcher.grammar_from_json_schema(wanted.json, overrides=_spacing(wanted))
        if wanted.json_object:
            return matcher.grammar_from_json_schema(_OBJECT, overrides=_spacing(wanted))
        if wanted.regex is not None:
            return matcher.grammar_from_regex(wanted.regex)
        if wanted.choice is not None:
            return llguidance.grammar_from("choice", json.dumps(wanted.choice))
        assert wanted.grammar is not None
        return llguidance.grammar_from("grammar", wanted.grammar)
    except ValueError as error:
        raise _fault(wanted, str(error)) from None


def _spacing(wanted: StructuredOutputs) -> "JsonCompileOptions":
    options: JsonCompileOptions = {"whitespace_flexible": not wanted.disable_any_whitespace}
    if wanted.whitespace_pattern is not None:
        options["whitespace_pattern"] = wanted.whitespace_pattern
    return options


def _check(wanted: StructuredOutputs, matcher: "LLMatcher") -> None:
    if matcher.is_error():
        raise _fault(wanted, matcher.get_error())


def _fault(wanted: StructuredOutputs, message: str) -> InvalidParameter:
    """The library's words, which may show a whole grammar, in one line."""
    kind = next(kind for kind in KINDS if getattr(wanted, kind))
    line = " ".join(message.split())
    return InvalidParameter(
        "structured_outputs", f"has a {kind} that does not compile: {line[:200]}"
    )


class _Vocabulary:
    """A tokenizer as the library asks for it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id if tokenizer.bos_id >= 0 else None
        self.tokens = tokenizer.token_bytes()
        self.special_token_ids = sorted(tokenizer.special_ids)

    def __call__(self, text: Any) -> list[int]:
        """The ids of a text that stands behind another: what is forced is said in these."""
        if not isinstance(text, str):
            raise TypeError("only text can be tokenized")
        return self._tokenizer.encode_inside(text)
