import dataclasses
import datetime
import decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.claim import JOB
from pipeline.commit import (
    COUNTS,
    PROVENANCE,
    RUN,
    Counts,
    NotConserved,
    RowFailed,
    Superseded,
    commit,
    read_counts,
)
from pipeline.versions import code_identity
from schemas.error import ErrorCode, RowError
from schemas.sampling import SamplingParams
from tests.jobs import ENGINE, answer, prompts_of, read_parts

TABLE = {"prompt": ["a", None, "c", ""], "n": [1, 1, 3, 1], "extra": [1.5, None, 3.5, 4.5]}
BROKEN = RowError(ErrorCode.ENGINE_FAILURE, "it broke")


@pytest.fixture
def asked(prepare):
    """A job of one chunk, and the chunk."""
    job = prepare(TABLE)
    [chunk] = prompts_of(job)
    return job, chunk


def test_a_part_holds_every_row_in_order(asked, tmp_path):
    job, chunk = asked
    committed = commit(job, answer(chunk))
    assert committed.first
    rows = read_parts(tmp_path / "out")
    got = [(row["prompt"], row["sample_index"], row["status"], row["extra"]) for row in rows]
    assert got == [
        ("a", 0, "succeeded", 1.5),
        (None, 0, "errored", None),
        ("c", 0, "succeeded", 3.5),
        ("c", 1, "succeeded", 3.5),
        ("c", 2, "succeeded", 3.5),
        ("", 0, "errored", 4.5),
    ]
    assert [row["row_uid"] for row in rows[2:5]] == [chunk.row_uids[2]] * 3
    assert [row["param_n"] for row in rows] == [1, 1, 3, 3, 3, 1]
    tokens = len(chunk.requests[1].prompt_token_ids)
    assert rows[3]["prompt_tokens"] == rows[3]["completion_tokens"] == tokens
    counts = committed.counts
    assert (counts.rows_in, counts.succeeded, counts.errored, counts.rows_out) == (4, 2, 2, 6)
    assert counts.errors == {"prompt_empty": 1, "prompt_missing": 1}
    assert counts.finish_reasons == {"length": 4}


def test_a_row_that_failed_in_the_engine_is_an_error_row(asked, tmp_path):
    job, chunk = asked
    committed = commit(job, answer(chunk, lambda i: BROKEN if i == 1 else None))
    assert (committed.counts.succeeded, committed.counts.errored) == (1, 3)
    rows = read_parts(tmp_path / "out")
    assert [row["status"] for row in rows] == ["succeeded", "errored", "errored", "errored"]
    assert rows[2]["error_code"] == "engine_failure"
    assert rows[2]["prompt_tokens"] == len(chunk.requests[1].prompt_token_ids)


def test_the_seed_that_was_used_stands_in_the_row(prepare, tmp_path):
    job = prepare({"prompt": ["a", "b"], "seed": [None, 5]}, run_seed=9)
    commit(job, answer(prompts_of(job)[0]))
    assert [row["seed"] for row in read_parts(tmp_path / "out")] == [9, 5]
    assert [row["param_seed"] for row in read_parts(tmp_path / "out")] == [None, 5]


def test_the_first_writer_wins_and_the_second_tells_its_counts(asked, tmp_path):
    job, chunk = asked
    first = commit(job, answer(chunk))
    data = (tmp_path / "out" / first.part).read_bytes()
    second = commit(job, answer(chunk, lambda i: BROKEN))
    assert not second.first
    assert second.counts == first.counts == read_counts(job.folder, first.part)
    assert (tmp_path / "out" / first.part).read_bytes() == data


def test_equal_jobs_write_equal_parts(prepare, tmp_path):
    """All but when and how fast; the output folder is no part of it."""

    def part(output):
        job = prepare(TABLE, output=str(tmp_path / output))
        name = commit(job, answer(prompts_of(job)[0])).part
        path = tmp_path / output / name
        metadata = dict(pq.ParquetFile(path).metadata.metadata)
        run = json.loads(metadata.pop(RUN))
        assert run["run_id"] == job.run_id
        return name, metadata, pq.ParquetFile(path).read()

    assert part("one") == part("two")


def test_the_footer_tells_where_a_part_comes_from(asked, tmp_path):
    job, chunk = asked
    name = commit(job, answer(chunk)).part
    metadata = pq.ParquetFile(tmp_path / "out" / name).metadata.metadata
    told = json.loads(metadata[PROVENANCE])
    assert told["settings"]["checkpoint"] == job.settings["checkpoint"]
    assert told["settings"]["max_tokens"] == 16
    assert told["input"]["path"] == "a.parquet"
    assert told["input"]["rows"] == 4
    assert told["engine"] == ENGINE
    assert told["code"] == code_identity()
    assert told["fingerprint"] in name
    assert Counts(**json.loads(metadata[COUNTS])).rows_out == 6


@pytest.mark.parametrize("owner", ["another", "gone"])
def test_a_straggler_of_another_run_writes_nothing(asked, tmp_path, owner):
    job, chunk = asked
    path = tmp_path / "out" / JOB
    if owner == "another":
        path.write_text(json.dumps({**json.loads(path.read_text()), "run_id": "another"}))
    else:
        path.unlink()
    with pytest.raises(Superseded, match="taken over by another run"):
        commit(job, answer(chunk))
    assert list((tmp_path / "out").glob("part-*")) == []


def test_strict_stops_at_the_first_error_row(prepare, tmp_path):
    job = prepare({"prompt": ["a", "", None]}, strict=True)
    with pytest.raises(RowFailed) as caught:
        commit(job, answer(prompts_of(job)[0]))
    assert str(caught.value).startswith("row 1 of a.parquet: prompt has no tokens (")
    assert str(caught.value).endswith("--strict stops here")
    assert list((tmp_path / "out").glob("part-*")) == []


def lose_a_request(result):
    prompts = result.prompts
    fewer = dataclasses.replace(prompts, sources=prompts.sources[1:], requests=prompts.requests[1:])
    return dataclasses.replace(result, prompts=fewer, outputs=result.outputs[1:])


def lose_a_sample(result):
    *others, last = result.outputs
    short = dataclasses.replace(last, outputs=last.outputs[:-1])
    return dataclasses.replace(result, outputs=(*others, short))


def lose_a_row(result):
    prompts = dataclasses.replace(
        result.prompts,
        chunk=dataclasses.replace(result.prompts.chunk, rows=result.prompts.chunk.rows + 1),
    )
    return dataclasses.replace(result, prompts=prompts)


@pytest.mark.parametrize("lose", [lose_a_request, lose_a_sample, lose_a_row])
def test_a_chunk_that_lost_something_is_not_written(asked, tmp_path, lose):
    job, chunk = asked
    with pytest.raises((NotConserved, KeyError)):
        commit(job, lose(answer(chunk)))
    assert list((tmp_path / "out").glob("part-*")) == []


TALLIES = st.dictionaries(st.sampled_from("abc"), st.integers(1, 9))
COUNTED = st.builds(
    Counts,
    **{
        field.name: TALLIES if field.type == dict[str, int] else st.integers(0, 99)
        for field in dataclasses.fields(Counts)
    },
)


@given(COUNTED, COUNTED, COUNTED)
def test_counts_add_up_in_any_order(a, b, c):
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Counts() == dataclasses.replace(
        a,
        finish_reasons=dict(sorted(a.finish_reasons.items())),
        errors=dict(sorted(a.errors.items())),
    )
    assert (a + b).rows_in == a.rows_in + b.rows_in


def test_a_prefix_names_the_added_columns(prepare, tmp_path):
    job = prepare({"prompt": ["a"], "text": ["mine"]}, output_prefix="g_")
    commit(job, answer(prompts_of(job)[0]))
    [row] = read_parts(tmp_path / "out")
    assert row["text"] == "mine"
    assert row["g_status"] == "succeeded"


def test_parameters_given_to_the_job_are_not_columns(prepare, tmp_path):
    job = prepare({"prompt": ["a"]}, sampling=SamplingParams(n=2))
    commit(job, answer(prompts_of(job)[0]))
    rows = read_parts(tmp_path / "out")
    assert [row["sample_index"] for row in rows] == [0, 1]
    assert "param_n" not in rows[0]


def test_any_type_of_column_passes_through(prepare, tmp_path):
    table = pa.table(
        {
            "prompt": ["a", None],
            "when": pa.array([datetime.datetime(2024, 5, 6), None], pa.timestamp("us")),
            "price": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(6, 2)),
            "raw": pa.array([b"\xff\x00", None]),
            "deep": pa.array([{"a": [1, None], "b": {"c": "x"}}, None]),
            "pairs": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())),
            "word": pa.array(["w", None]).dictionary_encode(),
            "nothing": pa.nulls(2),
        }
    )
    job = prepare(table)
    name = commit(job, answer(prompts_of(job)[0])).part
    read = pq.ParquetFile(tmp_path / "out" / name).read().select(table.column_names)
    assert read.to_pylist() == table.to_pylist()
    assert read.schema.types == table.schema.types
