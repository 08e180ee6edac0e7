import datetime
import io

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipeline.commit import commit
from pipeline.finalize import finalize
from pipeline.report.terminal import (
    first_completions,
    print_summary,
    set_up_line,
    shown,
    summary_table,
)
from tests.jobs import answer, prompts_of


def drawn(table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


@pytest.fixture
def finished(prepare):
    job = prepare({"prompt": ["a", None, "b\x1b[2Jc", "x = 1 " * 35]}, chunk_rows=2)
    for chunk in prompts_of(job):
        commit(job, answer(chunk))
    return job, finalize(job)


def test_what_is_about_to_be_done(prepare, tmp_path):
    job = prepare({"prompt": ["a", "b", "c"]}, chunk_rows=2)
    line = set_up_line(job)
    assert line.startswith("3 rows in 1 file → 2 parts · ")
    assert line.endswith(f"bf16 · {tmp_path}/out")
    commit(job, answer(prompts_of(job)[0]))
    assert "2 parts, 1 of them done" in set_up_line(prepare(chunk_rows=2))


def test_totals(finished):
    _, manifest = finished
    counters = {
        "parts_committed": 1,
        "busy_milliseconds": 2000,
        "decoded_tokens": 5000,
        "decode_rows": 200,
        "decode_rows_used": 150,
        "load_milliseconds": 1500,
    }
    text = drawn(summary_table(manifest, counters, 1))
    for told in (
        "4 in = 3 succeeded + 1 errored; 4 out",
        "prompt_missing 1",
        "1 written, 1 there before",
        "2,500 tokens/s while busy · slots 75% full · loaded in 1.5 s",
    ):
        assert told in text
    assert "tokens/s" not in drawn(summary_table(manifest, {}, 2))
    two = {**manifest, "engines": [{}, {}]}
    assert "2 engine set-ups" in drawn(summary_table(two, {}, 2))


@pytest.mark.parametrize(
    ("written", "before", "told"),
    [
        (5, 0, "5 written"),
        (0, 5, "0 written, 5 there before"),
        (2, 3, "2 written, 3 there before"),
        (0, 0, "0 written; 5 written meanwhile by another run, or another attempt of this one"),
        (1, 2, "1 written, 2 there before; 2 written meanwhile by another run"),
    ],
)
def test_parts_of_another_run_at_once_were_not_there_before(finished, written, before, told):
    _, manifest = finished
    counters = {"parts_committed": written, "parts_skipped": before}
    text = drawn(summary_table({**manifest, "parts": 5}, counters, before))
    assert told in text
    assert ("meanwhile" in text) == ("meanwhile" in told)


def test_parts_of_a_runner_that_counts_nothing(finished):
    _, manifest = finished
    text = drawn(summary_table({**manifest, "parts": 5}, {}, 2))
    assert "5, 2 of them there before" in text


def test_a_few_completions_are_shown_and_steer_nothing(finished, capsys):
    job, manifest = finished
    rows = list(first_completions(job.folder, job))
    assert [row[0][:10] for row in rows] == ["a", r"b\x1b[2Jc", "x = 1 x = "]
    assert rows[2][0].endswith("…")
    assert {row[2] for row in rows} == {"length"}
    print_summary(job, manifest, {})
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"b\x1b[2Jc" in out


def test_prompts_of_any_kind_are_shown(prepare):
    table = {"prompt": pa.array([b"bytes", None]), "prompt_token_ids": pa.array([None, [5, 6]])}
    job = prepare(table, output_prefix="g_")
    commit(job, answer(prompts_of(job)[0]))
    assert [row[0] for row in first_completions(job.folder, job)] == ["bytes", "5 6"]


def test_code_is_shown_as_it_stands():
    assert shown("def f(x):\n    return x\n") == "def f(x):\n    return x"
    assert shown("a\n" * 9) == "a\n" * 5 + "a…"
    assert shown("a\n\n" + "b" * 200) == "a\n\n" + "b" * 157 + "…"


def test_what_is_no_text_is_shown_as_text():
    assert shown([5, 6]) == "5 6"
    assert shown({"a": b"x", "b": [None, 1.5]}) == '{"a": "x", "b": [null, 1.5]}'
    assert shown([("k", datetime.date(2020, 1, 2))]) == '[["k", "2020-01-02"]]'
    assert shown({(1, 2): "no JSON"}) == "{(1, 2): 'no JSON'}"
    assert [shown(value) for value in (True, 1.5, 7)] == ["true", "1.5", "7"]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(ANYTHING)
def test_nothing_that_is_shown_can_steer_a_terminal(value):
    text = shown(value)
    assert text.replace("\n", "").isprintable()
    assert text.count("\n") < 6
    assert len(text) < 160 * 10
