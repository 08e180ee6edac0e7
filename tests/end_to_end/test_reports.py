"""What a command tells of a finished run: the summary and the report."""

import datetime
import html

import pyarrow as pa
import pytest

KINDS = {
    "struct": (pa.array([{"title": "T", "body": b"B", "at": [datetime.date(2020, 1, 2)]}]), '"T"'),
    "map": (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "a"),
    "list": (pa.array([["one", "two"]]), "one"),
    "int": (pa.array([417]), "417"),
    "float": (pa.array([2.75]), "2.75"),
    "bool": (pa.array([True]), "true"),
    "date": (pa.array([datetime.date(2021, 2, 3)]), "2021-02-03"),
    "binary": (pa.array([b"bytes\xff"]), "not valid UTF-8"),
    "text as binary": (pa.array([b"bytes"]), "bytes"),
    "null": (pa.nulls(1), "null"),
}


@pytest.mark.parametrize("task", ["generate", "score"])
@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_any_kind_are_told_of(command, task, kind):
    column, told = KINDS[kind]
    rows = {"x": column, "beside": pa.array([10**7], pa.date32())}  # no date that Python has
    own = {"--max-tokens": 1} if task == "generate" else {}
    if task == "score":
        rows["continuation"] = pa.array([" a"])
    outcome = command(
        *(task, "--template", "So {{ x or 'none' }}:", "--report"),
        *(word for pair in own.items() for word in pair),
        table=pa.table(rows),
    )
    bad = kind == "binary"  # its bytes are no text
    assert (outcome.code, outcome.err) == (3 if bad else 0, "")
    page = (outcome.folder / "_report.html").read_text()
    assert "report: " in outcome.out
    if not bad and kind != "null":
        assert told in outcome.out
    assert told in html.unescape(page)
    assert (outcome.manifest["succeeded"], outcome.manifest["errored"]) == (1 - bad, bad)


def test_a_fault_of_the_summary_is_no_fault_of_the_run(generate, monkeypatch):
    def broken(*_):
        raise TypeError("unhashable")

    monkeypatch.setattr("pipeline.report.terminal.first_completions", broken)
    outcome = generate("--report", "--max-tokens", 1, table={"prompt": ["a"]})
    assert outcome.code == 0
    assert outcome.sentence() == "no summary: unhashable"
    assert (outcome.folder / "_report.html").exists()


def test_a_fault_of_the_report_is_no_fault_of_the_run(generate, monkeypatch):
    def broken(*_, **__):
        raise TypeError("unhashable")

    monkeypatch.setattr("pipeline.report.collect.collect", broken)
    outcome = generate("--report", "--max-tokens", 1, table={"prompt": ["a"]})
    assert outcome.code == 0
    assert outcome.sentence() == "no report: unhashable"
