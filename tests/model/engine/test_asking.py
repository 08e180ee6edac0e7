import numpy as np
import pytest

from model.engine.engine import Engine
from model.engine.options import EngineOptions
from schemas.error import ErrorCode, SetupError
from schemas.sampling import SamplingParams
from tests.model.engine.conftest import greedy

PROMPTS = [row["prompt"] for row in greedy("greedy_exact")]


def test_a_lone_text_is_one_prompt(engine):
    params = SamplingParams(temperature=0, max_tokens=3)
    assert engine.generate("import os", params) == engine.generate(["import os"], params)


def test_what_is_no_prompt_is_its_own_error(engine):
    params = SamplingParams(temperature=0, max_tokens=3)
    good = PROMPTS[0]
    wrong = [None, 5, 1.5, b"import os", [1.5], [1, None], ["a"], [True], [[1]]]
    first, *errors, last = engine.generate([good, *wrong, np.asarray(good)], params)
    assert first.outputs == last.outputs != ()
    assert {output.error.code for output in errors} == {ErrorCode.PROMPT_TYPE}
    assert errors[0].error.message == "the prompt is neither text nor token ids but NoneType"
    assert errors[5].error.message == "the prompt holds None at position 1, which is no token id"


def test_one_set_of_parameters_for_each_prompt_or_for_all(engine):
    with pytest.raises(SetupError, match="3 prompts came with 2 SamplingParams; give one for"):
        engine.generate(PROMPTS[:3], [SamplingParams()] * 2)


@pytest.mark.parametrize("params", [{"max_tokens": 2}, [{"max_tokens": 2}], "x", 5])
def test_other_parameters_are_refused(engine, params):
    with pytest.raises(SetupError, match="parameters must be SamplingParams, or a list of them"):
        engine.generate(PROMPTS[:1], params)


def test_no_longer_context_than_the_models(tiny):
    with pytest.raises(SetupError, match="--max-context 4096 exceeds the 256 tokens of"):
        Engine.from_checkpoint(tiny, options=EngineOptions(max_context=4096))


def test_a_huge_top_k_keeps_all(engine):
    """It is beyond the device's integers, and must end no engine."""
    params = SamplingParams(max_tokens=3, seed=4)
    all_kept = engine.generate(PROMPTS[:1], params)
    huge = engine.generate(PROMPTS[:1], params.override({"top_k": 2**40}))
    assert huge[0].outputs == all_kept[0].outputs != ()


def test_a_token_that_ends_a_completion_is_none_of_its_text(engine):
    params = SamplingParams(seed=4, max_tokens=6, ignore_eos=True)
    [whole] = engine.generate(PROMPTS[:1], params)
    ids = whole.outputs[0].token_ids
    at = next(i for i in range(1, 6) if ids[i] not in ids[:i])
    ended = params.override({"stop_token_ids": [ids[at]]})
    [short] = engine.generate(PROMPTS[:1], ended)
    [told] = engine.generate(PROMPTS[:1], ended.override({"include_stop_str_in_output": True}))
    decode = engine.tokenizer.decode_completion
    assert short.outputs[0].token_ids == told.outputs[0].token_ids == ids[: at + 1]
    assert short.outputs[0].text == decode(tuple(PROMPTS[0]), ids[:at], True, None)
    assert told.outputs[0].text == decode(tuple(PROMPTS[0]), ids[: at + 1], True, None)
