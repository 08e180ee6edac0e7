import decimal
import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.error import ErrorCode
from schemas.prompt import resolve, validate
from schemas.sampling import SamplingParams

DEFAULTS = SamplingParams(max_tokens=8)
TEXT, IDS = pa.string(), pa.list_(pa.int64())


def check(table: pa.Table, columns=None, defaults=DEFAULTS):
    return validate(table, resolve(table.schema, columns or {}, "input.parquet"), defaults)


def only_error(table: pa.Table, columns=None):
    good, errors = check(table, columns)
    assert good == []
    [error] = errors.values()
    return error


def test_text():
    [row], errors = check(pa.table({"prompt": ["a b"]}))
    assert errors == {}
    assert (row.index, row.text, row.token_ids, row.params) == (0, "a b", None, DEFAULTS)


def test_bytes_are_text():
    [row], _ = check(pa.table({"prompt": pa.array(["é".encode()])}))
    assert row.text == "é"


def test_a_dictionary_is_text():
    rows, _ = check(pa.table({"prompt": pa.array(["a", "b", "a"]).dictionary_encode()}))
    assert [row.text for row in rows] == ["a", "b", "a"]


def test_ids():
    [row], _ = check(pa.table({"prompt_token_ids": [[3, 1, 4]]}))
    assert (row.text, row.token_ids) == (None, [3, 1, 4])


def test_either_will_do():
    table = pa.table({"prompt": ["a", None], "prompt_token_ids": [None, [5]]})
    rows, errors = check(table)
    assert [(row.text, row.token_ids) for row in rows] == [("a", None), (None, [5])]
    assert errors == {}


def test_both():
    error = only_error(pa.table({"prompt": ["a"], "prompt_token_ids": [[5]]}))
    assert error.code == ErrorCode.PROMPT_AMBIGUOUS


def test_neither():
    table = pa.table({"prompt": pa.array([None], TEXT), "prompt_token_ids": pa.array([None], IDS)})
    error = only_error(table)
    assert error.code == ErrorCode.PROMPT_MISSING
    assert error.message == "prompt and prompt_token_ids are null"


def test_null():
    error = only_error(pa.table({"question": pa.array([None], TEXT)}), {"prompt": "question"})
    assert (error.code, error.param) == (ErrorCode.PROMPT_MISSING, "question")
    assert error.message == "question is null"


def test_bytes_that_are_no_text():
    error = only_error(pa.table({"prompt": [b"ab\xff"]}))
    assert error.code == ErrorCode.PROMPT_TYPE
    assert "not valid UTF-8 (byte 0xff at 2)" in error.message


def test_a_null_among_ids():
    error = only_error(pa.table({"prompt_token_ids": [[1, None]]}))
    assert error.code == ErrorCode.PROMPT_TYPE
    assert "null at position 1" in error.message


def test_parameters_of_a_row():
    table = pa.table(
        {
            "prompt": ["a", "b", "c"],
            "max_tokens": [1.0, None, 3.0],
            "stop": [["x"], None, ["y", "z"]],
            "temperature": pa.array([None, decimal.Decimal("0.5"), None]),
        }
    )
    rows, errors = check(table)
    assert errors == {}
    assert [row.params.max_tokens for row in rows] == [1, 8, 3]
    assert [row.params.stop for row in rows] == [("x",), (), ("y", "z")]
    assert [row.params.temperature for row in rows] == [1.0, 0.5, 1.0]


@pytest.mark.parametrize(
    "kind",
    [
        pa.map_(pa.int32(), pa.float32()),
        pa.map_(pa.string(), pa.float64()),
        pa.struct([("7", pa.float64()), ("50", pa.int64())]),
        pa.string(),
    ],
)
def test_a_bias_in_a_column(kind):
    rows = [{"7": -2.5, "50": 4}, None, {"50": 1}]
    if pa.types.is_map(kind):
        key = int if pa.types.is_integer(kind.key_type) else str
        rows = [None if r is None else [(key(k), v) for k, v in r.items()] for r in rows]
    elif pa.types.is_string(kind):
        rows = [None if r is None else json.dumps(r) for r in rows]
    table = pa.table({"prompt": ["a", "b", "c"], "logit_bias": pa.array(rows, kind)})
    good, errors = check(table)
    assert errors == {}
    biases = [row.params.logit_bias for row in good]
    assert biases == [((7, -2.5), (50, 4.0)), (), ((50, 1.0),)]


def test_constraints_in_columns():
    table = pa.table(
        {
            "prompt": ["a", "b", "c", "d"],
            "guided_regex": ["x+", None, None, "y"],
            "structured_outputs": [None, {"choice": ["u", "v"], "regex": None}, None, None],
            "guided_choice": [None, None, None, ["z"]],
        }
    )
    good, errors = check(table)
    wanted = [row.params.structured_outputs for row in good]
    assert [w and (w.regex or w.choice) for w in wanted] == ["x+", ("u", "v"), None]
    assert errors[3].param in ("guided_choice", "guided_regex")


def test_a_bad_parameter_is_the_rows_own():
    table = pa.table({"prompt": ["a", "b", "c"], "max_tokens": [4, -2, 5]})
    rows, errors = check(table)
    assert [row.index for row in rows] == [0, 2]
    assert (errors[1].code, errors[1].param) == (ErrorCode.INVALID_PARAMETER, "max_tokens")


def test_a_row_that_contradicts_the_job():
    defaults = SamplingParams(min_tokens=6, max_tokens=8)
    table = pa.table({"prompt": ["a"], "max_tokens": [5]})
    good, errors = check(table, defaults=defaults)
    assert good == []
    assert errors[0].param == "min_tokens"


def test_a_stop_string_that_is_no_text():
    error = only_error(pa.table({"prompt": ["a"], "stop": [b"\xfe"]}))
    assert (error.code, error.param) == (ErrorCode.INVALID_PARAMETER, "stop")


PROMPTS = st.none() | st.text(max_size=5) | st.binary(max_size=5)
NUMBERS = st.none() | st.floats(width=64) | st.integers(-(2**53), 2**53).map(float)
WILD = {
    "prompt": (pa.binary(), PROMPTS),
    "prompt_token_ids": (
        IDS,
        st.none() | st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=3),
    ),
    "max_tokens": (pa.float64(), NUMBERS),
    "temperature": (pa.float64(), NUMBERS),
    "seed": (pa.uint64(), st.none() | st.integers(0, 2**64 - 1)),
    "n": (pa.int64(), st.none() | st.integers(-2, 5)),
    "stop": (pa.list_(pa.binary()), st.none() | st.lists(PROMPTS, max_size=2)),
    "stop_token_ids": (IDS, st.none() | st.lists(st.none() | st.integers(-1, 9), max_size=2)),
    "ignore_eos": (pa.bool_(), st.none() | st.booleans()),
    "bad_words": (pa.binary(), PROMPTS),
    "logit_bias": (
        pa.map_(pa.string(), pa.float64()),
        st.none() | st.lists(st.tuples(st.text("57x", max_size=2), NUMBERS), max_size=2),
    ),
}


@given(st.data())
def test_each_row_is_good_or_an_error_whatever_it_holds(data):
    names = data.draw(st.sets(st.sampled_from(sorted(WILD))))
    names |= {data.draw(st.sampled_from(["prompt", "prompt_token_ids"]))}
    count = data.draw(st.integers(0, 5))
    table = pa.table(
        {
            name: pa.array(
                data.draw(st.lists(WILD[name][1], min_size=count, max_size=count)),
                WILD[name][0],
            )
            for name in sorted(names)
        }
    )
    good, errors = check(table)
    assert sorted([row.index for row in good] + list(errors)) == list(range(count))
    assert [row.index for row in good] == sorted(row.index for row in good)
    for row in good:
        assert (row.text is None) != (row.token_ids is None)
    for error in errors.values():
        assert error.sentence()
        assert error.param in names
    for i in range(count):
        alone = check(table.slice(i, 1))
        assert [r.params for r in alone[0]] == [r.params for r in good if r.index == i]
        assert alone[1].get(0) == errors.get(i)
