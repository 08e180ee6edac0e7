import dataclasses

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline import plan
from pipeline.options import GenerateOptions
from pipeline.shards import list_inputs, read_footers
from pipeline.spans import GROUP_BYTES, SPAN_BYTES, SPAN_CHUNKS, spans
from pipeline.storage import Folder
from schemas.sampling import SamplingParams
from tests.jobs import write

WEIGHTS = plan.Weights(texts=("prompt",))


def planned_file(index=0, rows=10, size=1000, group=0) -> plan.PlannedFile:
    name = f"{index}.parquet"
    return plan.PlannedFile(
        index=index,
        base=0,
        name=name,
        path=name,
        size=size,
        version="1",
        footer="f",
        rows=rows,
        group_bytes=group,
    )


def chunks_of(tmp_path, identity="i", **options):
    shards = read_footers(list_inputs([str(tmp_path)]))
    given = GenerateOptions(checkpoint="c", input=("in",), output="out", **options)
    return plan.make_plan(shards, WEIGHTS, given, identity)[2]


def spread(chunks):
    return [(chunk.file.index, chunk.first_row, chunk.rows) for chunk in chunks]


def test_files_are_cut_into_chunks_and_never_joined(tmp_path):
    for i, rows in enumerate((5, 0, 3)):
        write(tmp_path / f"{i}.parquet", {"prompt": pa.array(["x"] * rows, pa.string())})
    assert spread(chunks_of(tmp_path, chunk_rows=2)) == [
        (0, 0, 2),
        (0, 2, 2),
        (0, 4, 1),
        (2, 0, 2),
        (2, 2, 1),
    ]
    assert spread(chunks_of(tmp_path, chunk_rows=2, limit=6)) == [
        (0, 0, 2),
        (0, 2, 2),
        (0, 4, 1),
        (2, 0, 1),
    ]


def test_an_input_without_rows_has_one_part(tmp_path):
    write(tmp_path / "0.parquet", {"prompt": pa.array([], pa.string())})
    assert spread(chunks_of(tmp_path)) == [(0, 0, 0)]


def test_chunks_are_worth_about_the_same(tmp_path):
    write(tmp_path / "0.parquet", {"prompt": [f"prompt {i} " * 20 for i in range(5000)]})
    assert chunks_of(tmp_path)[0].rows == plan.CHUNK_ROWS
    long = chunks_of(tmp_path, sampling=SamplingParams(max_tokens=2000))
    assert 200 < long[0].rows < 300
    many = chunks_of(tmp_path, sampling=SamplingParams(max_tokens=2000, n=8))
    assert 25 < many[0].rows < 40
    assert sum(chunk.rows for chunk in many) == 5000


def test_an_address_names_its_part_in_input_order(tmp_path):
    for i in range(12):
        write(tmp_path / f"{i:02}.parquet", {"prompt": ["x"] * 11})
    names = [chunk.part_name for chunk in chunks_of(tmp_path, chunk_rows=1)]
    assert names == sorted(names)
    assert len(set(names)) == 12 * 11
    assert all(plan.is_part(name) for name in names)
    assert not plan.is_part("_manifest.parquet")


def test_what_decides_a_part_decides_its_name(tmp_path):
    def fingerprints(**options):
        return {chunk.fingerprint for chunk in chunks_of(tmp_path, **options)}

    write(tmp_path / "0.parquet", {"prompt": ["a", "b", "c"]})
    one = fingerprints(chunk_rows=1)
    assert len(one) == 3
    assert fingerprints(chunk_rows=1) == one
    assert not fingerprints(chunk_rows=1, identity="j") & one
    assert not fingerprints(chunk_rows=2) & one - fingerprints(chunk_rows=1)
    write(tmp_path / "0.parquet", {"prompt": ["a", "b", "d"]})
    assert not fingerprints(chunk_rows=1) & one


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 1 << 28)), max_size=30))
def test_spans_hold_every_chunk_once_in_order(sizes):
    chunks = [
        plan.Chunk(file=planned_file(i, rows, size), first_row=first, rows=1, fingerprint="0" * 12)
        for i, (rows, size) in enumerate(sizes)
        for first in range(min(rows, 40))
    ]
    grouped = list(spans(chunks))
    assert [chunk for span in grouped for chunk in span.chunks] == chunks
    for span in grouped:
        assert 0 < len(span.chunks) <= SPAN_CHUNKS
        size = sum(c.file.size * c.rows // c.file.rows for c in span.chunks)
        assert size <= SPAN_BYTES or len(span.chunks) == 1
    if len(chunks) <= 64:  # few chunks: each on its own, so that all are in flight
        assert len(grouped) == len(chunks)


def test_chunks_go_one_by_one_but_for_those_of_a_very_large_row_group():
    """The reader of one passes over all rows before it in the row group."""

    def sizes(group: int) -> set[int]:
        file = planned_file(rows=64 * 32, size=1 << 20, group=group)
        chunks = [
            plan.Chunk(file=file, first_row=first, rows=1, fingerprint="0" * 12)
            for first in range(64 * 32)
        ]
        return {len(span.chunks) for span in spans(chunks)}

    assert sizes(GROUP_BYTES) == {1}
    assert sizes(GROUP_BYTES + 1) == {SPAN_CHUNKS}


def test_many_tiny_files_share_spans():
    chunks = [
        plan.Chunk(file=planned_file(i), first_row=0, rows=10, fingerprint="0" * 12)
        for i in range(64 * 20)
    ]
    assert len(list(spans(chunks))) == 64 * 20 // SPAN_CHUNKS


def test_a_written_plan_reads_back(tmp_path):
    files = [planned_file(0), dataclasses.replace(planned_file(1), base=1, version="")]
    chunks = [
        plan.Chunk(file=file, first_row=first, rows=5, fingerprint=f"{first:012}")
        for file in files
        for first in (0, 5)
    ]
    folder = Folder(str(tmp_path / "out"))
    assert plan.read_chunks(folder) == []
    plan.write_plan(folder, files, chunks)
    assert plan.read_files(folder) == files
    assert plan.read_chunks(folder) == chunks


def test_a_fingerprint_is_of_values_not_of_their_order():
    assert plan.fingerprint({"a": 1, "b": 2}) == plan.fingerprint({"b": 2, "a": 1})
    assert plan.fingerprint("a", "b") != plan.fingerprint("ab", "")
    assert len(plan.fingerprint("a", digits=32)) == 32
