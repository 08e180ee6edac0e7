import math
import pathlib
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import SETUP, main
from pipeline.commit import commit
from pipeline.report.charts import all_charts, timeline
from pipeline.report.collect import collect
from pipeline.report.completion_rows import completion_sample, repetition
from pipeline.report.error_rows import EXAMPLES
from pipeline.report.score_rows import PERPLEXITY_BINS, score_sample
from schemas.error import SetupError
from schemas.sampling import SamplingParams
from tests.jobs import answer, prompts_of


def test_totals_come_from_the_parts(finished):
    found = collect(str(finished.output))
    totals = found.checked["totals"]
    assert totals["rows_in"] == totals["rows_out"] == len(finished.prompts)
    assert totals["errored"] == 1
    assert found.rows_read == len(finished.prompts)
    assert found.rows.completions == len(finished.prompts) - 1
    assert sum(found.rows.completion_tokens.values()) == totals["succeeded"]
    tokens = sum(length * rows for length, rows in found.rows.completion_tokens.items())
    assert tokens == totals["completion_tokens"]
    assert found.rows.mean_logprob.sum() == totals["succeeded"]
    (example,) = found.errors["prompt_missing"]
    assert (example.custom_id, example.param) == ("<b>1</b>", "prompt")


def test_totals_of_scores(scored):
    found = collect(str(scored.output))
    rows, totals = found.rows, found.checked["totals"]
    good = 2 * (len(scored.prompts) - 1)
    assert totals["rows_out"] == found.rows_read == good + 1
    assert rows.scores == good
    for counts in (rows.mean_logprob, rows.perplexity, rows.byte_perplexity):
        assert counts.sum() == good
    tokens = sum(length * number for length, number in rows.continuation_tokens.items())
    assert tokens == totals["scored_tokens"]
    assert rows.greedy == totals["greedy"]
    assert list(found.errors) == ["continuation_empty"]
    assert len(found.samples) == good
    for sample in found.samples:
        assert math.isclose(sum(sample.logprobs), sample.logprob, rel_tol=1e-5)
        assert "".join(sample.pieces) == sample.answer in (" os", " re\n")
        inside = np.searchsorted(PERPLEXITY_BINS, min(sample.perplexity, 1e6)) - 1
        assert rows.perplexity[inside] > 0
        assert f"log-likelihood {sample.logprob:,.2f}" in sample.facts


def test_of_a_long_document_the_beginning_is_shown():
    row = {
        "row_uid": "a",
        "continuation_index": 0,
        "document": "word " * 9000,
        "token_ids": [5] * 9000,
        "token_logprobs": [-1.0] * 9000,
        "logprob": -9000.0,
        "perplexity": math.e,
        "is_greedy": False,
    }
    sample = score_sample(row, "", {"task": "score"})
    assert len(sample.token_ids) == len(sample.logprobs) == 4000
    assert len(sample.answer) <= 20_001
    assert sample.answer.endswith("…")
    assert sample.facts[1] == "9,000 tokens"
    assert sample.prompt == ""


def test_what_a_template_read_stands_for_the_prompt():
    row = {"q": "why?", "param_n": 3, "row_uid": "a", "text": "so", "completion_tokens": 1}
    settings = {"task": "generate", "prompting": {"template": "{{ q }} {{ n }}"}}
    assert completion_sample(row, "", settings).prompt == "n: 3\nq: why?"


def test_samples_are_the_same_ones_each_time_and_spelled_token_by_token(finished):
    few, again = (collect(str(finished.output), samples=5).samples for _ in range(2))
    assert few == again
    assert len(few) == 5
    everything = collect(str(finished.output)).samples
    assert len(everything) == len(finished.prompts) - 1
    assert {sample.row_uid for sample in few} <= {sample.row_uid for sample in everything}
    for sample in everything:
        assert sample.pieces is not None
        assert len(sample.pieces) == len(sample.logprobs) == sample.tokens
        assert math.isclose(sum(sample.logprobs) / sample.tokens, sample.mean_logprob, abs_tol=1e-4)


def test_a_run_that_was_cut_short_can_be_looked_at(finished, tmp_path):
    half = pathlib.Path(shutil.copytree(finished.output, tmp_path / "half"))
    parts = sorted(half.glob("part-*"))
    for path in [*parts[::2], half / "_SUCCESS", half / "_manifest.json"]:
        path.unlink()
    found = collect(str(half))
    assert found.checked["state"] == "unfinished"
    assert 0 < found.checked["totals"]["rows_in"] < found.checked["rows"] == len(finished.prompts)
    for path in parts[1::2]:
        path.unlink()
    with pytest.raises(SetupError, match="no part yet"):
        collect(str(half))
    (half / "part-000009-000000000000-0123456789ab.parquet").write_bytes(b"of another run")
    with pytest.raises(SetupError, match="is no part of this run, nor any other there"):
        collect(str(half))


def copied(run, to, *names) -> pathlib.Path:
    """A folder with what these patterns match of a run's output."""
    to.mkdir()
    for path in (path for name in names for path in run.output.glob(name)):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, to / path.name)
    return to


def test_parts_are_all_that_it_needs(finished, tmp_path):
    parts, whole = copied(finished, tmp_path / "parts", "part-*"), collect(str(finished.output))
    found = collect(str(parts))
    for name in ("totals", "settings", "run_id"):
        assert found.checked[name] == whole.checked[name]
    assert (found.parts, found.errors) == (whole.parts, whole.errors)
    assert (found.checked["state"], found.checked["faults"]) == ("unknown", [])
    assert found.checked["rows"] is found.checked["parts"] is None
    assert len(found.checked["unknown"]) == 2
    assert whole.checked["unknown"] == []
    assert [s.answer for s in found.samples] == [s.answer for s in whole.samples]


def test_a_job_tells_its_rows_without_a_plan(finished, tmp_path):
    folder = copied(finished, tmp_path / "job", "part-*", "_job.json")
    found = collect(str(folder)).checked
    assert (found["parts"], found["rows"]) == (None, len(finished.prompts))
    (unknown,) = found["unknown"]
    assert "no plan" in unknown
    (folder / "_plan").mkdir()
    shutil.copy(finished.output / "_plan" / "chunks.parquet", folder / "_plan")
    assert collect(str(folder)).checked["parts"] is None


def test_a_finished_run_needs_no_plan_to_tell_its_rows(finished, tmp_path):
    folder = copied(finished, tmp_path / "no_plan", "part-*", "_SUCCESS", "_manifest.json")
    next(folder.glob("part-*")).unlink()
    found = collect(str(folder)).checked
    assert (found["state"], found["rows"]) == ("complete", len(finished.prompts))
    assert found["faults"] == ["1 parts are missing from a finished run"]


def test_parts_of_another_run_among_them_are_told(finished, scored, tmp_path):
    folder = copied(finished, tmp_path / "mixed", "part-*")
    (stray, *_) = sorted(scored.output.glob("part-*"))
    shutil.copy(stray, folder)
    found = collect(str(folder)).checked
    assert found["settings"]["task"] == "generate"
    assert found["faults"] == [f"{stray.name} is no part of this run"]
    for path in folder.glob("part-*"):
        path.write_bytes(b"no part")
    with pytest.raises(SetupError, match=r"no part in .* can be read"):
        collect(str(folder))


def test_a_part_whose_rows_cannot_be_read_is_named(finished, tmp_path):
    """Its footer is sound, its pages are not."""
    folder = copied(finished, tmp_path / "broken", "part-*", "_*")
    part = min(folder.glob("part-*"))
    data = bytearray(part.read_bytes())
    data[4:200] = bytes(196)
    part.write_bytes(data)
    with pytest.raises(SetupError, match=f"{part.name} cannot be read: .*; remove that part"):
        collect(str(folder))


def test_parts_over_another_input_among_them_are_told(prepare, tmp_path):
    """Their settings are the same; the run and the input file in the footers are not."""
    folders = []
    for rows in (8, 6, 8):
        job = prepare(
            {"prompt": [f"{rows} {i}" for i in range(rows)]},
            output=str(tmp_path / f"out-{len(folders)}"),
            chunk_rows=2,
        )
        for chunk in prompts_of(job):
            commit(job, answer(chunk))
        folders.append(pathlib.Path(job.folder.url))
    first, other, again = folders
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for part in [*first.glob("part-*"), *other.glob("part-*")]:
        shutil.copy(part, mixed)
    strays = sorted(path.name for path in other.glob("part-*"))
    found = collect(str(mixed)).checked
    assert found["faults"] == [f"{name} is no part of this run" for name in strays]
    assert found["totals"]["rows_in"] == 8
    for name in strays:
        (mixed / name).unlink()
    for part in sorted(again.glob("part-*"))[:1]:
        shutil.copy(part, mixed)
    assert collect(str(mixed)).checked["faults"] == []


def test_errors_are_told_by_file_and_row(finished, prepare):
    (example,) = collect(str(finished.output)).errors["prompt_missing"]
    assert (example.input, example.row) == ("in.parquet", 1)
    prompts = [None if i % 3 == 2 else f"{i}" for i in range(90)]
    job = prepare({"prompt": prompts}, chunk_rows=40, sampling=SamplingParams(n=2))
    for chunk in prompts_of(job):
        commit(job, answer(chunk))
    examples = collect(job.folder.url).errors["prompt_missing"]
    assert [example.row for example in examples] == [3 * i + 2 for i in range(EXAMPLES)]
    assert {example.input for example in examples} == {"a.parquet"}


def test_versions_are_those_that_the_manifest_tells(finished):
    assert {"apache-beam", "pyarrow", "sentencepiece"} <= collect(
        str(finished.output)
    ).versions.keys()


def test_a_folder_that_does_not_exist_is_called_so(tmp_path, capsys):
    for command in ("report", "status", "retry"):
        assert main([command, str(tmp_path / "nowhere")]) == SETUP
        assert f"{tmp_path}/nowhere does not exist" in capsys.readouterr().err
        assert main([command, str(tmp_path)]) == SETUP
        assert "has no _job.json" in capsys.readouterr().err


def test_the_number_of_samples_is_checked(finished, capsys):
    assert main(["report", str(finished.output), "--samples", "-3"]) == SETUP
    assert "--samples must not be negative, got -3" in capsys.readouterr().err


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(SetupError, match="name the output folder of a run"):
        collect(str(tmp_path))


def part(end: float, seconds: float, tokens: int, asked: int = 0, used: int = 0) -> dict:
    return {
        "committed_at": f"2026-01-01T00:{int(end) // 60:02d}:{end % 60:06.3f}+00:00",
        "seconds": seconds,
        "completion_tokens": tokens,
        "decode_rows": asked,
        "decode_rows_used": used,
    }


def test_the_timeline_conserves_tokens():
    parts = [part(100, 50, 5000, 100, 80), part(130, 30, 600, 10, 10), part(1000, 40, 900)]
    points = timeline(parts)
    times = [point["time"] for point in points]
    width = (1000 - 50) / 80
    assert times == sorted(times)
    assert math.isclose(sum(p["tokens_per_second"] for p in points) * width, 6500, rel_tol=1e-3)
    # Between the second part's end and the third's beginning nothing ran.
    assert max(np.diff(times)) > 800_000
    assert points[0]["occupancy"] == pytest.approx(0.8, abs=0.01)
    assert timeline([part(5, 0, 0)]) == []


def test_throughput_is_drawn_in_steps(finished):
    charts = all_charts(collect(str(finished.output)))
    for name, field in (("throughput", "tokens_per_second"), ("occupancy", "occupancy")):
        assert charts[name]["mark"]["interpolate"] == "step-after"
        points = charts[name]["data"]["values"]
        # Each stretch ends at the height of its last step.
        stretches = {point["stretch"] for point in points}
        for number in stretches:
            *_, last, end = (point for point in points if point["stretch"] == number)
            assert last[field] == end[field]
            assert last["time"] < end["time"]


@given(st.lists(st.integers(0, 131071), min_size=5, max_size=60))
def test_repetition_is_the_share_of_4_grams_seen_before(ids):
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    want = 1 - len(set(grams)) / len(grams)
    assert repetition(np.array(ids, np.int32)) == pytest.approx(want)
