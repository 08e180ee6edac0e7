"""Whatever is drawn of what the masks allow, the text is what was asked for."""

import json
import re

import hypothesis.strategies as st
import jsonschema
import numpy as np
import pytest
from hypothesis import given

from model.constraint import Constrainer
from model.tokenizer import Tokenizer
from schemas.checks import InvalidParameter
from schemas.structured import StructuredOutputs, structured
from tests import sentencepiece_models as models

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "é"]}, "maxItems": 3},
        "size": {"type": "integer", "minimum": -5, "maximum": 120},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "size"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["trained", "released"])
def tokenizer(request) -> Tokenizer:
    if request.param == "trained":
        return request.getfixturevalue("trained")
    folder = request.getfixturevalue("released_tokenizer_dir")
    return Tokenizer.load(str(folder / "grok-1.model"))


@pytest.fixture(scope="module")
def constrainer(tokenizer) -> Constrainer:
    return Constrainer(tokenizer)


def walk(constrainer, tokenizer, prompt, seed, limit=300, **wanted) -> str | None:
    """The text of a completion drawn at random from what is allowed, if it ends by itself."""
    from llguidance.numpy import fill_next_token_bitmask

    rng = np.random.default_rng(seed)
    closes = np.array([text[-1:] in (b'"', b"}", b"]") for text in tokenizer.token_bytes()])
    grammar = constrainer.compile(structured("structured_outputs", wanted))
    matcher, mask = grammar.start(), grammar.first_mask(prompt)
    ids: list[int] = []
    for _ in range(limit):
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits)
        assert allowed.size
        assert allowed.max() < tokenizer.vocab_size
        # What may end does so soon, else JSON is endless.
        closing = allowed[closes[allowed]]
        pool = closing if closing.size and rng.random() < 0.5 else allowed
        end = tokenizer.eos_id in allowed and rng.random() < 0.3
        ids.append(tokenizer.eos_id if end else int(rng.choice(pool)))
        assert matcher.consume_token(ids[-1])
        if ids[-1] == tokenizer.eos_id:
            return tokenizer.decode_completion(prompt, ids)
        row = np.zeros((1, mask.size), np.int32)
        fill_next_token_bitmask(matcher, row)
        mask = row[0].view(np.uint32)
    return None


PROMPTS = [[1], [1, 400], [400, 401]]  # nothing but a control token, and text


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    "regex",
    [r"[a-z]{2,5}: [0-9]+(\.[0-9]{2})?", r" ?(yes|no), (ä|ö|€|漢)+!", r"\d{1,3}( \w+){2}", r" x"],
)
def test_regex(constrainer, tokenizer, prompt, regex):
    texts = [walk(constrainer, tokenizer, prompt, seed, regex=regex) for seed in range(12)]
    ended = [text for text in texts if text is not None]
    assert len(ended) > 6
    for text in ended:
        assert re.fullmatch(regex, text), text


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("tight", [False, True])
def test_json_schema(constrainer, tokenizer, prompt, tight):
    asked = {"json": SCHEMA, "disable_any_whitespace": tight}
    ended = 0
    for seed in range(12):
        text = walk(constrainer, tokenizer, prompt, seed, **asked)
        if text is not None:
            ended += 1
            jsonschema.validate(json.loads(text), SCHEMA)
            bare = re.sub(r'"(\\.|[^"\\])*"', "", text)
            assert not tight or not re.search(r"\s", bare)
    assert ended > 3


def test_json_with_white_space_of_a_pattern(constrainer, tokenizer):
    asked = {"json": SCHEMA, "whitespace_pattern": r"\n?"}
    texts = [walk(constrainer, tokenizer, [400], seed, **asked) for seed in range(12)]
    ended = [text for text in texts if text is not None]
    assert ended
    spaces = set()
    for text in ended:
        jsonschema.validate(json.loads(text), SCHEMA)
        spaces |= set(re.findall(r"\s+", re.sub(r'"(\\.|[^"\\])*"', "", text)))
    assert "\n" in spaces
    assert spaces <= {"\n", "\n\n"}  # in an empty list it stands twice


def test_json_object(constrainer, tokenizer):
    texts = [walk(constrainer, tokenizer, [400], seed, json_object=True) for seed in range(8)]
    ended = [text for text in texts if text is not None]
    assert ended
    assert all(isinstance(json.loads(text), dict) for text in ended)


@given(
    st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True),
    st.integers(0, 99),
)
def test_choice(trained, choices, seed):
    constrainer = Constrainer(trained)
    assert walk(constrainer, trained, [400], seed, choice=choices) in choices


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "a" ("b" | "c")+ "d"',
        'start: "a" ("b" | "c")+ "d"',
    ],
)
def test_grammar(constrainer, tokenizer, grammar):
    for seed in range(6):
        text = walk(constrainer, tokenizer, [400], seed, grammar=grammar)
        assert text is None or re.fullmatch("a[bc]+d", text)


@pytest.mark.parametrize(
    "wanted",
    [
        {"regex": "("},
        {"regex": r"(?=a)b"},
        {"regex": "\ud800"},
        {"json": {"type": "nothing"}},
        {"json": {"$ref": "http://localhost/elsewhere"}},
        {"grammar": "start: ["},
        {"grammar": 'root ::= "a'},
        {"choice": ["\ud800"]},
    ],
)
def test_what_cannot_be_compiled_is_said_in_a_sentence(trained, wanted):
    with pytest.raises(InvalidParameter) as caught:
        Constrainer(trained).compile(structured("structured_outputs", wanted))
    assert caught.value.param == "structured_outputs"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("special", ["<s>", "</s>"])
def test_a_tokenizer_may_lack_a_beginning_or_an_end(special):
    some = models.piece("<unk>", kind=models.UNKNOWN) + models.piece(special, kind=models.CONTROL)
    tokenizer = Tokenizer(some + models.LETTERS + models.field(2, models.field(3, models.BPE)))
    if special == "<s>":
        with pytest.raises(InvalidParameter, match="needs a tokenizer with an end-of-sequence"):
            Constrainer(tokenizer)
    else:
        assert walk(Constrainer(tokenizer), tokenizer, [5], 0, choice=["abc"]) == "abc"


def test_a_constraint_is_compiled_once(trained):
    constrainer = Constrainer(trained)
    asked = StructuredOutputs(regex="a+")
    assert constrainer.compile(asked) is constrainer.compile(StructuredOutputs(regex="a+"))
