import datetime
import decimal
import pathlib
import subprocess
import sys

import pyarrow as pa
import pytest

from pipeline.building import BUILT, Builder, make_recipe
from pipeline.options import GenerateOptions, PromptOptions
from pipeline.template import Template, TemplateFailed
from schemas.error import SetupError

AWARE = datetime.datetime(2020, 1, 2, 3, tzinfo=datetime.UTC)


def rendered(text: str, **row) -> str:
    return Template(text).render(row)


def built(text: str, table: dict):
    """As a job would: columns of the schema, values of the table."""
    rows = pa.table(table)
    prompting = PromptOptions(template=text)
    options = GenerateOptions(checkpoint="c", input=("in",), output="o", prompting=prompting)
    texts, errors = Builder(make_recipe(options, rows.schema)).build(rows, ["0"])
    return texts.column(BUILT).to_pylist()[0], {i: e.message for i, e in errors.items()}


@pytest.mark.parametrize("flag", ["--template", "--few-shot-template"])
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a\n{{ x|random }}", "line 2: the filter random"),
        ("{% filter random %}ab{% endfilter %}", "line 1: the filter random"),
        ("{% if x %}{{ x|list|random }}{% endif %}", "the filter random"),
        ("{{ lipsum(n=1) }}", "line 1: lipsum()"),
    ],
)
def test_nothing_is_left_to_chance(text, what, flag):
    with pytest.raises(SetupError, match="the same in every run") as caught:
        Template(text, flag)
    assert str(caught.value).startswith(f"{flag}, line")
    assert what in str(caught.value)
    with pytest.raises(TemplateFailed, match="random"):
        rendered("{{ [[1, 2]]|map('random')|list }}")


PURE = """
from pipeline.template import Template
row = {"a": dict.fromkeys("abcdefghij"), "b": [3, 1, 2, 1], "c": {"z": 1, "y": [2]}}
print(Template(
    "{{ a.keys()|list }} {{ b|unique|list }} {{ b|sort }} {{ c }} {{ c|tojson }} {{ c|pprint }}"
    "{{ c|dictsort }} {{ c.items()|map('last')|list }} {{ b|batch(2) }} {{ c|xmlattr }}"
).render(row))
"""


def test_the_same_text_in_every_process():
    run = [sys.executable, "-c", PURE]
    root = pathlib.Path(__file__).parents[2]
    texts = {
        subprocess.run(
            run, env={"PYTHONHASHSEED": seed}, cwd=root, capture_output=True, check=True
        ).stdout
        for seed in "123"
    }
    assert len(texts) == 1
    assert b"0x" not in texts.pop()


@pytest.mark.parametrize(
    "text",
    [
        "{{ (d.keys() - e)|list }}",
        "{{ t.now() }}",
        "{{ t.today() }}",
        "{{ t.timestamp() }}",
        "{{ t.astimezone() }}",
        "{{ t['utcnow']() }}",
        "{{ t|attr('now') }}",
        "{{ t.strftime('%s') }}",
        "{{ '{0.now}'.format(t) }}",
    ],
)
def test_no_order_of_sets_and_no_clock(text):
    with pytest.raises(TemplateFailed):
        rendered(text, d={"a": 1, "b": 2}, e=["a"], t=datetime.datetime(2020, 1, 2))


def test_dates_give_what_they_hold():
    row = {"t": AWARE, "d": datetime.date(2020, 1, 2)}
    assert (
        rendered("{{ t.timestamp() }} {{ t.year }} {{ d }}", **row)
        == "1577934000.0 2020 2020-01-02"
    )
    assert rendered("{{ d.strftime('%d %b') }} {{ t - t }}", **row) == "02 Jan 0:00:00"


@pytest.mark.parametrize(
    "name", ["range", "dict", "cycler", "joiner", "namespace", "lipsum", "self"]
)
def test_columns_go_before_functions(name):
    assert built(f"{{{{ {name} }}}}!", {name: ["mine"], "x": [1]}) == ("mine!", {})
    assert Template(f"{{{{ {name} }}}}").names == [name]


def test_functions_are_there_where_no_column_is():
    text = "{% for i in range(3) %}{{ i }}{% endfor %}{{ x }}{{ dict(a=1) }}"
    assert built(text, {"x": [7]}) == ("0127{'a': 1}", {})
    counting = (
        "{% set n = namespace(a=0) %}{% for i in x %}{% set n.a = n.a + i %}{% endfor %}{{ n.a }}"
    )
    assert built(counting, {"x": [[1, 2]]}) == ("3", {})
    assert rendered("{% set c = cycler(1, 2) %}{{ c.next() }}{{ c.next() }}") == "12"
    assert rendered("{% set j = joiner('-') %}{{ j() }}a{{ j() }}b") == "a-b"
    assert rendered("{% macro m(a) %}<{{ a }}>{% endmacro %}{{ m(1) }}") == "<1>"
    assert (
        rendered("{% for a in [1, 2] %}{{ loop.index }}{{ loop.cycle('x', 'y') }}{% endfor %}")
        == "1x2y"
    )


@pytest.mark.parametrize("name", ["items", "values", "keys", "get", "copy", "pop", "update"])
def test_a_mappings_own_keys_go_before_its_methods(name):
    doc = pa.array([{name: "mine"}])
    assert built(f"{{{{ doc.{name} }}}}", {"doc": doc}) == ("mine", {})
    assert built(f"{{{{ doc['{name}'] }}}}", {"doc": doc}) == ("mine", {})
    assert built(f"{{{{ '{{0.{name}}}'.format(doc) }}}}", {"doc": doc}) == ("mine", {})


def test_a_mappings_methods_are_there_for_other_keys():
    assert rendered("{{ d.items()|list }}{{ d.get('b', 2) }}", d={"a": 1}) == "[('a', 1)]2"
    with pytest.raises(TemplateFailed):
        rendered("{{ d.pop('a') }}", d={"a": 1})


@pytest.mark.parametrize(
    "text",
    [
        "{{ d.items }}",
        "{{ d.items|string }}",
        "{{ d.items ~ '' }}",
        "{{ '%s' % d.items }}",
        "{{ '{}'.format(d.items) }}",
        "{{ '{0.items}'.format(d) }}",
        "{{ [d.items] }}",
        "{{ [d.items]|join }}",
        "{{ [d.items]|pprint }}",
        "{{ d|attr('items') }}",
        "{{ d['keys'] }}",
        "{{ s.upper }}",
        "{{ s.format }}",
        "{{ range }}",
        "{{ range|string }}",
        "{{ dict }}",
        "{{ cycler(1) }}",
        "{{ cycler(1)|string }}",
        "{{ joiner()|string }}",
        "{{ namespace(a=1) }}",
        "{% for a in s %}{{ loop }}{% endfor %}",
        "{% macro m() %}{% endmacro %}{{ m }}",
        "{{ self }}",
        "{{ b }}",
    ],
)
def test_what_is_no_data_has_no_text(text):
    with pytest.raises(TemplateFailed) as caught:
        rendered(text, d={"a": 1}, s="text", b=b"\xff")
    assert "0x" not in str(caught.value)


def test_what_is_data_has_its_text():
    row = {
        "n": 1,
        "f": 0.5,
        "b": True,
        "d": decimal.Decimal("1.50"),
        "l": [1, "a"],
        "m": {"k": [None, 2]},
    }
    assert rendered("{{ n }} {{ f }} {{ b }} {{ d }} {{ l }} {{ m|tojson }}", **row) == (
        """1 0.5 True 1.50 [1, 'a'] {"k": [null, 2]}"""
    )
    assert rendered("{{ range(2) }}{{ m.keys() }}{{ m.items()|length }}", **row) == "[0, 1]['k']1"
    assert rendered("{{ l|map('string') }}{{ l|reverse }}", **row) == "['1', 'a']['a', 1]"
    assert built("{{ s.b }}", {"s": pa.array([{"b": b"bytes"}])}) == ("bytes", {})
    assert rendered("{{ [b] }}{{ b ~ b }}", b=b"ab") == "['ab']abab"


def test_a_value_that_python_cannot_hold_is_the_rows_fault():
    text, errors = built("{{ d }}", {"d": pa.array([10**7], pa.date32())})
    assert text is None
    assert "column 'd' cannot be read as date32" in errors[0]
