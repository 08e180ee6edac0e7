"""The plan: input files cut into chunks, each chunk with its address.

A chunk is the unit of inference and commit; ``spans`` groups chunks for distribution. A plan is a
pure function of the input and the settings, so that starting again makes the same one; it lies in
``_plan/`` as Parquet, and the Beam graph holds no more than where.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.options import JobOptions
from pipeline.shards import Shard
from pipeline.storage import Folder
from schemas.error import ErrorCode, RowError

CHUNK_ROWS = 2048
"""Most rows of a chunk, unless the user sets another number."""

CHUNK_TOKENS = 1 << 19
"""Prompt and completion tokens of a chunk at most: 3 to 5 minutes of eight H100s that decode as
fast as bandwidth allows, 8 chunks at once. A preempted worker loses half a chunk in each thread,
and the last chunks keep a fleet waiting: beyond 5 minutes that doubles with the chunk.
``bench/fleet`` simulates it, ``docs/reliability.md`` has the tables, for other machines as well."""

CHUNK_BYTES = 64 << 20
"""And bytes of its input rows, which are held in memory together."""

FILES, CHUNKS = "_plan/files.parquet", "_plan/chunks.parquet"

_FILES_SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("base", pa.int64()),
        ("name", pa.string()),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("footer", pa.string()),
        ("rows", pa.int64()),
        ("group_bytes", pa.int64()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
    ]
)
_CHUNKS_SCHEMA = pa.schema(
    [
        ("file", pa.int64()),
        ("first_row", pa.int64()),
        ("rows", pa.int64()),
        ("fingerprint", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """An input file of the plan.

    Attributes:
      index: its place among the input files.
      base: which of the job's ``bases`` it lies below.
      name: its path below that.
      path: what its rows' ids derive from.
      size: in bytes.
      version: ETag, generation or time of change, when it was planned.
      footer: hash of its end: the Parquet footer, and some of what stands before it.
      rows: its rows, where they are known.
      group_bytes: of its largest row group, before compression.
      error_code: why none of its rows is in the plan, or None.
      error_message: the same in a sentence.
    """

    index: int
    base: int
    name: str
    path: str
    size: int
    version: str
    footer: str
    rows: int | None
    group_bytes: int = 0
    error_code: str | None = None
    error_message: str | None = None

    @property
    def fault(self) -> RowError | None:
        """Why none of its rows is in the plan, or None."""
        if self.error_code is None:
            return None
        return RowError(ErrorCode(self.error_code), self.error_message or "")

    @property
    def content(self) -> tuple[str, int | None, str | None]:
        """What tells the file from another version of itself; a file left out has no content."""
        if self.error_code is not None:
            return self.path, None, None
        return self.path, self.size, self.footer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """A run of rows of one file; its result is one part of the output.

    Attributes:
      file: the file.
      first_row: the first row's number in the file.
      rows: how many.
      fingerprint: 12 hex digits over all that decides the part's content.
    """

    file: PlannedFile
    first_row: int
    rows: int
    fingerprint: str

    @property
    def part_name(self) -> str:
        """Name of its part; names sort in input order."""
        return f"part-{self.file.index:06d}-{self.first_row:012d}-{self.fingerprint}.parquet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """What decides how many tokens a row has, as far as a footer can tell.

    Attributes:
      texts: columns whose text becomes tokens.
      token_ids: columns of tokens.
      tokens: that each row has beside.
    """

    texts: tuple[str, ...] = ()
    token_ids: tuple[str, ...] = ()
    tokens: float = 0.0


def is_part(name: str) -> bool:
    """Whether a file of the output folder bears a part's name."""
    return name.startswith("part-") and name.endswith(".parquet")


def fingerprint(*parts: Any, digits: int = 12) -> str:
    """Hex digest of JSON-ready values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=digits // 2).hexdigest()


def make_plan(
    shards: Sequence[Shard], weights: Weights, options: JobOptions, identity: str
) -> tuple[list[str], list[PlannedFile], list[Chunk]]:
    """Cuts the input into chunks.

    An input without rows becomes one chunk without rows, so that every output has a part and
    thereby a schema. Files with a fault have no chunks.

    Args:
      shards: the input files in order.
      weights: what decides how many tokens a row has.
      options: the job.
      identity: digest of everything but the rows that decides a result.

    Returns:
      The folders that the files lie below; the files; the chunks in input order.
    """
    bases = sorted({shard.file.base for shard in shards})
    planned = [
        PlannedFile(
            index=index,
            base=bases.index(shard.file.base),
            name=shard.file.name,
            path=shard.file.path,
            size=shard.file.size,
            version=shard.file.version,
            footer=shard.footer,
            rows=None if shard.metadata is None else shard.metadata.num_rows,
            group_bytes=_largest_group(shard.metadata),
            error_code=None if shard.fault is None else str(shard.fault.code),
            error_message=None if shard.fault is None else shard.fault.message,
        )
        for index, shard in enumerate(shards)
    ]
    chunks: list[Chunk] = []
    left = options.limit
    for file, shard in zip(planned, shards, strict=True):
        if shard.fault is not None or shard.metadata is None:
            continue
        rows = shard.metadata.num_rows if left is None else min(shard.metadata.num_rows, left)
        left = None if left is None else left - rows
        step = options.chunk_rows or _chunk_rows(shard.metadata, weights, options)
        chunks.extend(
            _chunk(file, first, min(step, rows - first), identity) for first in range(0, rows, step)
        )
    readable = next(file for file in planned if file.error_code is None)
    return bases, planned, chunks or [_chunk(readable, 0, 0, identity)]


def write_plan(folder: Folder, planned: Sequence[PlannedFile], chunks: Sequence[Chunk]) -> None:
    """Writes the plan; writing it again writes the same."""
    folder.replace(FILES, _parquet([dataclasses.asdict(file) for file in planned], _FILES_SCHEMA))
    rows = [
        {
            "file": chunk.file.index,
            "first_row": chunk.first_row,
            "rows": chunk.rows,
            "fingerprint": chunk.fingerprint,
        }
        for chunk in chunks
    ]
    folder.replace(CHUNKS, _parquet(rows, _CHUNKS_SCHEMA))


def read_files(folder: Folder) -> list[PlannedFile]:
    """The files of a written plan; none if there is no plan."""
    return [PlannedFile(**row) for row in _rows(folder, FILES)]


def read_chunks(folder: Folder) -> list[Chunk]:
    """The chunks of a written plan, in input order; none if there is no plan."""
    planned = {file.index: file for file in read_files(folder)}
    if not planned:  # a plan that has lost half of itself is none
        return []
    return [Chunk(**{**row, "file": planned[row["file"]]}) for row in _rows(folder, CHUNKS)]


def _chunk(file: PlannedFile, first_row: int, rows: int, identity: str) -> Chunk:
    digest = fingerprint(identity, file.path, file.size, file.footer, first_row, rows)
    return Chunk(file=file, first_row=first_row, rows=rows, fingerprint=digest)


def _chunk_rows(metadata: pq.FileMetaData, weights: Weights, options: JobOptions) -> int:
    """Rows that are worth about ``CHUNK_TOKENS``, by the footer's account of the texts' size."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    rows = max(1, metadata.num_rows)
    tokens = 0.0
    for at in range(metadata.num_columns if groups else 0):
        column = groups[0].column(at).path_in_schema.split(".")[0]
        if column in weights.token_ids:
            tokens += sum(group.column(at).num_values for group in groups)
        elif column in weights.texts:
            # Four bytes a token is usual for text.
            tokens += sum(group.column(at).total_uncompressed_size for group in groups) / 4
    tokens = tokens / rows + weights.tokens + options.samples * options.tokens_drawn
    tokens = max(1.0, tokens)
    size = options.samples * sum(group.total_byte_size for group in groups) / rows
    worth = min(CHUNK_TOKENS / tokens, CHUNK_BYTES / max(size, 1))
    return max(1, min(CHUNK_ROWS, int(worth)))


def _largest_group(metadata: pq.FileMetaData | None) -> int:
    if metadata is None:
        return 0
    groups = range(metadata.num_row_groups)
    return max((metadata.row_group(i).total_byte_size for i in groups), default=0)


def _parquet(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _rows(folder: Folder, name: str) -> list[dict[str, Any]]:
    data = folder.read(name)
    if data is None:
        return []
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).to_pylist()
