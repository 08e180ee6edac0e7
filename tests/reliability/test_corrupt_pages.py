"""Pages of a file that are corrupt: their own rows are lost, and no other."""

import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import page_header, plan, shards, stream
from tests.reliability import runs


def _spoil_page(path: pathlib.Path, column: int, share: float, group: int = 0) -> None:
    """Overwrites the last bytes of a data page of a column, at a share of its length.

    Not just any bytes: those of a header's statistics would do no harm.
    """
    chunk = pq.read_metadata(path).row_group(group).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(path.read_bytes())
    end = start
    while end < start + chunk.total_compressed_size * share:
        header, begin = page_header._read_struct(data, end)
        body, end = begin, begin + header[3]
    at = max(body, end - 24)
    data[at:end] = bytes(b ^ 0xA5 for b in data[at:end])
    path.write_bytes(data)


def _paged(path: pathlib.Path, rows: int, **options) -> None:
    """A file of one row group with many small pages, as other writers make them."""
    columns = {"prompt": [f"prompt {i} " + "x" * (i % 40) for i in range(rows)], "id": range(rows)}
    usual = {"data_page_size": 2048, "write_batch_size": 64, "use_dictionary": False}
    runs.write(path, pa.table({k: list(v) for k, v in columns.items()}), **{**usual, **options})


def test_a_corrupt_page_costs_its_own_rows(tmp_path):
    """In the middle of a file: rows before and behind it, and other columns' pages, are whole."""
    path = tmp_path / "a.parquet"
    _paged(path, 4000)
    truth = pq.read_table(path)
    _spoil_page(path, 0, 0.5)
    table, faults = _stream(path, truth.schema, 4000)
    lost = sorted(faults)
    assert lost == list(range(lost[0], lost[-1] + 1))
    assert 32 <= len(lost) <= 256
    assert 1000 < lost[0] < 3000
    assert {str(fault.code) for fault in faults.values()} == {"input_unreadable"}
    kept = [i for i in range(4000) if i not in faults]
    assert table.take(kept) == truth.take(kept)
    assert all(row == {"prompt": None, "id": None} for row in table.take(lost).to_pylist())


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_every_row_that_is_not_lost_is_right(version, compression, dictionary, tmp_path):
    """Pages of all kinds of columns, spoiled in several places, also in one row group of two."""
    rows, path = 3000, tmp_path / "a.parquet"
    truth = pa.table(
        {
            "prompt": [f"p{i} " + "y" * (i % 30) for i in range(rows)],
            "ids": [[i, i + 1, i + 2][: i % 4] for i in range(rows)],
            "s": [{"a": i, "b": str(i)} for i in range(rows)],
            "must": pa.array(range(rows), pa.int64()),
        },
        schema=pa.schema(
            [
                ("prompt", pa.string()),
                ("ids", pa.list_(pa.field("element", pa.int64()))),
                ("s", pa.struct([("a", pa.int64()), ("b", pa.string())])),
                pa.field("must", pa.int64(), nullable=False),
            ]
        ),
    )
    for column, share in ((0, 0.3), (1, 0.6), (3, 0.5), (4, 0.8)):
        runs.write(
            path,
            truth,
            data_page_version=version,
            compression=compression,
            use_dictionary=dictionary,
            data_page_size=1024,
            write_batch_size=64,
            write_page_checksum=True,
            row_group_size=1500,
        )
        _spoil_page(path, column, share, group=1)
        table, faults = _stream(path, truth.schema, rows)
        assert faults
        assert min(faults) >= 1500
        kept = [i for i in range(rows) if i not in faults]
        assert len(kept) >= 1500
        assert table.take(kept) == truth.take(kept)


def test_a_checksum_finds_what_decoding_does_not(tmp_path):
    path = tmp_path / "a.parquet"
    _paged(path, 1000, compression="none", write_page_checksum=True)
    truth = pq.read_table(path)
    data = path.read_bytes()
    at = data.index(b"prompt 500 ")
    path.write_bytes(data[:at] + b"PROMPT" + data[at + 6 :])
    table, faults = _stream(path, truth.schema, 1000)
    assert 500 in faults
    assert len(faults) < 300
    kept = [i for i in range(1000) if i not in faults]
    assert table.take(kept) == truth.take(kept)


def _stream(path: pathlib.Path, schema: pa.Schema, rows: int):
    """All rows of a file by chunks of 250, as a span's reader sees them."""
    [listed] = shards.list_inputs([str(path)])
    [shard] = shards.read_footers([listed])
    file = plan.PlannedFile(
        index=0,
        base=0,
        name=path.name,
        path=path.name,
        size=listed.size,
        version=listed.version,
        footer=shard.footer,
        rows=rows,
    )
    chunks = [
        plan.Chunk(file=file, first_row=at, rows=min(250, rows - at), fingerprint="")
        for at in range(0, rows, 250)
    ]
    tables, faults = [], {}
    for chunk, (table, found) in zip(
        chunks, stream.stream_chunks(str(path), file, chunks, schema), strict=True
    ):
        assert table.num_rows == chunk.rows
        tables.append(table)
        faults.update({chunk.first_row + row: error for row, error in found.items()})
    return pa.concat_tables(tables), faults
