"""A row's own id: what its randomness derives from, and what a user finds it by."""

import hashlib
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.plan import Chunk
from schemas.utf8 import readable

if TYPE_CHECKING:
    from pipeline.prepare import Job


def row_uids(job: "Job", chunk: Chunk, rows: pa.Table) -> tuple[str, ...]:
    """24 hex digits a row, which neither the file's place nor its other rows change."""
    keys = [f"{chunk.file.path}\0{chunk.first_row + i}" for i in range(rows.num_rows)]
    if job.options.unique_custom_id and job.roles.custom_id is not None:
        ids = readable(rows.column(job.roles.custom_id)).to_pylist()
        keys = [key if i is None else f"custom_id\0{i}" for key, i in zip(keys, ids, strict=True)]
    return tuple(
        hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=12).hexdigest()
        for key in keys
    )
