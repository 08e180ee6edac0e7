"""Reading a span: its rows are streamed once, and handed on chunk by chunk, ready for the model."""

import functools
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from model.checkpoint import files
from model.tokenizer import Tokenizer
from pipeline.elements import PromptChunk
from pipeline.plan import Chunk, PlannedFile, Span
from pipeline.prepare import Job
from pipeline.prompts import prepare_chunk
from pipeline.shards import version_of
from pipeline.storage import open_parquet

_BATCH_BYTES = 8 << 20
"""What one decoded batch of rows should take at most; with the chunk itself, all a reader holds."""

_BATCH_ROWS = 1024

_BUFFER_BYTES = 64 << 20
"""Read ahead over all columns of a file."""

_AGAIN = "start the run again"


class InputChanged(Exception):
    """An input file is not the one that was planned."""


def read_span(job: Job, span: Span) -> Iterator[PromptChunk]:
    """The chunks of a span whose parts are not there yet, one after another.

    Whether a part is there is asked first: a span whose parts are all there opens no file.

    Raises:
      InputChanged: a file is no longer the one that was planned.
    """
    missing = [chunk for chunk in span.chunks if not job.folder.exists(chunk.part_name)]
    yield from read_chunks(job, missing)


def read_chunks(job: Job, wanted: Sequence[Chunk]) -> Iterator[PromptChunk]:
    """These chunks, in input order, ready for the model.

    Raises:
      InputChanged: a file is no longer the one that was planned.
    """
    tokenizer = None
    if wanted and job.tokenizer is not None:
        tokenizer = load_tokenizer(job.tokenizer, job.settings["tokenizer"])
    by_file: dict[PlannedFile, list[Chunk]] = {}
    for chunk in wanted:
        by_file.setdefault(chunk.file, []).append(chunk)
    for file, chunks in by_file.items():
        for chunk, rows in zip(chunks, _stream(job, file, chunks), strict=True):
            yield prepare_chunk(job, chunk, rows, tokenizer)


@functools.lru_cache(maxsize=2)
def load_tokenizer(url: str, identity: str) -> Tokenizer:
    """The tokenizer at a URL, kept for the process's next chunks.

    Raises:
      InputChanged: it is not the one that the job was set up with.
    """
    tokenizer = Tokenizer.load(url)
    if tokenizer.identity != identity:
        raise InputChanged(f"{files.redact(url)} has changed since the run began; {_AGAIN}")
    return tokenizer


def _stream(job: Job, file: PlannedFile, chunks: Sequence[Chunk]) -> Iterator[pa.Table]:
    """The rows of each chunk; row groups without any are not read, nor is a file held whole."""
    url = files.join(job.bases[file.base], file.name)
    _check_unchanged(url, file)
    if not any(chunk.rows for chunk in chunks):
        yield from (job.input_schema.empty_table() for _ in chunks)
        return
    columns = len(job.input_schema)
    buffer = max(64 << 10, min(4 << 20, _BUFFER_BYTES // columns))
    with open_parquet(url, buffer) as source:
        parquet = pq.ParquetFile(source, pre_buffer=False, buffer_size=buffer)
        wanted, first = _row_groups(parquet.metadata, chunks)
        group = parquet.metadata.row_group(wanted[0])
        rows = max(1, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size))
        batches = parquet.iter_batches(min(rows, _BATCH_ROWS), row_groups=wanted, use_threads=False)
        yield from _cut(batches, first, chunks, job.input_schema, url)


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
    batches: Iterator[pa.RecordBatch],
    at: int,
    chunks: Sequence[Chunk],
    schema: pa.Schema,
    url: str,
) -> Iterator[pa.Table]:
    batch, start = None, at
    for chunk in chunks:
        pieces, need = [], chunk.first_row
        end = chunk.first_row + chunk.rows
        while need < end:
            if batch is None or start + batch.num_rows <= need:
                start += 0 if batch is None else batch.num_rows
                batch = next(batches, None)
                if batch is None:
                    raise InputChanged(f"{files.redact(url)} ends before row {end}; {_AGAIN}")
                continue
            piece = batch.slice(need - start, end - need)
            pieces.append(conform(piece, schema, url))
            need += piece.num_rows
        yield pa.Table.from_batches(pieces, schema)


def conform(batch: pa.RecordBatch, schema: pa.Schema, url: str) -> pa.RecordBatch:
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
                raise InputChanged(
                    f"column {field.name!r} of {files.redact(url)} does not fit {field.type}, "
                    f"the type that all files share: {error}"
                ) from None
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _check_unchanged(url: str, file: PlannedFile) -> None:
    fs, path = files.split(url)
    fs.invalidate_cache(fs._parent(path))
    try:
        info = fs.info(path)
    except FileNotFoundError:
        raise InputChanged(f"{files.redact(url)} is gone; {_AGAIN}") from None
    # A web server's listing says less of a file than the server does when asked for it.
    if info["size"] != file.size or file.version not in ("", version_of(info)):
        raise InputChanged(f"{files.redact(url)} has changed since the run began; {_AGAIN}")
