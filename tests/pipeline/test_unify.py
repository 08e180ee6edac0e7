import pyarrow as pa
import pytest

from pipeline.shards import list_inputs, read_footers
from pipeline.unify import unify
from tests.jobs import write


def unified(tmp_path, *tables, **options):
    """The schema of files with these tables, and each file's fault or None."""
    for i, table in enumerate(tables):
        write(tmp_path / f"{i}.parquet", table)
    schema, shards = unify(read_footers(list_inputs([str(tmp_path)])), **options)
    return schema, [shard.fault and shard.fault.message for shard in shards]


def test_types_widen_without_loss(tmp_path):
    schema, faults = unified(
        tmp_path,
        {"prompt": pa.array(["a"]), "x": pa.array([1], pa.int32())},
        {"prompt": pa.array(["b"], pa.large_string()), "x": pa.array([1], pa.int64())},
        {"prompt": pa.array([None], pa.null()), "y": pa.array([True])},
    )
    assert faults == [None, None, None]
    assert schema.names == ["prompt", "x", "y"]
    assert schema.field("prompt").type == pa.large_string()
    assert schema.field("x").type == pa.int64()
    assert schema.field("y").type == pa.bool_()


def test_dictionaries_meet_plain_strings(tmp_path):
    words = pa.array(["a", "b"])
    schema, faults = unified(tmp_path, {"prompt": words.dictionary_encode()}, {"prompt": words})
    assert faults == [None, None]
    assert schema.field("prompt").type == pa.string()


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_a_type_that_cannot_be_merged_with_most(tmp_path, odd):
    """Wherever it stands, it is the one left out; the columns keep their order."""
    tables = [{"prompt": ["a"], "x": [1]} for _ in range(3)]
    tables[odd] = {"y": [0], "x": ["one"]}
    schema, faults = unified(tmp_path, *tables)
    assert schema == pa.schema([("prompt", pa.string()), ("x", pa.int64())])
    path = tmp_path / f"{odd}.parquet"
    told = f"{path}: column 'x' is string, but int64 in the other files"
    assert faults == [told if i == odd else None for i in range(3)]


def test_what_fits_the_job_is_no_exception(tmp_path):
    """However many files bring another type."""
    tables = [{"prompt": [1]}, {"prompt": [2]}, {"prompt": ["text"]}]
    schema, faults = unified(
        tmp_path, *tables, fits=lambda schema: schema.field("prompt").type == pa.string()
    )
    assert schema == pa.schema([("prompt", pa.string())])
    assert [fault is not None for fault in faults] == [True, True, False]


def test_two_columns_of_one_name(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["prompt", "prompt"])
    schema, faults = unified(tmp_path, table, {"prompt": ["c"]})
    assert schema.names == ["prompt"]
    assert faults == [f"{tmp_path / '0.parquet'}: two columns are named 'prompt'", None]


def test_no_file_has_a_schema(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"")
    schema, faults = unified(tmp_path)
    assert schema is None
    assert "0 bytes" in faults[0]
