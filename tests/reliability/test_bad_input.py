"""Input that is corrupt: all else is completed, and each row and file that was not is named."""

import io
import os
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import cli, plan, stream
from pipeline.options import GenerateOptions
from pipeline.prepare import prepare_job
from pipeline.storage import Folder
from tests.reliability import runs

GOOD = 40


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """An input folder with one good file in the middle."""
    runs.write(tmp_path / "in" / "m.parquet", runs.prompts(GOOD))
    return tmp_path / "in"


def _file_errors(output: str) -> list[dict]:
    data = Folder(output).read("_errors/files.parquet")
    return [] if data is None else pq.read_table(io.BytesIO(data)).to_pylist()


def _zero_bytes(path: pathlib.Path) -> None:
    path.write_bytes(b"")


def _truncated_footer(path: pathlib.Path) -> None:
    runs.write(path, runs.prompts(100))
    path.write_bytes(path.read_bytes()[:-200])


def _no_parquet(path: pathlib.Path) -> None:
    path.write_text("prompt\nhello\n" * 10)


def _wild_footer_length(path: pathlib.Path) -> None:
    path.write_bytes(b"PAR1" + bytes(50) + (2**31).to_bytes(4, "little") + b"PAR1")


def _scrambled_footer(path: pathlib.Path) -> None:
    runs.write(path, runs.prompts(100))
    data = bytearray(path.read_bytes())
    data[-100:-20] = bytes(range(80))
    path.write_bytes(data)


def _wrong_type(path: pathlib.Path) -> None:
    runs.write(path, {"prompt_token_ids": ["not", "ids"], "note": ["a", "b"]})


def _two_columns_of_one_name(path: pathlib.Path) -> None:
    columns = [pa.array([[1, 2]]), pa.array([[3, 4]])]
    runs.write(path, pa.Table.from_arrays(columns, names=["prompt_token_ids"] * 2))


SPOILERS = {
    _zero_bytes: "input_unreadable",
    _truncated_footer: "input_unreadable",
    _no_parquet: "input_unreadable",
    _wild_footer_length: "input_unreadable",
    _scrambled_footer: "input_unreadable",
    _wrong_type: "input_schema",
    _two_columns_of_one_name: "input_schema",
}
"""Ways to spoil a file so that none of its rows can be planned, and the error's code."""


@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_file_that_cannot_be_planned(folder, spoil, tmp_path):
    spoil(folder / "a.parquet")
    output = str(tmp_path / "out")
    options = GenerateOptions(checkpoint=runs.CHECKPOINT, input=(str(folder),), output=output)
    job = prepare_job(options)
    assert (job.files, job.rows) == (2, GOOD)
    bad, good = plan.read_files(job.folder)
    assert bad.fault is not None
    assert str(bad.fault.code) == SPOILERS[spoil]
    assert str(folder / "a.parquet") in bad.fault.sentence()
    assert (bad.rows is None) == (SPOILERS[spoil] == "input_unreadable")
    assert good.fault is None
    assert {chunk.file for chunk in plan.read_chunks(job.folder)} == {good}


def test_all_else_is_completed(folder, tmp_path, capsys):
    """Every kind of bad file at once, before and behind the good one."""
    names = [f"{'az'[i % 2]}{i}.parquet" for i in range(len(SPOILERS))]
    for name, spoil in zip(names, SPOILERS, strict=True):
        spoil(folder / name)
    output = str(tmp_path / "out")
    assert runs.generate(str(folder), output) == 3
    manifest = runs.manifest(output)
    assert (manifest["rows_in"], manifest["succeeded"]) == (GOOD, GOOD)
    assert (manifest["files"], manifest["files_errored"]) == (8, 7)
    assert manifest["files_of_unknown_rows"] == 5
    errors = _file_errors(output)
    assert manifest["file_errors"] == errors
    assert {error["path"]: error["error_code"] for error in errors} == dict(
        zip(names, SPOILERS.values(), strict=True)
    )
    assert [error["path"] for error in errors] == sorted(names)
    assert {error["rows_errored"] for error in errors} == {0}
    assert "7 of 8 could not be read" in capsys.readouterr().out
    # Again: there is nothing to do, and the same is said.
    assert runs.generate(str(folder), output) == 3
    assert runs.generate(str(folder), output, "--allow-file-errors") == 0
    assert runs.generate(str(folder), output, "--strict") == 2
    assert str(folder / "a0.parquet") in capsys.readouterr().err


@pytest.mark.parametrize("spoil", [_zero_bytes, _wrong_type])
def test_a_file_that_was_left_out_is_taken_in_when_it_is_mended(folder, spoil, tmp_path, capsys):
    """Only if that is asked for, and as if it had never been bad; what is done stays done."""
    spoil(folder / "a.parquet")
    output = str(tmp_path / "out")
    assert runs.generate(str(folder), output) == 3
    [error] = _file_errors(output)
    assert error == runs.manifest(output)["file_errors"][0]
    assert error["error_message"].endswith("give the same command with --extend)")
    before, written = runs.fingerprint(output), _committed(output)
    runs.write(folder / "a.parquet", runs.prompts(7))
    assert runs.generate(str(folder), output) == 3
    assert cli.main(["retry", output, "--no-report"]) == 3
    assert "with --extend)" in " ".join(capsys.readouterr().out.replace("│", "").split())
    assert runs.fingerprint(output) == before
    assert runs.generate(str(folder), output, "--extend") == 0
    assert _committed(output).items() >= written.items(), "nothing is computed twice"
    manifest = runs.manifest(output)
    assert (manifest["files"], manifest["files_errored"]) == (2, 0)
    assert (manifest["rows_in"], manifest["succeeded"]) == (GOOD + 7, GOOD + 7)
    assert _file_errors(output) == []
    undisturbed = str(tmp_path / "undisturbed")
    assert runs.generate(str(folder), undisturbed) == 0
    assert runs.fingerprint(output) == runs.fingerprint(undisturbed)
    # From now on it belongs to the run.
    assert runs.generate(str(folder), output) == 0
    assert runs.generate(str(folder), output, "--extend") == 0
    assert runs.fingerprint(output) == runs.fingerprint(undisturbed)


def test_extending_when_nothing_is_mended_changes_nothing(folder, tmp_path):
    _zero_bytes(folder / "a.parquet")
    output = str(tmp_path / "out")
    assert runs.generate(str(folder), output) == 3
    before = _committed(output)
    assert runs.generate(str(folder), output, "--extend") == 3
    assert _committed(output) == before
    assert runs.manifest(output)["files_errored"] == 1


def test_a_file_that_is_mended_and_has_no_rows_is_no_fault_any_more(folder, tmp_path):
    """No part is missing then, and yet the counts are to be made anew."""
    _zero_bytes(folder / "a.parquet")
    output = str(tmp_path / "out")
    assert runs.generate(str(folder), output) == 3
    runs.write(folder / "a.parquet", pa.table(runs.prompts(1)).slice(0, 0))
    assert runs.generate(str(folder), output, "--extend") == 0
    assert runs.manifest(output)["files_errored"] == 0


def _committed(output: str) -> dict[str, str]:
    """When each part was written."""
    return {
        line["part"]: line["committed_at"]
        for line in pq.read_table(f"{output}/_manifest.parquet").to_pylist()
    }


def test_an_empty_file_is_no_fault(folder, tmp_path):
    runs.write(folder / "a.parquet", pa.table(runs.prompts(1)).slice(0, 0))
    assert runs.generate(str(folder), str(tmp_path / "out")) == 0
    assert runs.manifest(str(tmp_path / "out"))["files"] == 2


def test_only_empty_files(tmp_path):
    runs.write(tmp_path / "in" / "a.parquet", pa.table(runs.prompts(1)).slice(0, 0))
    output = str(tmp_path / "out")
    assert runs.generate(str(tmp_path / "in"), output) == 0
    assert runs.rows(output) == []
    assert len(runs.part_names(output)) == 1


def test_a_file_without_the_prompts_column_has_error_rows(folder, tmp_path):
    runs.write(folder / "z.parquet", {"note": ["a", "b"]})
    output = str(tmp_path / "out")
    assert runs.generate(str(folder), output) == 3
    lost = [row for row in runs.rows(output) if row["status"] == "errored"]
    assert [(row["note"], row["error_code"]) for row in lost] == [
        ("a", "prompt_missing"),
        ("b", "prompt_missing"),
    ]


@pytest.mark.parametrize("found", ["nothing", "no file that can be read"])
def test_no_input_at_all(found, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    if found != "nothing":
        _zero_bytes(tmp_path / "in" / "a.parquet")
        _no_parquet(tmp_path / "in" / "b.parquet")
    assert runs.generate(str(tmp_path / "in"), str(tmp_path / "out")) == 2
    assert not (tmp_path / "out").exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert ("no input file matches" if found == "nothing" else "2 of 2 input files") in error


def test_a_corrupt_page_through_the_whole_run(folder, tmp_path):
    columns = {**runs.prompts(64), "body": [f"body {i}" for i in range(64)]}
    runs.write(
        folder / "a.parquet", columns, row_group_size=32, use_dictionary=False, compression="none"
    )
    data = (folder / "a.parquet").read_bytes()
    at = data.index(b"body 40")
    (folder / "a.parquet").write_bytes(data[: at - 4] + b"\xff" * 4 + data[at:])
    output = str(tmp_path / "out")
    assert runs.generate(str(folder), output) == 3
    manifest = runs.manifest(output)
    assert manifest["rows_in"] == manifest["succeeded"] + manifest["errored"] == 64 + GOOD
    assert manifest["errors"] == {"input_unreadable": 32}
    [error] = _file_errors(output)
    assert (error["path"], error["rows"], error["rows_errored"]) == ("a.parquet", 64, 32)
    assert error["error_code"] == "input_unreadable"
    lost = [row for row in runs.rows(output) if row["status"] == "errored"]
    assert len(lost) == 32
    for row in lost:
        assert row["prompt_token_ids"] is row["note"] is row["body"] is None
        assert len(row["row_uid"]) == 24
        assert "retry" in row["error_message"]
    assert runs.generate(str(folder), str(tmp_path / "strict"), "--strict") == 1


@pytest.mark.parametrize("change", ["content", "gone", "cut short", "forbidden"])
def test_a_file_that_changes_between_plan_and_read(change, folder, tmp_path, monkeypatch):
    victim = pathlib.Path(runs.write(folder / "a.parquet", runs.prompts(20)))
    output = str(tmp_path / "out")
    _after_planning(monkeypatch, lambda: _change(victim, change, monkeypatch))
    assert runs.generate(str(folder), output) == 3
    manifest = runs.manifest(output)
    code = "input_unreadable" if change == "forbidden" else "input_changed"
    assert manifest["errors"] == {code: 20}
    assert manifest["succeeded"] == GOOD
    [error] = manifest["file_errors"]
    assert (error["path"], error["rows"], error["rows_errored"]) == ("a.parquet", 20, 20)
    assert error["error_code"] == code


def test_a_file_touched_or_copied_between_plan_and_read_is_the_same(folder, tmp_path, monkeypatch):
    output = str(tmp_path / "out")
    _after_planning(monkeypatch, lambda: os.utime(folder / "m.parquet", (1, 1)))
    assert runs.generate(str(folder), output) == 0
    assert runs.manifest(output)["succeeded"] == GOOD


def _after_planning(monkeypatch, action) -> None:
    """Does something once the job is prepared and before any of it is read."""
    from pipeline.commands import run

    prepare = run.prepare_job

    def prepared(options):
        job = prepare(options)
        action()
        return job

    monkeypatch.setattr(run, "prepare_job", prepared)


def _change(victim: pathlib.Path, change: str, monkeypatch) -> None:
    if change == "content":
        runs.write(victim, runs.prompts(20, first=500))
    elif change == "gone":
        victim.unlink()
    elif change == "cut short":
        victim.write_bytes(victim.read_bytes()[:-30])
    else:
        # The superuser, who runs tests in containers, may read everything.
        real = stream.open_parquet

        def forbidden(url, buffer):
            if url.endswith(victim.name):
                raise PermissionError(13, "Permission denied", url)
            return real(url, buffer)

        monkeypatch.setattr(stream, "open_parquet", forbidden)
