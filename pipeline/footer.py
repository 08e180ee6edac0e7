"""Parquet footers, read without the rest of the file."""

import pyarrow as pa
import pyarrow.parquet as pq

from model.checkpoint import files
from pipeline.storage import read_tail
from schemas.error import SetupError

_TAIL_BYTES = 64 << 10
"""Read from a file's end at once; nearly every footer fits, so that a file costs one request."""

_MAX_BYTES = 1 << 30

_IMPORTED = {"csv", "json", "jsonl", "ndjson"}
"""Endings of files that people try as they are."""


def read_footer(url: str, size: int) -> tuple[bytes, pq.FileMetaData]:
    """A file's last bytes, with the footer and what else came along, and the parsed footer.

    A footer tells a file from another of other sizes or other statistics, but not from one whose
    rows stand in another order. The bytes before it do, and of a small file they are all.

    Args:
      url: the file.
      size: its size in bytes.

    Raises:
      SetupError: it cannot be read, or is no Parquet file.
    """
    where = files.redact(url)
    if size < 12:
        raise SetupError(f"{where} is no Parquet file: it has {size} bytes")
    tail = read_tail(url, size, _TAIL_BYTES)
    if tail[-4:] != b"PAR1":
        why = "its footer is encrypted" if tail[-4:] == b"PARE" else "it does not end as one"
        named = files.basename(url).lower().split(".")
        hint = ", and grok1 import turns such files into one" if _IMPORTED & set(named) else ""
        raise SetupError(f"{where} is no readable Parquet file: {why}{hint}")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > min(size, _MAX_BYTES):
        raise SetupError(f"{where} is no readable Parquet file: its footer is cut short")
    if length > len(tail):
        tail = read_tail(url, size, length)
    try:
        metadata = pq.read_metadata(pa.BufferReader(tail[-length:]))
        metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SetupError(f"{where} is no readable Parquet file: {reason}") from None
    return tail, metadata
