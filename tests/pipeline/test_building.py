import collections

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import building
from pipeline.building import BUILT, Builder, make_recipe, with_examples
from pipeline.examples import ExamplesChanged, draw
from pipeline.options import GenerateOptions, PromptOptions, ScoreOptions
from pipeline.template import Template, TemplateFailed
from schemas.error import ErrorCode, SetupError
from tests.jobs import write

SHOTS = {"q": ["a", "b", "c", "d", "e"], "a": ["1", "2", "3", "4", "5"]}


def recipe_of(schema, kind=GenerateOptions, columns=None, **prompting):
    options = kind(
        checkpoint="c",
        input=("in",),
        output="out",
        columns=columns or {},
        prompting=PromptOptions(**prompting),
    )
    building.check(options.prompting)
    return with_examples(make_recipe(options, schema))


def build(table, uids=None, **prompting):
    table = pa.table(table)
    recipe = recipe_of(table.schema, **prompting)
    built, errors = Builder(recipe).build(table, uids or [str(i) for i in range(table.num_rows)])
    return built.column(BUILT).to_pylist(), errors


@pytest.fixture
def shots(tmp_path):
    return write(tmp_path / "shots.parquet", SHOTS)


def test_a_template_reads_columns():
    texts, errors = build(
        {"name": ["Ann", None, "Bob"], "tags": [["x", "y"], [], ["z"]], "rest": [1, 2, 3]},
        template="{{ name }}:{% for t in tags %} {{ t|upper }}{% endfor %}\n",
    )
    assert texts == ["Ann: X Y\n", None, "Bob: Z\n"]
    assert {i: (e.code, e.message) for i, e in errors.items()} == {
        1: (ErrorCode.TEMPLATE_FAILED, "column 'name' is null")
    }


def test_a_template_may_say_what_stands_for_a_null():
    texts, errors = build({"x": ["a", None]}, template="{{ x or 'nobody' }}")
    assert (texts, errors) == (["a", "nobody"], {})


def test_a_fault_is_the_rows_own():
    broken = pa.array([b"ok", b"a\xff"]).view(pa.string())
    texts, errors = build({"x": broken}, template="{{ x }}")
    assert texts == ["ok", None]
    assert "0xff" in errors[1].message
    texts, errors = build({"n": [1, 0]}, template="{{ 6 // n }}")
    assert texts == ["6", None]
    assert "ZeroDivisionError" in errors[1].message


@pytest.mark.parametrize(
    "text",
    [
        "{{ x.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ x.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_a_template_can_do_nothing_but_read(text):
    with pytest.raises(TemplateFailed):
        Template(text).render({"x": [1]})


@pytest.mark.parametrize(
    ("prompting", "words"),
    [
        ({"template": "{{ y }}"}, ["'y'", "no such column", "'x'"]),
        ({"template": "a\n{{ x "}, ["--template, line 2"]),
        ({"template": "{{ x }}", "few_shot": "F", "few_shot_template": "{% if %}"}, ["few-shot-t"]),
        ({"few_shot": "F", "few_shot_template": "{{ q }}"}, ["no column 'prompt'"]),
        (
            {"few_shot": "F", "few_shot_template": "{{ q }}", "columns": {"prompt": "n"}},
            ["'n'", "int64", "--template"],
        ),
        (
            {"template": "{{ x }}", "few_shot": "F", "few_shot_template": "{{ z }}"},
            ["row 0", "'z'"],
        ),
        (
            {"template": "{{ x }}", "few_shot": "F", "few_shot_template": "q", "few_shot_count": 6},
            ["--few-shot-count 6", "5 rows"],
        ),
    ],
)
def test_wrong_set_ups(shots, prompting, words):
    given = {k: shots if v == "F" else v for k, v in prompting.items()}
    with pytest.raises(SetupError) as caught:
        recipe_of(pa.schema([("x", pa.string()), ("n", pa.int64())]), **given)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    "prompting",
    [
        {"few_shot": "x"},
        {"few_shot_template": "x"},
        {"few_shot_count": 2},
        {"few_shot": "x", "few_shot_template": "x", "few_shot_sampling": "per-row"},
        {"few_shot": "x", "few_shot_template": "x", "few_shot_count": 0},
        {"few_shot_sampling": "often"},
    ],
)
def test_options_that_do_not_go_together(prompting):
    with pytest.raises(SetupError, match="--few-shot"):
        PromptOptions(**prompting)


def test_fixed_examples_precede_every_row(shots):
    texts, errors = build(
        {"prompt": ["X", None, "Y"]},
        few_shot=shots,
        few_shot_template="{{ q }}={{ a }}",
        few_shot_count=2,
        separator="; ",
    )
    assert texts == ["a=1; b=2; X", None, "a=1; b=2; Y"]
    assert errors[1].code is ErrorCode.PROMPT_MISSING


def test_an_example_never_gives_its_own_answer_away(shots):
    texts, _ = build(
        {"q": ["a", "c", "z"]},
        template="{{ q }}=",
        few_shot=shots,
        few_shot_template="{{ q }}={{ a }}",
        few_shot_count=3,
        separator=" ",
    )
    assert texts == ["b=2 c=3 d=4 a=", "a=1 b=2 d=4 c=", "a=1 b=2 c=3 z="]


def test_each_row_draws_its_own_by_its_id(shots):
    prompting = {
        "template": "{{ q }}=",
        "few_shot": shots,
        "few_shot_template": "{{ q }}",
        "few_shot_count": 2,
        "few_shot_sampling": "per-row",
        "separator": "",
    }
    ids = [f"uid{i}" for i in range(300)]
    texts, _ = build({"q": ["?"] * 300}, ids, **prompting)
    backwards, _ = build({"q": ["?"] * 300}, ids[::-1], **prompting)
    assert backwards[::-1] == texts
    drawn = collections.Counter(text[:2] for text in texts)
    assert len(drawn) == 5 * 4
    assert all(len(set(pair)) == 2 for pair in drawn)
    own, _ = build({"q": ["b"] * 100}, ids[:100], **prompting)
    assert all("b" not in text[:2] for text in own)


@given(st.text(max_size=5), st.integers(0, 40))
def test_a_draw_is_an_order_of_all(address, total):
    order = list(draw(address, total))
    assert sorted(order) == list(range(total))
    assert order == list(draw(address, total))


def test_a_draw_is_the_same_on_every_machine():
    assert list(draw("0/a", 8)) == [7, 4, 2, 3, 1, 6, 5, 0]


def test_a_table_without_examples_is_refused(tmp_path):
    empty = write(tmp_path / "none.parquet", {"q": pa.array([], pa.string())})
    with pytest.raises(SetupError, match=r"none\.parquet has no rows"):
        recipe_of(pa.schema([("prompt", pa.string())]), few_shot=empty, few_shot_template="{{ q }}")


def test_examples_that_have_changed_are_noticed(shots, tmp_path):
    recipe = recipe_of(
        pa.schema([("prompt", pa.string())]), few_shot=shots, few_shot_template="{{ q }}"
    )
    write(tmp_path / "shots.parquet", {**SHOTS, "a": ["9"] * 5})
    with pytest.raises(ExamplesChanged, match=r"shots\.parquet has changed"):
        Builder(recipe)


def test_what_is_built_plays_the_role_of_the_task():
    schema = pa.schema([("q", pa.string()), ("prompt_token_ids", pa.list_(pa.int32()))])
    recipe = recipe_of(schema, template="{{ q }}")
    options = GenerateOptions(checkpoint="c", input=("i",), output="o")
    roles = {"prompt": BUILT, "prompt_token_ids": ""}
    assert building.roles_of(recipe, options) == roles
    recipe = recipe_of(schema, ScoreOptions, template="{{ q }}")
    options = ScoreOptions(checkpoint="c", input=("i",), output="o")
    assert building.roles_of(recipe, options) == {"context": BUILT, "context_token_ids": ""}
    with pytest.raises(SetupError, match="the template makes the prompt"):
        recipe_of(schema, columns={"prompt": "q"}, template="{{ q }}")
