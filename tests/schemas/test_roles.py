import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.error import SetupError
from schemas.prompt import ROLES, Roles, resolve

TEXT, IDS = pa.string(), pa.list_(pa.int64())


def roles_of(*fields, columns=None) -> Roles:
    return resolve(pa.schema(list(fields)), columns or {}, "input.parquet")


def refused(*fields, columns=None) -> str:
    with pytest.raises(SetupError) as caught:
        roles_of(*fields, columns=columns)
    return str(caught.value)


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
