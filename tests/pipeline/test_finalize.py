import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import plan
from pipeline.claim import JOB, MANIFEST, MANIFEST_PARTS, SUCCESS
from pipeline.cli import FAILED, ROW_ERRORS, main
from pipeline.commit import NotConserved, Superseded, commit
from pipeline.finalize import finalize, read_manifest, survey
from tests.jobs import ENGINE, answer, prompts_of, write

TABLE = {"prompt": ["a", None, "c", "d", "e"], "n": [1, 1, 2, 1, 1]}


@pytest.fixture
def done(prepare):
    """A job whose parts are all there, not yet closed."""
    job = prepare(TABLE, chunk_rows=2)
    for chunk in prompts_of(job):
        commit(job, answer(chunk))
    return job


def test_the_manifest_accounts_for_all_rows(done, tmp_path):
    manifest = finalize(done)
    assert read_manifest(done.folder) == manifest
    assert (manifest["rows_in"], manifest["succeeded"], manifest["errored"]) == (5, 4, 1)
    assert (manifest["rows_out"], manifest["parts"], manifest["files"]) == (6, 3, 1)
    assert manifest["errors"] == {"prompt_missing": 1}
    assert manifest["engines"] == [{**ENGINE, "parts": 3}]
    assert manifest["run_id"] == done.run_id
    assert manifest["settings"] == json.loads(json.dumps(done.settings))
    lines = pq.ParquetFile(tmp_path / "out" / MANIFEST_PARTS).read().to_pylist()
    assert [line["part"] for line in lines] == [
        chunk.part_name for chunk in plan.read_chunks(done.folder)
    ]
    assert [line["rows_in"] for line in lines] == [2, 2, 1]
    assert sum(line["rows_out"] for line in lines) == 6


def test_closing_again_changes_nothing_but_the_time(done):
    first, second = finalize(done), finalize(done)
    assert {**first, "finished_at": ""} == {**second, "finished_at": ""}


def test_success_comes_last(done, tmp_path):
    assert read_manifest(done.folder) is None
    (tmp_path / "out" / MANIFEST).write_text("{}")
    assert read_manifest(done.folder) is None
    finalize(done)
    assert (tmp_path / "out" / SUCCESS).read_bytes() == b""


def test_a_missing_part_is_no_success(done, tmp_path):
    [gone, *_] = sorted((tmp_path / "out").glob("part-*"))
    gone.unlink()
    with pytest.raises(NotConserved, match=f"1 of 3 parts are missing, such as {gone.name}"):
        finalize(done)
    assert not (tmp_path / "out" / SUCCESS).exists()


def test_a_part_with_other_rows_is_no_success(done, tmp_path):
    [one, other, _] = sorted((tmp_path / "out").glob("part-*"))
    table = pq.ParquetFile(other).read()
    with pq.ParquetWriter(one, table.schema) as writer:
        writer.write_table(table.slice(1))
        writer.add_key_value_metadata(pq.ParquetFile(other).metadata.metadata)
    with pytest.raises(NotConserved, match="should hold 2 input rows"):
        finalize(done)
    write(one, {"prompt": ["not ours"]})
    with pytest.raises(NotConserved, match="was not written by this project"):
        finalize(done)


def test_what_is_not_of_this_run_is_removed(done, tmp_path):
    stray = tmp_path / "out" / "part-000009-000000000000-0123456789ab.parquet"
    write(stray, {"prompt": ["old"]})
    (tmp_path / "out" / "_tmp-killed").write_bytes(b"half")
    finalize(done)
    assert not stray.exists()
    assert not (tmp_path / "out" / "_tmp-killed").exists()
    assert len(list((tmp_path / "out").glob("part-*"))) == 3


def test_a_straggler_closes_nothing(done, tmp_path):
    path = tmp_path / "out" / JOB
    path.write_text(json.dumps({**json.loads(path.read_text()), "run_id": "another"}))
    with pytest.raises(Superseded):
        finalize(done)


def test_a_mixture_is_named(prepare, tmp_path):
    job = prepare({"prompt": ["a", "b", None]}, chunk_rows=1)
    for i, chunk in enumerate(prompts_of(job)):
        result = answer(chunk)
        if i == 1:
            result.engine["slots"] = "64"
            commit(job, result)
            result.engine["slots"] = "8"
        else:
            commit(job, result)
    engines = finalize(job)["engines"]
    assert sorted(engine["slots"] for engine in engines) == ["64", "8"]
    assert [engine["parts"] for engine in engines] == [1, 1]


def test_a_look_at_any_moment(done, tmp_path):
    found, lines = survey(done.folder)
    assert (found["state"], found["parts_present"], found["faults"]) == ("unfinished", 3, [])
    assert len(lines) == 3
    finalize(done)
    assert survey(done.folder)[0]["state"] == "complete"
    [gone, broken, _] = sorted((tmp_path / "out").glob("part-*"))
    gone.unlink()
    broken.write_bytes(b"not a part at all")
    write(tmp_path / "out" / "part-9.parquet", {"prompt": ["x"]})
    found, lines = survey(done.folder)
    assert found["parts_present"] == 2
    assert len(lines) == 1
    assert len(found["faults"]) == 3
    for name in (broken.name, "part-9.parquet is no part of this run", "1 parts are missing"):
        assert any(name in fault for fault in found["faults"])


def test_a_look_without_a_plan(done, tmp_path, capsys):
    shutil.rmtree(tmp_path / "out" / "_plan")
    found, lines = survey(done.folder)
    assert (found["parts"], found["parts_present"], len(lines)) == (None, 3, 3)
    assert (found["rows"], found["state"]) == (done.rows, "unfinished")
    assert main(["status", str(tmp_path / "out")]) == FAILED
    assert "3 of an unknown number of parts" in capsys.readouterr().out
    (tmp_path / "out" / JOB).unlink()
    found, _ = survey(done.folder)
    assert (found["rows"], found["state"], found["run_id"]) == (None, "unknown", done.run_id)
    assert main(["inspect", str(tmp_path / "out")]) == ROW_ERRORS
    assert "nothing wrong in what is there" in capsys.readouterr().out


def test_no_rows_at_all(prepare):
    job = prepare({"prompt": pa.array([], pa.string())})
    for chunk in prompts_of(job):
        commit(job, answer(chunk))
    manifest = finalize(job)
    assert (manifest["rows_in"], manifest["rows_out"], manifest["parts"]) == (0, 0, 1)
    assert manifest["engines"] == []
