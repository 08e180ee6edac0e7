"""A file's rows as a stream, cut into chunks; what cannot be read is a fault of just those rows."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.checkpoint import files
from model.checkpoint.answers import Answer, answer, telling
from pipeline.footer import read_footer
from pipeline.pages import is_corrupt, salvage
from pipeline.plan import Chunk, PlannedFile
from pipeline.shards import end_digest, version_of
from pipeline.storage import open_parquet
from schemas.error import ErrorCode, RowError, SetupError

_BATCH_BYTES = 8 << 20
"""What one decoded batch of rows should take at most; with the chunk itself, all a reader holds."""

_BATCH_ROWS = 1024

_BUFFER_BYTES = 64 << 20
"""Read ahead over all columns of a file."""

Faults = dict[int, RowError]
"""Row of a chunk -> why it could not be read; its values are null."""


@dataclasses.dataclass(frozen=True)
class _Run:
    """Rows that follow one another in a file: their values, or why there are none."""

    count: int
    values: pa.RecordBatch | None
    fault: RowError | None = None


class _FileFault(Exception):
    """The whole file cannot be read as it was planned."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.error = RowError(code, message)


def stream_chunks(
    url: str, file: PlannedFile, chunks: Sequence[Chunk], schema: pa.Schema
) -> Iterator[tuple[pa.Table, Faults]]:
    """The rows of each chunk; row groups without any are not read, nor is a file held whole.

    A store that is out of reach raises, since it may answer the next attempt. Bytes that are there
    and wrong are faults: of the rows of a page, or of all rows of a file that is gone, forbidden or
    no longer the one that was planned.

    Args:
      url: the file.
      file: the same, as it was planned.
      chunks: of this file, in order.
      schema: of the whole input.
    """
    done = 0
    try:
        _check_unchanged(url, file)
        if not any(chunk.rows for chunk in chunks):
            yield from ((schema.empty_table(), {}) for _ in chunks)
            return
        with _opened(url) as source:
            runs, first = _runs(source, url, chunks, schema)
            for chunk, cut in zip(chunks, _cut(runs, first, chunks, schema), strict=True):
                # What was read while the file was being replaced belongs to neither version.
                _check_unchanged(url, file)
                done += 1
                yield chunk_rows(cut, chunk, schema)
    except _FileFault as fault:
        for chunk in chunks[done:]:
            yield chunk_rows([_Run(chunk.rows, None, fault.error)], chunk, schema)


def chunk_rows(runs: Sequence[_Run], chunk: Chunk, schema: pa.Schema) -> tuple[pa.Table, Faults]:
    """A chunk's table, null where nothing could be read, and the faults."""
    batches, faults, row = [], {}, 0
    for run in runs:
        batches.append(_nulls(run.count, schema) if run.values is None else run.values)
        if run.fault is not None:
            faults.update(dict.fromkeys(range(row, row + run.count), run.fault))
        row += run.count
    return pa.Table.from_batches(batches, schema), faults


def _nulls(rows: int, schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(rows, f.type) for f in schema], schema=schema)


def _opened(url: str) -> Any:
    with _answers(url):
        return open_parquet(url, _BUFFER_BYTES // 16)


def _runs(
    source: Any, url: str, chunks: Sequence[Chunk], schema: pa.Schema
) -> tuple[Iterator[_Run], int]:
    """The rows of the row groups that hold wanted ones, and the number of the first."""
    buffer = max(64 << 10, min(4 << 20, _BUFFER_BYTES // max(1, len(schema))))
    try:
        parquet = pq.ParquetFile(
            source, pre_buffer=False, buffer_size=buffer, page_checksum_verification=True
        )
    except Exception as error:
        if not is_corrupt(error):
            with _answers(url):
                raise
        raise _unreadable(url, error) from error
    wanted, first = _row_groups(parquet.metadata, chunks)

    def stream() -> Iterator[_Run]:
        for group in wanted:
            with _answers(url):
                yield from _group(source, parquet, group, url, schema)

    return stream(), first


def _group(
    source: Any, parquet: pq.ParquetFile, group: int, url: str, schema: pa.Schema
) -> Iterator[_Run]:
    facts = parquet.metadata.row_group(group)
    rows = max(1, _BATCH_BYTES * facts.num_rows // max(1, facts.total_byte_size))
    batches = parquet.iter_batches(min(rows, _BATCH_ROWS), row_groups=[group], use_threads=False)
    done = 0
    while True:
        try:
            batch = next(batches, None)
        except Exception as error:
            if not is_corrupt(error):
                raise
            break
        if batch is None:
            break
        yield _conformed(batch, schema, url)
        done += batch.num_rows
    if done < facts.num_rows:
        yield from _salvaged(source, parquet, group, done, url, schema)


def _salvaged(
    source: Any, parquet: pq.ParquetFile, group: int, done: int, url: str, schema: pa.Schema
) -> Iterator[_Run]:
    """The rest of a row group that a reader gave up, from row ``done`` of the group on."""
    found = salvage(source, parquet.metadata, group)
    rows = parquet.metadata.row_group(group).num_rows
    lost = _unreadable(url, found.reason or "it ends before its last row").error
    step = next(n for n in range(min(_BATCH_ROWS, found.rows or 1), 0, -1) if found.rows % n == 0)
    batches = found.parquet.iter_batches(step, row_groups=[group], use_threads=False)
    at = 0
    while at < found.rows:
        batch = next(batches)
        yield from _around(batch, at, done, found.bad, lost, url, schema)
        at += batch.num_rows
    if rows > max(done, found.rows):
        yield _Run(rows - max(done, found.rows), None, lost)


def _around(
    batch: pa.RecordBatch,
    at: int,
    done: int,
    bad: Sequence[range],
    lost: RowError,
    url: str,
    schema: pa.Schema,
) -> Iterator[_Run]:
    """A batch that begins at row ``at``, from row ``done`` on, with the bad ranges cut out."""
    end = at + batch.num_rows
    cuts = sorted({cut for span in bad for cut in (span.start, span.stop) if at < cut < end})
    for start, stop in zip([at, *cuts], [*cuts, end], strict=True):
        start = max(start, done)
        if start >= stop:
            continue
        if any(start in span for span in bad):
            yield _Run(stop - start, None, lost)
        else:
            yield _conformed(batch.slice(start - at, stop - start), schema, url)


def _row_groups(metadata: pq.FileMetaData, chunks: Sequence[Chunk]) -> tuple[list[int], int]:
    """The row groups from the first that holds a wanted row to the last, and its first row."""
    begin, end = chunks[0].first_row, chunks[-1].first_row + chunks[-1].rows
    wanted: list[int] = []
    first = at = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if at < end and at + rows > begin:
            first = at if not wanted else first
            wanted.append(group)
        at += rows
    return wanted, first


def _cut(
    runs: Iterator[_Run], at: int, chunks: Sequence[Chunk], schema: pa.Schema
) -> Iterator[list[_Run]]:
    """For each chunk the runs that make it up; ``at`` is the row that the first run begins at."""
    run, start = _Run(0, None), at
    for chunk in chunks:
        pieces, need = [], chunk.first_row
        end = chunk.first_row + chunk.rows
        while need < end:
            if start + run.count <= need:
                start += run.count
                # The footer has been compared with the plan, so that the rows are there.
                run = next(runs)
                continue
            count = min(start + run.count, end) - need
            values = None if run.values is None else run.values.slice(need - start, count)
            pieces.append(_Run(count, values, run.fault))
            need += count
        yield pieces


def _conformed(batch: pa.RecordBatch, schema: pa.Schema, url: str) -> _Run:
    """The batch in the schema of the whole input: absent columns null, types widened."""
    arrays = []
    for field in schema:
        at = batch.schema.get_field_index(field.name)
        if at < 0:
            arrays.append(pa.nulls(batch.num_rows, field.type))
        elif batch.column(at).type == field.type:
            arrays.append(batch.column(at))
        else:
            try:
                arrays.append(batch.column(at).cast(field.type))
            except pa.ArrowException as error:
                reason = f"column {field.name!r} does not fit {field.type}: {error}"
                return _Run(batch.num_rows, None, _unreadable(url, reason).error)
    return _Run(batch.num_rows, pa.RecordBatch.from_arrays(arrays, schema=schema))


def _check_unchanged(url: str, file: PlannedFile) -> None:
    fs, path = files.split(url)
    fs.invalidate_cache(fs._parent(path))
    with _answers(url):
        info = fs.info(path)
    # A web server's listing says less of a file than the server does when asked for it.
    if info["size"] == file.size and file.version in ("", version_of(info)):
        return
    # A copy or a touch gives the same content another version.
    try:
        with _answers(url):
            same = end_digest(read_footer(url, info["size"])[0]) == file.footer
    except files.OutOfReach:
        raise
    except SetupError:
        same = False
    if info["size"] != file.size or not same:
        message = f"{files.redact(url)} has changed since the run began"
        raise _FileFault(ErrorCode.INPUT_CHANGED, message)


@contextlib.contextmanager
def _answers(url: str) -> Iterator[None]:
    """Takes what a store says of a file for a fault of the file, and lets pass all else."""
    try:
        yield
    except _FileFault:
        raise
    except Exception as error:
        said, why = answer(error)
        if said is Answer.REFUSED or isinstance(error, files.Refused):
            message = f"{files.redact(url)} may not be read{why and f': {why}'}"
            raise _FileFault(ErrorCode.INPUT_UNREADABLE, message) from None
        if said is Answer.GONE or isinstance(error, files.Gone):
            raise _FileFault(ErrorCode.INPUT_CHANGED, f"{files.redact(url)} is gone") from None
        if (cause := telling(error)) is not error:
            raise cause from None
        raise


def _unreadable(url: str, reason: object) -> _FileFault:
    words = files.without_secrets(" ".join(str(reason).split()), url)[:200]
    return _FileFault(ErrorCode.INPUT_UNREADABLE, f"{files.redact(url)} is corrupt: {words}")
