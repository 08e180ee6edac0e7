import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.error import ErrorCode
from schemas.repetition import RepetitionDetection
from schemas.sampling import ALIASES, PARAM_NAMES, InvalidParameter, SamplingParams

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.lists(st.integers() | st.text(max_size=3) | st.none(), max_size=3),
    st.dictionaries(st.text("5a", max_size=2), st.integers() | st.floats(), max_size=2),
)


def fault(**params) -> InvalidParameter:
    with pytest.raises(InvalidParameter) as caught:
        SamplingParams(**params)
    return caught.value


def test_defaults_are_vllms():
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.max_tokens) == (1, 1.0, 1.0, 16)
    assert params.top_k in (0, -1)
    assert params.seed is None
    assert params.logprobs is None
    assert params.skip_special_tokens
    assert not params.ignore_eos


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", 1.5),
        ("n", 16385),
        ("temperature", 2.01),
        ("n", True),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        pytest.param("temperature", 10**400, id="temperature-huge"),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -2),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e39),
        ("repetition_penalty", 1e-46),
        ("logprobs", False),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -3),
        ("logit_bias", 7),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {-1: 1}),
        ("logit_bias", {7: "x"}),
        ("logit_bias", {7: math.nan}),
        ("logit_bias", [7]),
        ("logit_bias", "{"),
        pytest.param("logit_bias", "[" * 100_000, id="logit_bias-deep"),
        pytest.param("logit_bias", {str(i): 1 for i in range(1025)}, id="logit_bias-long"),
        ("allowed_token_ids", []),
        ("allowed_token_ids", 5),
        ("bad_words", [""]),
        ("repetition_detection", 3),
        ("repetition_detection", {"max_pattern_size": 3}),
        ("repetition_detection", {"max_pattern_size": 3, "min_count": 1}),
        ("repetition_detection", {"max_pattern_size": 3, "min_pattern_size": 4, "min_count": 2}),
        ("repetition_detection", {"pattern": 3}),
        ("seed", 2**63),
        ("stop", [""]),
        ("stop", [7]),
        ("stop", 7),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", "ab"),
        ("stop_token_ids", [1.5]),
        ("ignore_eos", 1),
        ("max_tokens", 0),
        ("max_tokens", -2),
        ("max_tokens", math.inf),
        ("min_tokens", -1),
        ("min_tokens", 17),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
        ("skip_special_tokens", None),
    ],
)
def test_out_of_bounds(name, value):
    found = fault(**{name: value})
    assert found.param == name
    assert re.match(f"{name} (must|has) ", str(found))
    error = found.row_error()
    assert (error.code, error.param) == (ErrorCode.INVALID_PARAMETER, name)


NUMPY = {
    "n": np.int32(2),
    "temperature": np.float16(0.5),
    "top_p": np.float32(0.5),
    "top_k": np.int64(5),
    "logit_bias": {np.int64(3): np.float32(0.5)},
    "allowed_token_ids": np.arange(3),
    "seed": np.uint64(5),
    "stop": np.array(["a"]),
    "ignore_eos": np.bool_(True),
    "max_tokens": np.float64(5),
    "repetition_penalty": np.array(1.5),
}
PYTHON = {
    "n": 2,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "logit_bias": {3: 0.5},
    "allowed_token_ids": [0, 1, 2],
    "seed": 5,
    "stop": ["a"],
    "ignore_eos": True,
    "max_tokens": 5,
    "repetition_penalty": 1.5,
}


def test_scalars_of_numpy_are_numbers():
    params = SamplingParams(**NUMPY)
    assert params == SamplingParams(**PYTHON)
    json.dumps(params.result_settings())
    assert {type(params.n), type(params.top_k), type(params.seed)} == {int}
    assert (type(params.top_p), type(params.stop[0]), type(params.ignore_eos)) == (float, str, bool)
    assert fault(top_p=np.float32(2)).param == fault(top_p=np.float32(math.nan)).param == "top_p"
    assert fault(n=np.bool_(True)).param == "n"


def test_logprobs_may_be_asked_for_as_in_vllm():
    assert SamplingParams(logprobs=True, prompt_logprobs=True) == SamplingParams(
        logprobs=1, prompt_logprobs=1
    )
    assert SamplingParams(logprobs=np.True_) == SamplingParams(logprobs=1)


def test_greedy_has_one_sample():
    assert fault(temperature=0, n=2).param == "n"
    assert SamplingParams(temperature=0).settled
    assert not SamplingParams(temperature=0.1).settled


def test_values_are_put_in_one_form():
    assert SamplingParams(stop="\n").stop == ("\n",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams(max_tokens=5.0) == SamplingParams(max_tokens=5)
    assert type(SamplingParams(temperature=1).temperature) is float
    assert SamplingParams(stop_token_ids=[1, 2]).stop_token_ids == (1, 2)


@pytest.mark.parametrize(
    "value",
    [
        {7: -2, 50: 300},
        {"7": -2.0, "50": 100, "9": None},
        [(7, -2), (50, math.inf)],
        '{"50": 100, "7": -2}',
    ],
)
def test_a_bias_may_come_in_several_forms(value):
    assert SamplingParams(logit_bias=value).logit_bias == ((7, -2.0), (50, 100.0))


@pytest.mark.parametrize(
    "value",
    [
        {"max_pattern_size": 9, "min_count": 3},
        {"max_pattern_size": 9.0, "min_pattern_size": None, "min_count": 3},
        '{"max_pattern_size": 9, "min_pattern_size": 1, "min_count": 3}',
        RepetitionDetection(max_pattern_size=9, min_pattern_size=1, min_count=3),
    ],
)
def test_repetition_detection_may_come_in_several_forms(value):
    found = SamplingParams(repetition_detection=value).repetition_detection
    assert (found.max_pattern_size, found.min_pattern_size, found.min_count) == (9, 1, 3)
    assert SamplingParams(repetition_detection={"max_pattern_size": 0}) == SamplingParams()


def test_a_low_temperature_is_raised_as_in_vllm():
    assert SamplingParams(temperature=1e-5).temperature == 0.01
    assert SamplingParams(temperature=0).temperature == 0


def test_max_tokens_may_reach_to_the_contexts_end():
    params = SamplingParams(max_tokens=None, min_tokens=5)
    assert params == SamplingParams(max_tokens=-1, min_tokens=5)
    assert SamplingParams().override({"max_tokens": -1}).max_tokens == -1
    assert (params.least_room, params.within(30).max_tokens) == (5, 30)
    numbered = SamplingParams(max_tokens=7, min_tokens=5)
    assert (numbered.least_room, numbered.within(30)) == (7, numbered)


def test_early_stops_are_bounded():
    many = range(3, 131)
    assert fault(stop_token_ids=many, min_tokens=1).param == "stop_token_ids"
    assert len(SamplingParams(stop_token_ids=many).stop_token_ids) == 128


def test_a_long_value_does_not_fill_the_message():
    assert len(str(fault(temperature="x" * 10_000))) < 120


@given(st.dictionaries(st.sampled_from(PARAM_NAMES), ANYTHING, max_size=4))
def test_a_value_is_taken_or_refused_by_name(values):
    try:
        params = SamplingParams(**values)
    except InvalidParameter as error:
        assert error.param in PARAM_NAMES
    else:
        assert SamplingParams(**params.result_settings()) == params
        json.dumps(params.result_settings(), allow_nan=False)
        hash(params)


@given(st.dictionaries(st.sampled_from([*PARAM_NAMES, *ALIASES]), ANYTHING, max_size=3))
def test_an_override_is_the_same_as_setting_it(values):
    default = SamplingParams(max_tokens=9, temperature=0.5)
    settings = {"max_tokens": 9, "temperature": 0.5}
    for name, value in values.items():
        if value is not None:
            settings[ALIASES.get(name, name)] = value
    try:
        want = SamplingParams(**settings)
    except InvalidParameter as error:
        with pytest.raises(InvalidParameter, match=rf"^{error.param} "):
            default.override(values)
    else:
        assert default.override(values) == want


def test_nulls_override_nothing():
    params = SamplingParams(max_tokens=9)
    assert params.override({"max_tokens": None, "seed": None}) is params


def test_an_unknown_name_is_refused():
    with pytest.raises(InvalidParameter, match="is no sampling parameter"):
        SamplingParams().override({"warmth": 1})


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_aliases(alias, name):
    value = {"stop": ["x"]}.get(name, 3)
    assert SamplingParams().override({alias: value}) == SamplingParams(**{name: value})
