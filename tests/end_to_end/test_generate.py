"""The main job as users run it."""

import json
import pathlib
import re

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from apache_beam.metrics import MetricsFilter

import pipeline
from model.tokenizer import Tokenizer
from pipeline import registry
from pipeline.commit import PROVENANCE
from schemas.completion import COLUMNS
from tests.jobs import write

WORDS = ["import os", "def f(x):", "class Queue:", "for i in range(10):", "return", "raise "]


def test_completions_stand_beside_what_was_asked(generate, talking):
    table = {"custom_id": ["x", "y"], "prompt": ["import os", "def f(x):"], "topic": [1, None]}
    outcome = generate("--max-tokens", 7, "--ignore-eos", "--run-seed", 3, table=table)
    assert outcome.code == 0
    assert outcome.err == ""
    rows = outcome.rows
    assert list(rows[0]) == [*table, *COLUMNS]
    tokenizer = Tokenizer.load(f"{talking}/tokenizer.model")
    for row, prompt, custom_id in zip(rows, table["prompt"], table["custom_id"], strict=True):
        assert (row["prompt"], row["custom_id"], row["status"]) == (prompt, custom_id, "succeeded")
        assert (row["finish_reason"], row["stop_reason"]) == ("length", None)
        assert (row["sample_index"], row["seed"]) == (0, 3)
        ids = tokenizer.encode(prompt)
        assert row["prompt_tokens"] == len(ids)
        assert row["completion_tokens"] == len(row["token_ids"]) == 7
        assert row["text"] == tokenizer.decode_completion(ids, row["token_ids"])
        assert row["logprobs"] is row["prompt_logprobs"] is row["error_code"] is None
        assert row["cumulative_logprob"] < 0
    assert [row["topic"] for row in rows] == [1, None]


def test_the_summary_tells_what_was_counted(generate):
    table = {"prompt": [*WORDS, None], "max_tokens": [4, 4, 4, 4, 4, 4, 4]}
    outcome = generate("--ignore-eos", table=table)
    assert outcome.code == 3
    assert outcome.out.startswith("7 rows in 1 file → 1 part · ")
    for told in (
        "7 in = 6 succeeded + 1 errored; 7 out",
        "24 completion",
        "length 6",
        "prompt_missing 1",
        "1 written",
        "tokens/s while busy",
        "% full",
    ):
        assert told in outcome.out
    for shown in WORDS[:5]:
        assert shown in outcome.out


def test_beam_counts_what_happened(options):
    table = {"prompt": [*WORDS, None, ""], "max_tokens": [4] * 8}
    job = options(table)
    registry.close_all()  # so that a load is counted
    result = pipeline.build_pipeline(job).run()
    result.wait_until_finish()
    found = result.metrics().query(MetricsFilter().with_namespace("grok1"))
    counters = {c.key.metric.name: c.committed for c in found["counters"]}
    assert counters["rows"] == 8
    assert counters["rows_succeeded"] == 6
    assert counters["rows_errored"] == 2
    assert counters["errors_prompt_missing"] == counters["errors_prompt_empty"] == 1
    assert counters["completion_tokens"] == counters["decoded_tokens"]
    assert 6 <= counters["completion_tokens"] <= 24
    assert counters["prompt_tokens"] == sum(
        row["prompt_tokens"] or 0
        for row in pipeline.read_completions(job.output).to_pylist()
        if row["status"] == "succeeded"
    )
    assert counters["parts_committed"] == 1
    assert counters["load_milliseconds"] > 0
    assert counters["compile_milliseconds"] > 0
    assert 0 < counters["decode_rows_used"] <= counters["decode_rows"]
    distributions = {d.key.metric.name: d.committed for d in found["distributions"]}
    assert distributions["tokens_per_second"].max > 0
    assert 0 < distributions["slot_occupancy_percent"].max <= 100


@pytest.fixture
def several(tmp_path):
    """Rows in several files, one of another schema, with bad ones among them."""
    write(tmp_path / "in" / "a.parquet", {"prompt": WORDS, "n": [1, 2, 1, 1, 3, 1]})
    write(tmp_path / "in" / "b.parquet", {"prompt": ["x", None, "y"], "topic": ["p", "q", None]})
    write(tmp_path / "in" / "sub" / "c.parquet", {"prompt": ["z"], "n": [0]})
    return tmp_path


def test_any_reader_sees_one_dataset_in_input_order(generate, several):
    outcome = generate("--max-tokens", 3, "--chunk-rows", 2, "--allow-errors")
    assert outcome.code == 0
    assert len(outcome.parts) == 6
    prompts = [row["prompt"] for row in outcome.rows]
    assert prompts == [
        *["import os", "def f(x):", "def f(x):", "class Queue:", "for i in range(10):"],
        *["return", "return", "return", "raise ", "x", None, "y", "z"],
    ]
    frame = pd.read_parquet(outcome.folder)
    assert [None if p != p else p for p in frame["prompt"]] == prompts
    glob = f"{outcome.folder}/part-*.parquet"
    query = f"SELECT status, count(*), sum(completion_tokens) FROM '{glob}' GROUP BY status"
    counted = {status: (n, tokens) for status, n, tokens in duckdb.sql(query).fetchall()}
    assert counted["errored"] == (2, None)
    assert counted["succeeded"][0] == 11
    assert counted["succeeded"][1] == outcome.manifest["completion_tokens"]
    nested = f"SELECT len(token_ids) FROM '{glob}' WHERE status = 'succeeded'"
    assert {n for (n,) in duckdb.sql(nested).fetchall()} <= {1, 2, 3}
    [query] = re.findall(
        r'duckdb -c "(.*)"', (pathlib.Path(__file__).parents[2] / "README.md").read_text()
    )
    shown = duckdb.sql(query.replace("completions/", f"{outcome.folder}/")).fetchall()
    texts = [(r["prompt"], r["text"]) for r in outcome.rows if r["status"] == "succeeded"]
    assert shown == texts
    assert pa.dataset.dataset(str(outcome.folder)).to_table().num_rows == 13
    assert pipeline.read_completions(str(outcome.folder)).column("prompt").to_pylist() == prompts


def test_the_folder_holds_parts_and_what_starts_with_an_underscore(generate):
    folder = generate("--max-tokens", 2, table={"prompt": ["a"]}).folder
    names = sorted(path.name for path in folder.iterdir())
    others = ["_SUCCESS", "_job.json", "_manifest.json", "_manifest.parquet", "_plan"]
    others.append("_strikes")
    assert names == [*others, *(name for name in names if name.startswith("part-"))]
    assert len(names) == len(others) + 1


def test_every_part_says_where_it_comes_from(generate, several):
    outcome = generate("--max-tokens", 3, "--allow-errors", "--top-k", 40)
    for name in outcome.parts:
        told = json.loads(pq.ParquetFile(outcome.folder / name).metadata.metadata[PROVENANCE])
        assert (told["settings"]["top_k"], told["settings"]["numerics"]) == (40, "float32")
        assert len(told["settings"]["checkpoint"]) == len(told["settings"]["tokenizer"]) == 64
        assert told["settings"]["schema_version"] == 1
        assert told["fingerprint"] in name
        assert len(told["code"]) == 32
        if told["engine"]:  # a part without a good row has seen none
            assert told["engine"]["slots"] == "8"
            assert told["engine"]["jax"]
    assert len(outcome.manifest["engines"]) == 1
    assert outcome.manifest["settings"] == told["settings"] | outcome.manifest["settings"]


def test_files_that_call_things_otherwise(generate):
    table = {
        "q": ["import os", "return"],
        "key": ["k1", "k2"],
        "text": ["a", "b"],
        "budget": [2, 3],
    }
    outcome = generate(
        "--columns", "prompt=q,custom_id=key", "max_tokens=budget",
        "--rename", "text=my_text", "--ignore-eos", table=table,
    )  # fmt: skip
    assert outcome.code == 0
    assert [row["completion_tokens"] for row in outcome.rows] == [2, 3]
    assert [row["my_text"] for row in outcome.rows] == ["a", "b"]
    assert [row["param_budget"] for row in outcome.rows] == [2, 3]
    again = generate(
        "--columns", "prompt=q", "--output-prefix", "g_", table=table,
        output=outcome.folder.parent / "prefixed",
    )  # fmt: skip
    assert again.code == 0
    assert [row["text"] for row in again.rows] == ["a", "b"]
    assert all(row["g_status"] == "succeeded" for row in again.rows)


def test_each_row_may_have_parameters_of_its_own(generate):
    table = {
        "prompt": ["import os"] * 6,
        "max_new_tokens": [1, 9, 9, None, 9, 9],
        "temperature": [0.0, 0.0, None, None, None, None],
        "logprobs": [None, 2, None, None, None, None],
        "n": [None, None, 3, None, None, None],
        "seed": [None, None, None, None, 11, None],
        "stop": [*[None] * 5, ["e", "a", "o", "i", "u", " "]],
        "ignore_eos": [True] * 6,
    }
    outcome = generate("--max-tokens", 5, table=table)
    assert outcome.code == 0
    rows = outcome.rows
    assert [row["completion_tokens"] for row in rows[:7]] == [1, 9, 9, 9, 9, 5, 9]
    assert [row["sample_index"] for row in rows] == [0, 0, 0, 1, 2, 0, 0, 0]
    assert len({tuple(row["token_ids"]) for row in rows[2:5]}) == 3
    assert rows[1]["token_ids"][0] == rows[0]["token_ids"][0]
    assert [len(entry["top_token_ids"]) for entry in rows[1]["logprobs"]] == [2] * 9
    assert [e["rank"] for e in rows[1]["logprobs"]] == [1] * 9
    assert rows[2]["logprobs"] is None
    assert rows[6]["seed"] == rows[6]["param_seed"] == 11
    stopped = rows[7]
    assert stopped["finish_reason"] == "stop"
    assert stopped["stop_reason"] in table["stop"][5]
    assert not set(stopped["text"]) & set("eaoiu ")


def test_stops_and_logprobs_by_flag(generate, tmp_path):
    common = ("--max-tokens", 12, "--ignore-eos", "--run-seed", 1)
    [free] = generate(*common, table={"prompt": ["def main():\n"]}).rows
    ids = free["token_ids"]
    [row] = generate(
        *common, "--stop-token-ids", ids[4], 1, "--logprobs=1", output=tmp_path / "ids"
    ).rows
    assert row["token_ids"] == ids[: ids.index(ids[4]) + 1]
    assert (row["finish_reason"], row["stop_reason"]) == ("stop", str(ids[4]))
    total = sum(entry["logprob"] for entry in row["logprobs"])
    assert row["cumulative_logprob"] == pytest.approx(total, abs=1e-4)
    [later] = generate(
        *common, "--stop-token-ids", ids[4], "--min-tokens=8", output=tmp_path / "later"
    ).rows
    assert ids[4] not in later["token_ids"][:8]
    stop = free["text"][3:6]
    [kept] = generate(
        *common, "--stop", stop, "--stop", "never this", "--include-stop-str-in-output",
        output=tmp_path / "kept",
    ).rows  # fmt: skip
    assert kept["stop_reason"] == stop
    assert kept["text"] == free["text"][: free["text"].index(stop) + 3]


@pytest.mark.parametrize("limit", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 99))])
def test_only_the_first_rows(generate, several, limit):
    outcome = generate("--limit", limit, "--max-tokens", 2, "--chunk-rows", 3, "--allow-errors")
    assert outcome.code == 0
    assert outcome.manifest["rows_in"] == min(limit, 10)
    assert len({row["row_uid"] for row in outcome.rows}) == min(limit, 10)


@pytest.mark.parametrize("runner", ["DirectRunner", "FnApiRunner"])
def test_runners_as_users_type_them(generate, runner, monkeypatch):
    # A runner that is to be downloaded cannot be: nothing leaves this machine.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    outcome = generate(f"--runner={runner}", "--max-tokens", 2, table={"prompt": ["a", "b"]})
    assert outcome.code == 0
    assert len(outcome.rows) == 2


def test_doing_every_bundle_twice_changes_nothing(generate, several):
    common = ("--max-tokens", 4, "--chunk-rows", 2, "--allow-errors", "--temperature", 1)
    once = generate(*common)
    twice = generate(*common, "--direct_runner_bundle_repeat=1", output=several / "twice")
    assert twice.code == 0
    assert twice.parts == once.parts
    assert twice.rows == once.rows
    assert counts(twice.manifest) == counts(once.manifest)


def counts(manifest):
    names = ("rows_in", "rows_out", "succeeded", "errored", "completion_tokens", "errors")
    return {name: manifest[name] for name in names}


def test_no_rows(generate):
    outcome = generate(table={"prompt": pa.array([], pa.string())})
    assert outcome.code == 0
    assert outcome.manifest["rows_in"] == 0
    assert duckdb.sql(f"SELECT * FROM '{outcome.folder}/part-*.parquet'").fetchall() == []
