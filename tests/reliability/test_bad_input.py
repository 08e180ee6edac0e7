"""Input that is corrupt: all else is completed, and each row and file that was not is named."""

import io
import os
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import page_header, plan, shards, stream
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


def test_a_file_that_was_left_out_stays_out_when_it_is_mended(folder, tmp_path):
    """Its rows would be new ones, in the midst of what is done."""
    _zero_bytes(folder / "a.parquet")
    output = str(tmp_path / "out")
    assert runs.generate(str(folder), output) == 3
    before = runs.fingerprint(output)
    runs.write(folder / "a.parquet", runs.prompts(7))
    assert runs.generate(str(folder), output) == 3
    assert runs.fingerprint(output) == before
    assert runs.generate(str(folder), output, "--overwrite") == 0
    assert runs.manifest(output)["rows_in"] == GOOD + 7
    assert _file_errors(output) == []


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
