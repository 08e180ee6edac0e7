import os
import uuid

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tokenizer import Tokenizer
from pipeline import plan
from pipeline.options import GenerateOptions
from pipeline.prepare import prepare_job
from pipeline.read import InputChanged, load_tokenizer, read_span
from pipeline.spans import Span
from tests.jobs import prompts_of, write


def texts(chunks):
    return [chunk.rows.column("prompt").to_pylist() for chunk in chunks]


def test_chunks_hold_their_own_rows(prepare, tmp_path):
    table = pa.table({"prompt": [f"p{i}" for i in range(23)], "x": range(23)})
    write(tmp_path / "in" / "a.parquet", table, row_group_size=5)
    job = prepare(chunk_rows=4)
    chunks = prompts_of(job)
    assert texts(chunks) == [[f"p{i}" for i in range(n, min(n + 4, 23))] for n in range(0, 23, 4)]
    assert all(chunk.rows.schema == job.input_schema for chunk in chunks)


@given(
    rows=st.integers(1, 60),
    group=st.integers(1, 25),
    step=st.integers(1, 25),
    wanted=st.sets(st.integers(0, 59), min_size=1),
)
@settings(max_examples=40)
def test_any_chunks_of_a_file_are_read_right(talking, tmp_path_factory, rows, group, step, wanted):
    """Whatever the row groups, and whichever chunks are missing."""
    folder = tmp_path_factory.mktemp("read")
    table = {"prompt": [f"p{i}" for i in range(rows)]}
    source = write(folder / "a.parquet", table, row_group_size=group)
    options = GenerateOptions(
        checkpoint=talking, input=source, output=str(folder / "out"), chunk_rows=step
    )
    job = prepare_job(options)
    chunks = plan.read_chunks(job.folder)
    some = tuple(chunk for i, chunk in enumerate(chunks) if i in wanted)
    found = read_span(job, Span(some))
    assert texts(found) == [
        [f"p{i}" for i in range(c.first_row, c.first_row + c.rows)] for c in some
    ]


def test_a_chunk_whose_part_is_there_is_not_read(prepare):
    job = prepare({"prompt": ["a", "b", "c"]}, chunk_rows=1)
    chunks = plan.read_chunks(job.folder)
    job.folder.create(chunks[1].part_name, b"there")
    assert texts(prompts_of(job)) == [["a"], ["c"]]


def test_a_span_that_is_done_opens_no_file(prepare, tmp_path):
    job = prepare({"prompt": ["a"]})
    [chunk] = plan.read_chunks(job.folder)
    job.folder.create(chunk.part_name, b"there")
    (tmp_path / "in" / "a.parquet").unlink()
    assert prompts_of(job) == []


def test_files_of_several_schemas_come_in_one(prepare, tmp_path):
    write(tmp_path / "in" / "a.parquet", {"prompt": ["a"], "x": pa.array([1], pa.int8())})
    write(tmp_path / "in" / "b.parquet", {"y": [True], "prompt": pa.array(["b"]).cast("binary")})
    dictionary = pa.array(["c"]).dictionary_encode()
    write(tmp_path / "in" / "c.parquet", {"prompt": dictionary, "x": pa.array([2], pa.int64())})
    job = prepare()
    rows = [row for chunk in prompts_of(job) for row in chunk.rows.to_pylist()]
    assert job.input_schema.names == ["prompt", "x", "y"]
    assert [row["x"] for row in rows] == [1, None, 2]
    assert [row["y"] for row in rows] == [None, True, None]
    assert [row["prompt"] for row in rows] == [b"a", b"b", b"c"]


def test_no_rows(prepare):
    [chunk] = prompts_of(prepare({"prompt": pa.array([], pa.string())}))
    assert len(chunk) == 0
    assert chunk.requests == ()


@pytest.mark.parametrize("change", ["gone", "another"])
def test_a_file_that_is_not_the_planned_one(prepare, tmp_path, change):
    job = prepare({"prompt": ["a", "b"]})
    path = tmp_path / "in" / "a.parquet"
    if change == "gone":
        path.unlink()
    else:
        write(path, {"prompt": ["a", "another"]})
    [chunk] = prompts_of(job)
    assert chunk.requests == ()
    assert chunk.rows.to_pylist() == [{"prompt": None}, {"prompt": None}]
    assert [str(error.code) for error in chunk.errors.values()] == ["input_changed"] * 2
    assert str(path) in chunk.errors[0].message


def test_a_file_touched_since_is_the_planned_one(prepare, tmp_path):
    job = prepare({"prompt": ["a", "b"]})
    os.utime(tmp_path / "in" / "a.parquet", (1, 1))
    assert texts(prompts_of(job)) == [["a", "b"]]


def test_a_tokenizer_that_is_not_the_planned_one(talking):
    url = f"{talking}/tokenizer.model"
    identity = Tokenizer.load(url).identity
    assert load_tokenizer(url, identity) is load_tokenizer(url, identity)
    with pytest.raises(InputChanged, match="has changed since the run began"):
        load_tokenizer(url, "another")


def test_memory_urls(prepare):
    base = f"memory://{uuid.uuid4().hex}"
    with fsspec.open(f"{base}/a.parquet", "wb") as file:
        pq.write_table(pa.table({"prompt": ["a", "b", "c"]}), file)
    job = prepare(input=(base,), output=f"{base}-out", chunk_rows=2)
    assert texts(prompts_of(job)) == [["a", "b"], ["c"]]
