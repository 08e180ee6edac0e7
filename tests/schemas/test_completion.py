import dataclasses
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.completion import COLUMNS, OutputRows, output_schema
from schemas.error import ErrorCode, RowError, SetupError


def output_of(*fields, consumed=("max_tokens",), **options):
    return output_schema(pa.schema(list(fields)), consumed, **options)


def refused(*fields, **options) -> str:
    with pytest.raises(SetupError) as caught:
        output_of(*fields, **options)
    return str(caught.value)


def test_the_inputs_columns_come_first():
    output = output_of(("id", pa.int16()), ("prompt", pa.string()), ("x", pa.list_(pa.int8())))
    assert output.inputs == 3
    assert output.schema.names == ["id", "prompt", "x", *COLUMNS]
    assert output.schema.field("id").type == pa.int16()


def test_a_consumed_parameter_is_told_apart_from_the_answer():
    output = output_of(
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("logprobs", pa.int8()),
        consumed=["seed", "logprobs"],
    )
    assert output.schema.names[:3] == ["prompt", "param_seed", "param_logprobs"]


def test_all_may_be_null():
    output = output_of(pa.field("prompt", pa.string(), nullable=False))
    assert all(field.nullable for field in output.schema)


@pytest.mark.parametrize("name", ["text", "Text", "STATUS"])
def test_a_collision_with_an_added_column(name):
    fields = (("prompt", pa.string()), (name, pa.string()))
    sentence = refused(*fields)
    assert f"input column '{name}'" in sentence
    assert f"--rename {name}=NAME" in sentence
    assert "--output-prefix" in sentence
    assert output_of(*fields, rename={name: "mine"}).schema.names[1] == "mine"
    assert output_of(*fields, prefix="g_").schema.names[2] == "g_row_uid"


def test_a_collision_of_two_inputs():
    sentence = refused(("prompt", pa.string()), ("Prompt", pa.string()))
    assert "input column 'prompt'" in sentence
    sentence = refused(("param_max_tokens", pa.int8()), ("max_tokens", pa.int8()))
    assert "input column 'param_max_tokens'" in sentence


def test_a_prefix_that_collides():
    assert "g_text" in refused(("g_text", pa.string()), prefix="g_")


def test_renaming_what_is_not_there():
    assert "no column 'gone'" in refused(("prompt", pa.string()), rename={"gone": "x"})


def test_it_reads_back_as_it_is_written():
    output = output_of(("prompt", pa.string()))
    sink = io.BytesIO()
    pq.write_table(output.schema.empty_table(), sink)
    assert pq.read_schema(sink) == output.schema


@dataclasses.dataclass
class Entry:
    token_id: int
    logprob: float
    rank: int
    top_token_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


FLOATS = st.floats(width=32, allow_nan=False)
TOPS = st.lists(st.tuples(st.integers(0, 99), FLOATS), max_size=3)
ENTRIES = st.builds(
    lambda token, logprob, rank, tops: Entry(
        token, logprob, rank, tuple(t for t, _ in tops), tuple(p for _, p in tops)
    ),
    st.integers(0, 99),
    FLOATS,
    st.integers(1, 9),
    TOPS,
)
LOGPROBS = st.none() | st.lists(st.none() | ENTRIES, max_size=3)


def plain(entries):
    if entries is None:
        return None
    return [
        None
        if e is None
        else {
            **dataclasses.asdict(e),
            "top_token_ids": list(e.top_token_ids),
            "top_logprobs": list(e.top_logprobs),
        }
        for e in entries
    ]


@given(st.lists(st.tuples(st.integers(0, 3), LOGPROBS), max_size=6))
def test_rows_come_out_as_they_were_added(samples):
    """Each input row with its number of samples, an error if none; through a Parquet file."""
    output = output_of(("prompt", pa.string()))
    inputs = pa.table({"prompt": [f"p{i}" for i in range(len(samples))]})
    rows, want = OutputRows(), []
    for i, (n, logprobs) in enumerate(samples):
        if n == 0:
            error = RowError(ErrorCode.PROMPT_EMPTY, "no tokens", "prompt")
            rows.add_error(i, f"u{i}", error, prompt_tokens=7)
            want.append((f"p{i}", f"u{i}", None, "errored", None, None, "prompt_empty", 7))
        for k in range(n):
            rows.add(i, f"u{i}", sample_index=k, finish_reason="stop", logprobs=logprobs)
            want.append((f"p{i}", f"u{i}", k, "succeeded", "stop", plain(logprobs), None, None))
    table = rows.table(inputs, output)
    assert table.schema == output.schema
    sink = io.BytesIO()
    pq.write_table(table, sink)
    table = pq.ParquetFile(sink).read(use_threads=False)
    names = "prompt row_uid sample_index status finish_reason logprobs error_code prompt_tokens"
    got = [tuple(row[name] for name in names.split()) for row in table.to_pylist()]
    assert got == want


def test_an_unknown_value_is_a_programming_error():
    with pytest.raises(TypeError, match="warmth"):
        OutputRows().add(0, "u", warmth=1)


def test_an_error_row_says_what_where_and_the_remedy():
    rows = OutputRows()
    rows.add_error(0, "u", RowError(ErrorCode.PROMPT_MISSING, "prompt is null", "prompt"))
    [row] = rows.table(pa.table({"prompt": [None]}), output_of(("prompt", pa.null()))).to_pylist()
    assert row["error_code"] == "prompt_missing"
    assert row["error_message"].startswith("prompt is null (fill ")
    assert row["error_param"] == "prompt"
    assert row["text"] is row["token_ids"] is row["prompt_tokens"] is None


def test_what_is_passed_through_is_readable_by_all():
    column = pa.array([b"a\xff"]).view(pa.string())
    rows = OutputRows()
    rows.add(0, "u", sample_index=0)
    table = rows.table(pa.table({"prompt": column}), output_of(("prompt", pa.string())))
    assert table.column("prompt").to_pylist() == ["a\ufffd"]
