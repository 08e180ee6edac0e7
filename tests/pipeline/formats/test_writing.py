import csv
import json
import shutil

import pyarrow.parquet as pq
import pytest

from pipeline.cli import OK, ROW_ERRORS, SETUP, main
from pipeline.formats import openai
from pipeline.report.collect import collect
from tests.finished import RENAMED


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


def test_a_part_that_is_broken_is_named(finished, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(finished.output, broken)
    part = sorted(broken.glob("part-*"))[0]
    part.write_bytes(part.read_bytes()[:-10])
    target = tmp_path / "out.jsonl"
    command = ["export", str(broken), "--to", str(target), "--format", "jsonl"]
    assert main(command) == SETUP
    error = capsys.readouterr().err
    assert f"{part.name} cannot be read: " in error
    assert "remove that part, and start the same command again" in error
    assert not target.exists()


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


@pytest.mark.parametrize(
    ("own_id", "own_index", "settings"),
    [
        ("custom_id", "prompt_index", {}),
        ("key", "prompt_index", {"columns": {"custom_id": "key"}}),
        ("their_id", "i", {"rename": {"custom_id": "their_id", "prompt_index": "i"}}),
    ],
)
def test_prompts_of_one_request_are_one_response(own_id, own_index, settings):
    def row(custom_id, prompt, sample=0, **other):
        added = {"row_uid": f"{custom_id}{prompt}", "sample_index": sample, "status": "succeeded"}
        added |= {"text": f"{custom_id}{prompt}{sample}", "completion_tokens": 2, "logprobs": None}
        added |= {"prompt_tokens": 10 + prompt, "cached_tokens": 1, "finish_reason": "stop"}
        added |= {"stop_reason": None, "error_code": None, "error_message": None}
        own = {own_id: custom_id, own_index: prompt}
        return {**own, **{f"g_{name}": value for name, value in {**added, **other}.items()}}

    wrong = {"status": "errored", "error_code": "x", "error_message": "y", "error_param": "z"}
    rows = [row("a", 0), row("a", 0, 1), row("a", 1), row("a", 1, 1), row("a", 0, row_uid="new")]
    rows += [row("b", 0), row("b", 1, **wrong), row("c", 2), row(None, 0), row(None, 1)]
    job = {"settings": {"output_prefix": "g_", **settings}, "checkpoint": "m"}
    responses = openai.Responses(job)
    groups = list(responses.requests(rows))
    assert [len(group) for group in groups] == [4, 1, 2, 1, 2]
    first, _, broken, *_ = (json.loads(responses.line(group)) for group in groups)
    body = first["response"]["body"]
    choices = [(choice["index"], choice["text"]) for choice in body["choices"]]
    assert choices == [(0, "a00"), (1, "a01"), (2, "a10"), (3, "a11")]
    assert body["usage"]["prompt_tokens"] == 10 + 11
    assert body["usage"]["completion_tokens"] == 8
    assert (broken["custom_id"], broken["response"]) == ("b", None)
    assert broken["error"]["code"] == "x"


def test_each_request_has_a_line_the_refused_too(shallow, tmp_path, capsys):
    def line(custom_id: str, **body) -> str:
        return json.dumps({"custom_id": custom_id, "url": "/v1/completions", "body": body})

    lines = [line("a", prompt="x = "), line("b", prompt="x", echo=True), line("c"), "{"]
    lines += [line("d", prompt="y = ", temperature=-1), line("e", prompt=["1", "2"])]
    source = tmp_path / "requests.jsonl"
    source.write_text("\n".join(lines))
    assert main(["import", str(source), "--to", str(tmp_path / "in")]) == ROW_ERRORS
    command = ["generate", "--checkpoint", shallow, "--input", tmp_path / "in"]
    command += ["--output", tmp_path / "out", "--max-tokens", "2", "--slots", "8", "--no-report"]
    command += ["--max-context", "256", "--rename", "custom_id=key"]
    assert main([*map(str, command)]) == ROW_ERRORS
    target = tmp_path / "responses.jsonl"
    export = ["export", str(tmp_path / "out"), "--to", str(target), "--format", "openai"]
    assert main(export) == OK
    assert "3 requests refused at import" in capsys.readouterr().out
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert len({line["id"] for line in found}) == len(lines)
    assert [line["custom_id"] for line in found] == ["a", "d", "e", "b", "c", None]
    good = [bool(line["response"]) for line in found]
    assert good == [True, False, True, False, False, False]
    assert all(bool(line["response"]) != bool(line["error"]) for line in found)
    refused = found[3]["error"]
    assert (refused["code"], refused["line"]) == ("invalid_request", 2)
    assert refused["message"].startswith(f"line 2 of {source}: ")
    assert "--echo" in refused["message"]
    (example,) = collect(str(tmp_path / "out")).errors["invalid_parameter"]
    assert example.custom_id == "d"
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    assert main([*export, "--overwrite"]) == OK
    assert "refused are not among these" in capsys.readouterr().err


def test_an_unfinished_run_is_exported_only_on_demand(finished, tmp_path, capsys):
    output, target = tmp_path / "run", tmp_path / "rows.jsonl"
    shutil.copytree(finished.output, output)
    (output / "_SUCCESS").unlink()
    sorted(output.glob("part-*"))[1].unlink()
    command = ["export", str(output), "--to", str(target), "--format", "jsonl"]
    assert main(command) == SETUP
    assert "6 rows are to come; start it again" in capsys.readouterr().err
    assert not target.exists()
    assert main([*command, "--partial"]) == OK
    told = capsys.readouterr()
    assert f"{len(finished.prompts) - 6} rows in" in told.out
    assert "has not finished: 6 of its rows are not among these" in told.err
    assert len(target.read_text().splitlines()) == len(finished.prompts) - 6


def test_what_is_there_is_replaced_only_on_demand(finished, tmp_path, capsys):
    for kind in ("jsonl", "datasets"):
        target = exported(finished, tmp_path, kind)
        old = target / "data" / "train-00000-of-00099.parquet"
        if kind == "datasets":
            old.write_bytes(b"of an earlier run")
        command = ["export", str(finished.output), "--to", str(target), "--format", kind]
        assert main(command) == SETUP
        assert "--overwrite" in capsys.readouterr().err
        assert main([*command, "--overwrite"]) == OK
        assert not old.exists()


def test_a_spreadsheet_computes_no_cell(finished, tmp_path):
    target = tmp_path / "out.csv"
    command = ["export", str(finished.output), "--to", str(target), "--format", "csv"]
    assert main([*command, "--spreadsheet"]) == OK
    with open(target, newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert {"'=cmd|' /C calc'!A0", "'+1", f"'{RENAMED}"} <= set(cells)
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]


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
