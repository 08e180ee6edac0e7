import json

import numpy as np
import pytest

from schemas.checks import InvalidParameter
from schemas.sampling import SamplingParams
from schemas.structured import SHORTHANDS, StructuredOutputs, structured

SCHEMA = {"type": "object", "properties": {"a": {"properties": {"b": {}}}}}


def fault(value) -> str:
    with pytest.raises(InvalidParameter) as caught:
        structured("structured_outputs", value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ({"regex": "a+"}, StructuredOutputs(regex="a+")),
        ('{"regex": "a+"}', StructuredOutputs(regex="a+")),
        ({"regex": "a+", "json": None, "json_object": False}, StructuredOutputs(regex="a+")),
        ({"choice": ["a", "b", "a"]}, StructuredOutputs(choice=("a", "b"))),
        ({"json_object": True}, StructuredOutputs(json_object=True)),
        ({"json": SCHEMA}, StructuredOutputs(json=json.dumps(SCHEMA))),
        ({"json": json.dumps(SCHEMA)}, StructuredOutputs(json=json.dumps(SCHEMA))),
        (StructuredOutputs(grammar="x"), StructuredOutputs(grammar="x")),
        (None, None),
    ],
)
def test_forms(value, wanted):
    assert structured("structured_outputs", value) == wanted
    hash(wanted)


def test_closed_objects():
    found = structured("x", {"json": SCHEMA, "disable_additional_properties": True})
    schema = json.loads(found.json)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["a"]["additionalProperties"] is False
    assert "additionalProperties" not in schema["properties"]["a"]["properties"]["b"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({}, "must hold one of json, regex, choice, grammar, json_object, got none"),
        ({"regex": "a", "choice": ["b"]}, "got regex and choice"),
        ({"pattern": "a"}, "has no 'pattern'"),
        (5, "must be an object"),
        ("[", "must be JSON"),
        ({"regex": 5}, "must hold regex as text"),
        ({"regex": ""}, "must hold regex as text"),
        ({"choice": []}, "at least one choice"),
        ({"choice": [""]}, "empty string"),
        ({"json": 5}, "must hold a JSON schema"),
        ({"json": "{"}, "must be JSON"),
        ({"json_object": 1}, "must be true or false"),
    ],
)
def test_faults(value, told):
    assert told in fault(value)


@pytest.mark.parametrize(("name", "kind"), SHORTHANDS.items())
def test_shorthands(name, kind):
    value = {"json": SCHEMA, "choice": ["a"], "json_object": True}.get(kind, "x+")
    job = SamplingParams(structured_outputs={"regex": "of the job"})
    assert job.override({name: value}) == job.override({"structured_outputs": {kind: value}})
    assert job.override({name: None}) is job


@pytest.mark.parametrize("false", [False, np.False_])
def test_a_shorthand_that_is_false_is_not_there(false):
    job = SamplingParams(structured_outputs={"regex": "of the job"})
    assert job.override({"guided_json_object": false}) is job
    both = {"guided_json_object": false, "guided_regex": "a"}
    assert job.override(both) == job.override({"guided_regex": "a"})


def test_scalars_of_numpy_are_no_others():
    params = SamplingParams(structured_outputs={"json_object": np.True_, "regex": None})
    assert params.structured_outputs.json_object is True
    json.dumps(params.result_settings())


def test_one_constraint_a_row():
    with pytest.raises(InvalidParameter, match=r"^guided_regex must be the only constraint"):
        SamplingParams().override({"guided_json": "{}", "guided_regex": "a"})


def test_settings_read_back():
    params = SamplingParams(structured_outputs={"choice": ["a", "b"]})
    assert SamplingParams(**json.loads(json.dumps(params.result_settings()))) == params
