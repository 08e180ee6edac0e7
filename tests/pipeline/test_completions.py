import pytest

from pipeline.commit import commit
from pipeline.completions import read_completions
from pipeline.finalize import finalize
from schemas.error import SetupError
from tests.jobs import answer, prompts_of, write


@pytest.fixture
def job(prepare, tmp_path):
    write(tmp_path / "in" / "b.parquet", {"prompt": ["d", "e"]})
    job = prepare({"prompt": ["a", "b", "c"]}, chunk_rows=2)
    for chunk in reversed(prompts_of(job)):  # parts are made in any order
        commit(job, answer(chunk))
    return job


def test_rows_come_in_input_order(job):
    finalize(job)
    table = read_completions(job.options.output)
    assert table.column("prompt").to_pylist() == ["a", "b", "c", "d", "e"]
    assert table.schema == job.output.schema
    some = read_completions(job.options.output, columns=["status", "prompt"])
    assert set(some.column_names) == {"status", "prompt"}


def test_an_unfinished_run_is_refused_unless_asked_for(job, tmp_path):
    with pytest.raises(SetupError, match=r"has not finished \(3 parts are there\)"):
        read_completions(job.options.output)
    sorted((tmp_path / "out").glob("part-*"))[1].unlink()
    partial = read_completions(job.options.output, partial=True)
    assert partial.column("prompt").to_pylist() == ["a", "b", "d", "e"]


def test_a_folder_without_any(tmp_path):
    with pytest.raises(SetupError, match="holds no completions"):
        read_completions(str(tmp_path))
    with pytest.raises(SetupError, match="holds no completions"):
        read_completions(str(tmp_path / "none"))
