"""``grok1 retry``: errored rows run again, in the place of the old ones, each row seen once."""

import dataclasses
import json
import pathlib
import shutil

import pyarrow as pa
import pytest

from pipeline import cli, retry
from pipeline.counts import Counts
from pipeline.saved import merge
from pipeline.storage import Folder
from tests.reliability import runs


def _write(path: pathlib.Path) -> None:
    columns = runs.prompts(60)
    table = pa.table({**columns, "kind": pa.array(["a", "b", "c"] * 20).dictionary_encode()})
    runs.write(path, table, row_group_size=30, compression="none", use_dictionary=["kind"])


def _spoil(path: pathlib.Path) -> None:
    data = path.read_bytes()
    at = data.index(b"row 40")
    path.write_bytes(data[: at - 4] + b"\xff" * 4 + data[at:])


@pytest.fixture
def spoiled(tmp_path) -> tuple[pathlib.Path, str]:
    """An input file of which half a row group cannot be read, and a run's output over it."""
    path, output = tmp_path / "in" / "a.parquet", str(tmp_path / "out")
    _write(path)
    runs.write(tmp_path / "in" / "b.parquet", runs.prompts(20, first=60))
    _spoil(path)
    assert runs.generate(str(tmp_path / "in"), output) == 3
    assert runs.manifest(output)["errors"] == {"input_unreadable": 30}
    return path, output


@pytest.fixture
def whole(tmp_path) -> str:
    """The output of a run over the file as it should be."""
    _write(tmp_path / "whole" / "a.parquet")
    runs.write(tmp_path / "whole" / "b.parquet", runs.prompts(20, first=60))
    output = str(tmp_path / "truth")
    assert runs.generate(str(tmp_path / "whole"), output) == 0
    return output


def _retry(output: str, *more: str) -> int:
    return cli.main(["retry", output, "--no-report", *more])


def test_a_mended_file(spoiled, whole, capsys):
    path, output = spoiled
    before = Folder(output).names()
    _write(path)
    assert _retry(output) == 0
    assert "30 errored rows to run again" in (told := capsys.readouterr().out)
    assert "30 of them have an answer now" in told
    assert runs.rows(output) == runs.rows(whole)
    assert sorted(filter(lambda n: n.startswith("part-"), Folder(output).names())) == sorted(
        filter(lambda n: n.startswith("part-"), before)
    )
    manifest = runs.manifest(output)
    assert (manifest["rows_in"], manifest["errored"], manifest["files_errored"]) == (80, 0, 0)
    assert Folder(output).read("_errors/files.parquet") is None
    # A part that was half an error is now, byte for byte, what it would always have been.
    bodies = {name: body for name, (body, _) in runs.fingerprint(output).items()}
    truths = [body for body, _ in runs.fingerprint(whole).values()]
    assert list(bodies.values()) == truths


def test_a_file_that_is_still_bad(spoiled, capsys):
    _, output = spoiled
    before = runs.fingerprint(output)
    assert _retry(output) == 3
    assert "0 of them have an answer now" in capsys.readouterr().out
    assert runs.fingerprint(output) == before
    assert runs.manifest(output)["errors"] == {"input_unreadable": 30}


def test_only_some_codes(spoiled):
    path, output = spoiled
    _write(path)
    before = runs.fingerprint(output)
    assert _retry(output, "--codes", "poison") == 3
    assert runs.fingerprint(output) == before
    assert _retry(output, "--codes", "input_unreadable", "poison") == 0


def test_what_is_refused(spoiled, tmp_path, capsys):
    path, output = spoiled
    assert _retry(str(tmp_path / "nothing")) == 2
    assert _retry(output, "--codes", "bad_luck") == 2
    assert "no such error code" in capsys.readouterr().err
    Folder(output).remove(["_SUCCESS"])
    assert _retry(output) == 2
    assert "has not finished" in capsys.readouterr().err
    Folder(output).replace("_SUCCESS", b"")
    # A file that could be read is to be the one that was read.
    runs.write(path.with_name("b.parquet"), runs.prompts(20, first=99))
    assert _retry(output) == 2
    assert "file 'b.parquet' has changed" in capsys.readouterr().err


def test_moved_files_are_named_again(spoiled, tmp_path, capsys):
    path, output = spoiled
    shutil.move(path.parent, tmp_path / "moved")
    assert _retry(output) == 2
    _write(tmp_path / "moved" / "a.parquet")
    assert _retry(output, "--input", str(tmp_path / "moved")) == 0


def test_a_retry_that_was_killed_leaves_each_row_once(spoiled, whole, monkeypatch):
    """Some parts are new and some are old; the next retry does the rest, and counts anew."""
    path, output = spoiled
    _write(path)
    replaced = []

    def then_die(job, answers):
        if replaced:
            raise OSError("gone")
        replaced.append(real(job, answers))
        return replaced[-1]

    real = retry.rewrite
    monkeypatch.setattr(retry, "rewrite", then_die)
    assert _retry(output) == 1
    monkeypatch.undo()
    halfway = runs.rows(output)
    assert [row["row_uid"] for row in halfway] == [row["row_uid"] for row in runs.rows(whole)]
    assert 0 < sum(row["status"] == "errored" for row in halfway) < 30
    assert _retry(output) == 0
    assert runs.rows(output) == runs.rows(whole)
    assert runs.manifest(output)["errored"] == 0


def test_secrets_are_not_kept(tmp_path):
    """And so they must be given again."""
    from model.engine.options import EngineOptions
    from pipeline.options_record import from_record, to_record
    from schemas.error import SetupError

    engine = EngineOptions(slots=8, compile_cache="s3://me:hunter2@compiled")
    options = dataclasses.replace(
        runs.options("https://user:hunter2@host/in.parquet", str(tmp_path / "out")), engine=engine
    )
    record = json.loads(json.dumps(to_record(options)))
    assert "hunter2" not in json.dumps(record)
    with pytest.raises(SetupError, match="give the run's input again: --input URL"):
        from_record(record, options.output)
    assert from_record(record, options.output, input=options.input) == options


def test_options_survive_their_record(tmp_path):
    from model.engine.options import EngineOptions
    from pipeline.options import GenerateOptions, ScoreOptions
    from pipeline.options_record import from_record, to_record
    from schemas.sampling import SamplingParams

    for options in (
        GenerateOptions(
            checkpoint="/c",
            input=("/a/*.parquet", "s3://b/c"),
            output="/o",
            columns={"prompt": "question"},
            sampling=SamplingParams(stop=["x"], logit_bias={3: 1.5}, n=2),
            engine=EngineOptions(slots=8),
        ),
        ScoreOptions(checkpoint="/c", input=("/a",), output="/o", stride=5, limit=7),
    ):
        assert from_record(json.loads(json.dumps(to_record(options))), "/o") == options


def test_a_part_in_two():
    table = pa.table(
        {
            "sample_index": [0, 1, 0, 0, 1, 0],
            "status": ["succeeded"] * 2 + ["errored"] + ["succeeded"] * 2 + ["errored"],
            "error_code": [None, None, "a", None, None, "b"],
            "x": range(6),
        }
    )
    counts = Counts(
        rows_in=4, succeeded=2, errored=2, rows_out=6, completion_tokens=9, errors={"a": 1, "b": 1}
    )
    stays, again = retry.split(table, counts, 4, frozenset({"b"}), "")
    assert again == {3: "b"}
    assert stays.sources == (0, 0, 1, 2, 2)
    assert merge([stays]).column("x").to_pylist() == [0, 1, 2, 3, 4]
    assert stays.counts == Counts(
        rows_in=3, succeeded=2, errored=1, rows_out=5, completion_tokens=9, errors={"a": 1}
    )
    with pytest.raises(Exception, match="first rows"):
        retry.split(table, counts, 5, frozenset(), "")
