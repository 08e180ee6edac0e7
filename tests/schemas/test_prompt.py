import decimal
import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.error import ErrorCode, SetupError
from schemas.prompt import ROLES, Roles, resolve, validate
from schemas.sampling import SamplingParams

DEFAULTS = SamplingParams(max_tokens=8)
TEXT, IDS = pa.string(), pa.list_(pa.int64())


def roles_of(*fields, columns=None) -> Roles:
    return resolve(pa.schema(list(fields)), columns or {}, "input.parquet")


def refused(*fields, columns=None) -> str:
    with pytest.raises(SetupError) as caught:
        roles_of(*fields, columns=columns)
    return str(caught.value)


def check(table: pa.Table, columns=None, defaults=DEFAULTS):
    return validate(table, resolve(table.schema, columns or {}, "input.parquet"), defaults)


def only_error(table: pa.Table, columns=None):
    good, errors = check(table, columns)
    assert good == []
    [error] = errors.values()
    return error


def test_by_name():
    roles = roles_of(("id", pa.int32()), ("prompt", TEXT), ("top_p", pa.float32()))
    assert roles == Roles(prompt="prompt", sampling={"top_p": "top_p"})


def test_by_map():
    roles = roles_of(
        ("question", TEXT),
        ("key", TEXT),
        ("budget", pa.int16()),
        columns={"prompt": "question", "custom_id": "key", "max_tokens": "budget"},
    )
    assert roles.prompt == "question"
    assert roles.custom_id == "key"
    assert roles.sampling == {"max_tokens": "budget"}


def test_an_alias_sets_what_it_stands_for():
    roles = roles_of(("prompt", TEXT), ("max_new_tokens", pa.int64()))
    assert roles.sampling == {"max_tokens": "max_new_tokens"}


def test_an_empty_name_lets_a_column_pass():
    fields = (("prompt", TEXT), ("seed", TEXT))
    assert "column 'seed' holds string, but seed takes numbers" in refused(*fields)
    assert roles_of(*fields, columns={"seed": ""}).sampling == {}


def test_a_column_mapped_away_plays_no_second_role():
    roles = roles_of(("prompt", TEXT), ("other", TEXT), columns={"prompt": "other"})
    assert roles.prompt == "other"


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.null(),
    ],
)
def test_types_of_text(kind):
    assert roles_of(("prompt", kind)).prompt == "prompt"


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.uint32()),
        pa.large_list(pa.int64()),
        pa.list_(pa.int32(), 4),
        pa.list_(pa.null()),
        pa.null(),
    ],
)
def test_types_of_ids(kind):
    assert roles_of(("prompt_token_ids", kind)).prompt_token_ids == "prompt_token_ids"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("temperature", pa.decimal128(5, 2)),
        ("max_tokens", pa.float64()),
        ("stop", TEXT),
        ("stop", pa.list_(TEXT)),
        ("stop_token_ids", IDS),
        ("ignore_eos", pa.bool_()),
        ("logprobs", pa.null()),
        ("bad_words", pa.list_(TEXT)),
        ("allowed_token_ids", IDS),
        ("logit_bias", TEXT),
        ("logit_bias", pa.map_(pa.int32(), pa.float32())),
        ("logit_bias", pa.struct([("7", pa.float64())])),
        ("structured_outputs", TEXT),
        ("structured_outputs", pa.struct([("choice", pa.list_(TEXT)), ("regex", TEXT)])),
        ("guided_json", TEXT),
        ("guided_choice", pa.list_(TEXT)),
        ("guided_json_object", pa.bool_()),
        ("repetition_detection", TEXT),
        ("repetition_detection", pa.struct([("max_pattern_size", pa.int8())])),
    ],
)
def test_types_of_parameters(name, kind):
    assert roles_of(("prompt", TEXT), (name, kind)).sampling == {name: name}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("prompt", pa.int64()),
        ("prompt", pa.list_(TEXT)),
        ("prompt_token_ids", TEXT),
        ("prompt_token_ids", pa.list_(pa.float32())),
    ],
)
def test_a_prompt_of_another_type_is_refused(name, kind):
    sentence = refused((name, kind))
    assert sentence.startswith(f"column '{name}' holds {kind}, but {name} takes ")
    assert sentence.endswith("cast it, or name another: --columns prompt=NAME")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("temperature", TEXT),
        ("max_tokens", pa.bool_()),
        ("stop", pa.int64()),
        ("stop_token_ids", pa.int64()),
        ("ignore_eos", pa.int8()),
        ("logit_bias", pa.float64()),
        ("guided_regex", pa.list_(TEXT)),
        ("structured_outputs", pa.list_(TEXT)),
        ("allowed_token_ids", pa.int64()),
        ("n", pa.timestamp("s")),
    ],
)
def test_a_parameter_of_another_type_is_refused(name, kind):
    sentence = refused(("prompt", TEXT), (name, kind))
    assert f"column '{name}' holds {kind}, but {name} takes " in sentence
    assert f"--columns {name}=" in sentence


def test_no_prompt():
    sentence = refused(("text", TEXT), ("id", pa.int64()))
    assert "input.parquet has no column 'prompt' or 'prompt_token_ids'" in sentence
    assert "only 'text', 'id'" in sentence
    assert "--columns prompt=NAME" in sentence


def test_many_columns_are_not_all_listed():
    sentence = refused(*((f"column_{i}", TEXT) for i in range(500)))
    assert "and 488 more" in sentence
    assert len(sentence) < 500


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"prompt": "gone"}, "has no column 'gone', only 'prompt', 'max_tokens'"),
        ({"custom_id": "prompt", "prompt": "prompt"}, "a column has one role"),
        ({"promt": "prompt"}, "'promt' is no role"),
        ({"max_new_tokens": "prompt"}, "both set max_tokens"),
    ],
)
def test_a_wrong_map(columns, told):
    assert told in refused(("prompt", TEXT), ("max_tokens", pa.int64()), columns=columns)


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


@given(
    st.dictionaries(st.sampled_from([*ROLES, "other"]), st.sampled_from(["a", "b", "prompt", ""]))
)
def test_a_map_is_taken_or_refused_with_a_sentence(columns):
    schema = pa.schema([("prompt", TEXT), ("a", pa.int64()), ("b", IDS)])
    try:
        roles = resolve(schema, columns, "input.parquet")
    except SetupError as error:
        assert str(error)
    else:
        used = [roles.prompt, roles.prompt_token_ids, roles.custom_id, *roles.sampling.values()]
        used = [column for column in used if column is not None]
        assert len(used) == len(set(used))
        assert set(used) <= set(schema.names)
