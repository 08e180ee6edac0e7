import csv
import json

import pyarrow.parquet as pq
import pytest

from pipeline.cli import OK, SETUP, main
from pipeline.formats import openai


def exported(finished, tmp_path, kind: str):
    target = tmp_path / f"out.{kind}"
    assert main(["export", str(finished.output), "--to", str(target), "--format", kind]) == OK
    return target


def rows_of(finished) -> list[dict]:
    return [row for path in sorted(finished.output.glob("part-*")) for row in _read(path)]


def _read(path):
    return pq.ParquetFile(path).read(use_threads=False).to_pylist()


def test_json_lines_are_the_rows(finished, tmp_path):
    lines = exported(finished, tmp_path, "jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows_of(finished)


def test_csv_has_the_same_cells(finished, tmp_path):
    with open(exported(finished, tmp_path, "csv"), newline="") as file:
        found = list(csv.DictReader(file))
    want = rows_of(finished)
    assert [row["prompt"] for row in found] == [row["prompt"] or "" for row in want]
    assert [json.loads(row["token_ids"] or "null") for row in found] == [
        row["token_ids"] for row in want
    ]


def test_openai_responses(finished, tmp_path):
    lines = exported(finished, tmp_path, "openai").read_text().splitlines()
    found, want = [json.loads(line) for line in lines], rows_of(finished)
    assert [line["custom_id"] for line in found] == [row["custom_id"] for row in want]
    wrong = [line for line in found if line["error"]]
    assert [line["error"]["code"] for line in wrong] == ["prompt_missing"]
    assert wrong[0]["response"] is None
    good, row = found[0]["response"]["body"], want[0]
    (choice,) = good["choices"]
    assert (choice["text"], choice["finish_reason"]) == (row["text"], row["finish_reason"])
    assert good["usage"]["total_tokens"] == row["prompt_tokens"] + row["completion_tokens"]
    assert len(choice["logprobs"]["token_logprobs"]) == row["completion_tokens"]


def test_prompts_of_one_request_are_one_response():
    def row(custom_id, prompt, sample=0, **other):
        added = {"row_uid": f"{custom_id}{prompt}", "sample_index": sample, "status": "succeeded"}
        added |= {"text": f"{custom_id}{prompt}{sample}", "completion_tokens": 2, "logprobs": None}
        added |= {"prompt_tokens": 10 + prompt, "cached_tokens": 1, "finish_reason": "stop"}
        added |= {"stop_reason": None, "error_code": None, "error_message": None}
        own = {"custom_id": custom_id, "prompt_index": prompt}
        return {**own, **{f"g_{name}": value for name, value in {**added, **other}.items()}}

    wrong = {"status": "errored", "error_code": "x", "error_message": "y", "error_param": "z"}
    rows = [row("a", 0), row("a", 0, 1), row("a", 1), row("a", 1, 1), row("a", 0, row_uid="new")]
    rows += [row("b", 0), row("b", 1, **wrong), row("c", 2), row(None, 0), row(None, 1)]
    groups = list(openai.requests(rows, "g_"))
    assert [len(group) for group in groups] == [4, 1, 2, 1, 2]
    first, _, broken, *_ = (json.loads(openai.response(group, "g_", "m", 0)) for group in groups)
    body = first["response"]["body"]
    choices = [(choice["index"], choice["text"]) for choice in body["choices"]]
    assert choices == [(0, "a00"), (1, "a01"), (2, "a10"), (3, "a11")]
    assert body["usage"]["prompt_tokens"] == 10 + 11
    assert body["usage"]["completion_tokens"] == 8
    assert (broken["custom_id"], broken["response"]) == ("b", None)
    assert broken["error"]["code"] == "x"


def test_a_datasets_folder_has_a_card_that_finds_all_rows(finished, tmp_path):
    target = exported(finished, tmp_path, "datasets")
    card = (target / "README.md").read_text()
    assert card.startswith("---\nconfigs:\n")
    assert "path: data/*.parquet" in card
    assert pq.read_table(target / "data").num_rows == len(finished.prompts)
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    loaded = datasets.load_dataset(str(target), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["row_uid"][:] == [row["row_uid"] for row in rows_of(finished)]


def test_a_folder_without_completions_is_refused(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--to", "x", "--format", "csv"]) == SETUP
    assert "name an output folder" in capsys.readouterr().err
