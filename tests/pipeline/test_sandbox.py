"""What a template may not do: write what is no data, ask the machine, or take all memory."""

import datetime
import pathlib
import tomllib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import examples
from pipeline.template import Template, TemplateFailed
from schemas.error import SetupError

ROOT = pathlib.Path(__file__).parents[2]
AWARE = datetime.datetime(2020, 1, 2, 3, tzinfo=datetime.UTC)


def rendered(text: str, **row) -> str:
    return Template(text).render(row)


NULLS = [
    "{{ n }}",
    "{{ n|upper }}",
    "{{ n ~ 1 }}",
    "{{ n|trim }}",
    "{{ n|string }}",
    "{{ '%s'|format(n) }}",
    "{{ '%s' % n }}",
    "{{ '{}'.format(n) }}",
    "{{ '{0[k]}'.format(m) }}",
    "{{ [none]|join }}",
    "{{ l|join }}",
    "{{ l }}",
    "{{ m }}",
    "{{ m.k|upper }}",
    "{{ m['k'] ~ '' }}",
    "{{ m.get('no') ~ '' }}",
    "{{ l|first|upper }}",
    "{% for x in l %}{{ x|trim }}{% endfor %}",
    "{{ n + 1 }}",
    "{{ none|upper }}",
    "{{ l|pprint }}",
    "{{ {'a': none}.a|upper }}",
    "{{ '%s'|format(none) }}",
    "{{ n|int }}",
    "{{ [1, n]|sum }}",
    "{{ [1, n]|sort }}",
]


@pytest.mark.parametrize("text", NULLS)
def test_no_way_makes_a_word_of_a_null(text):
    with pytest.raises(TemplateFailed, match="null"):
        rendered(text, n=None, m={"k": None}, l=[None, "a"])


@pytest.mark.parametrize("text", ["{{ n|upper }}", "{{ n ~ 1 }}", "{{ '%s'|format(n) }}"])
def test_no_word_of_a_null_in_an_example(text, tmp_path):
    pq.write_table(pa.table({"n": pa.array([None], pa.string())}), tmp_path / "shots.parquet")
    with pytest.raises(SetupError, match=r"row 0 .* column 'n' is null"):
        examples.read(str(tmp_path / "shots.parquet"), text)


def test_a_null_is_none_and_false():
    text = (
        "{{ n or 'a' }}{{ n|default('b', true) }}{{ 'c' if n is none }}{{ 'd' if not n }}"
        "{{ 'e' if n == none and none == n }}{{ l|select|join }}{{ l|reject('none')|join }}"
        "{{ 'g' if 1 is not none and n is sameas none }}{{ m|tojson }}"
    )
    row = {"n": None, "l": [None, "f"], "m": {"k": [None]}}
    assert rendered(text, **row) == 'abcdeffg{"k": [null]}'
    assert rendered("{{ s.split(none, 1)|join('-') }}", s="a b c") == "a-b c"


@pytest.mark.parametrize(
    "text",
    [
        "{{ [d.nope] }}",
        "{{ [d.nope]|string }}",
        "{{ {'a': d.nope} }}",
        "{% macro m() %}{% endmacro %}{{ [m] }}",
        "{% macro m() %}{% endmacro %}{{ m ~ '' }}",
        "{% macro m() %}{% endmacro %}{{ m|string }}",
        "{% macro m() %}{% endmacro %}{{ '%s' % m }}",
        "{% for a in [1] %}{{ [loop] }}{% endfor %}",
        "{% for a in [1] %}{{ loop ~ '' }}{% endfor %}",
        "{% for a in [1] %}{{ [loop]|join }}{% endfor %}",
        "{% for a in [1] %}{{ '{}'.format(loop) }}{% endfor %}",
        "{% set n = namespace(a=1) %}{{ [n] }}",
        "{% set n = namespace(a=1) %}{{ n ~ '' }}",
        "{{ [b] }}",
        "{{ b|string }}",
    ],
)
def test_what_is_no_data_has_no_text_within_a_value_either(text):
    with pytest.raises(TemplateFailed):
        rendered(text, d={"a": 1}, b=b"\xff")


@pytest.mark.parametrize(
    "text",
    [
        "{{ t.strftime('%_s') }}",
        "{{ t.strftime('%-s') }}",
        "{{ t.strftime(format='%s') }}",
        "{{ '{:%s}'.format(t) }}",
        "{{ t.strptime('2020', '%Y') }}",
        "{{ t.timetuple() }}",
        "{{ t.tzinfo.utcoffset(t) }}",
    ],
)
def test_no_time_zone_of_the_machine(text):
    with pytest.raises(TemplateFailed, match=r"depends on the machine|reads the machine|time zone"):
        rendered(text, t=AWARE)


def test_dates_are_written_by_directives():
    text = "{{ t.strftime('%%s %-d %Y %Z') }} {{ '{:%H:%M}'.format(t) }} {{ t|attr('year') }}"
    assert rendered(text, t=AWARE) == "%s 2 2020 UTC 03:00 2020"


@pytest.mark.parametrize(
    "text",
    [
        "{{ 10**100000 }}",
        "{{ 9**(9**9) }}",
        "{{ 'a' * 10**10 }}",
        "{{ 10**10 * [1] }}",
        "{{ 'a'|center(10**10) }}",
        "{{ 'a'.ljust(10**10) }}",
        "{{ 'a'.zfill(width) }}",
        "{{ 'a'|indent(10**10, true) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d'|format(10**10, 1) }}",
        "{{ '%.999999999f'|format(1.0) }}",
        "{{ '{:9999999999}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=10**10) }}",
        "{{ range(10**9)|list }}",
        "{{ ('%(a)s' * 1000000)|format(a='x' * 1000000) }}",
        "{{ ('{a}' * 1000000).format(a='x' * 1000000) }}",
        "{{ ('a' * 1000000)|wordwrap(1, wrapstring='b' * 10000) }}",
        "{{ (1).to_bytes(10**10, 'big') }}",
        "{% set n = namespace(s='a') %}"
        "{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s=[1]) %}"
        "{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
    ],
)
def test_a_template_cannot_take_all_memory(text):
    with pytest.raises(TemplateFailed):
        rendered(text, width=10**10)


@pytest.mark.parametrize(
    "text",
    [
        "{% include 'a' %}",
        "{% import 'a' as a %}",
        "{% from 'a' import b %}",
        "{% extends 'a' %}",
    ],
)
def test_other_templates_are_refused(text):
    with pytest.raises(SetupError, match="line 1: there are no other templates"):
        Template(text)


def test_a_template_nested_too_deeply_is_refused():
    with pytest.raises(SetupError, match="--template"):
        Template("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")


def test_the_sandbox_has_no_known_hole():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = [
        need
        for extra in needed["optional-dependencies"].values()
        for need in extra
        if need.startswith("jinja2")
    ]
    assert set(bounds) == {"jinja2>=3.1.6"}  # CVE-2025-27516
    with pytest.raises(TemplateFailed):
        rendered("{{ ('{0.__class__}'|attr('format'))(1) }}")
