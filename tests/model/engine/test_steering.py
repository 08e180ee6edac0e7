"""Through the engine: what biases, penalties, masks and bad words make of whole completions."""

import pytest

from model.checkpoint.source import open_checkpoint
from model.engine.request import Request
from model.engine.rules import resolve
from schemas.sampling import SamplingParams
from tests.model import reference
from tests.model.engine import plain
from tests.model.engine.conftest import GOLDEN, greedy

PROMPT = tuple(greedy("greedy_exact")[1]["prompt"])


@pytest.fixture(scope="module")
def weights():
    return reference.dequantized(open_checkpoint(str(GOLDEN)))


@pytest.mark.parametrize(
    "wish",
    [
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 0.6},
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0, "presence_penalty": -1.0},
        {"logit_bias": {7: 6.0, 11: 5.5}, "frequency_penalty": 1.0},
        {"allowed_token_ids": range(300, 330)},
        {"bad_words": ["t", "e", "in", " a", "the", "def"], "frequency_penalty": 0.5},
        {"min_tokens": 10, "logit_bias": {2: 100}, "presence_penalty": 0.5},
        {"min_tokens": 10, "logit_bias": {2: 100, 7: 90}, "ignore_eos": True},
        {"min_tokens": 9, "logit_bias": {2: 90, 7: 100}, "ignore_eos": True, "stop_token_ids": [7]},
    ],
)
def test_greedy_completions_follow_the_plain_definition(engine, weights, wish):
    free = SamplingParams(temperature=0, max_tokens=24)
    params = free.override(wish)
    request = Request(prompt_token_ids=PROMPT, params=params)
    # Twice the same slot's neighbours: what one leaves in the tables is not the other's.
    answers = engine.generate([PROMPT, PROMPT, PROMPT], [params, free, params])
    steered, plainly, again = (a.outputs[0].token_ids for a in answers)
    assert steered == again
    assert steered != plainly, "the parameter changes nothing: choose another"
    rules = resolve(request, engine.config, engine.max_context, engine.tokenizer, lambda: None)
    logits = reference.logits(engine.config, weights, [*PROMPT, *steered])
    for i, token in enumerate(steered):
        banned = rules.early_ids if i < params.min_tokens else ()
        wanted = plain.changed(
            logits[len(PROMPT) - 1 + i], params, PROMPT, steered[:i], rules.bad_words, banned
        )
        assert wanted[token] > wanted.max() - 2e-3, i


def test_bad_words_are_watched_for_in_both_spellings(engine):
    words = ["import", "def", "return x"]
    request = Request(prompt_token_ids=PROMPT, params=SamplingParams(bad_words=words))
    found = resolve(request, engine.config, 256, engine.tokenizer, lambda: None).bad_words
    decode = engine.tokenizer.decode
    for word in words:
        assert any(decode(ids).strip() == word for ids in found)
        inside = [
            ids for ids in found if decode((*engine.tokenizer.encode("x"), *ids)) == "x" + word
        ]
        assert inside, word


def test_a_bad_word_that_is_all_that_is_likely_never_comes(engine):
    params = SamplingParams(temperature=0.5, max_tokens=60, bad_words=["a", "e"], seed=4)
    [output] = engine.generate([PROMPT], params)
    request = Request(prompt_token_ids=PROMPT, params=params)
    rules = resolve(request, engine.config, 256, engine.tokenizer, lambda: None)
    ids = output.outputs[0].token_ids
    for word in rules.bad_words:
        cuts = [ids[i : i + len(word)] for i in range(len(ids))]
        assert tuple(word) not in cuts
