"""Reading completions back."""

import pyarrow as pa
import pyarrow.parquet as pq

from model.checkpoint import files
from pipeline.finalize import read_manifest
from pipeline.plan import is_part
from pipeline.storage import Folder, open_parquet
from schemas.error import SetupError

_BUFFER_BYTES = 4 << 20


def read_completions(
    output: str, *, columns: list[str] | None = None, partial: bool = False
) -> pa.Table:
    """The rows of an output, in input order.

    Args:
      output: the output folder, or its URL.
      columns: only these; all by default.
      partial: take what is there of a run that has not finished.

    Raises:
      SetupError: the run has not finished, or there is nothing.
    """
    folder = Folder(output)
    parts = sorted(filter(is_part, folder.names()))
    if not parts:
        raise SetupError(f"{files.redact(output)} holds no completions; name an output folder")
    if not partial and read_manifest(folder) is None:
        raise SetupError(
            f"the run in {files.redact(output)} has not finished ({len(parts)} parts are there); "
            "start it again, or take what is there: partial=True"
        )
    return pa.concat_tables(_read(folder.at(part), columns) for part in parts)


def _read(url: str, columns: list[str] | None) -> pa.Table:
    # Not pq.read_table: with threads it may abort the interpreter when that exits soon after.
    with open_parquet(url, _BUFFER_BYTES) as source:
        table = pq.ParquetFile(source).read(columns, use_threads=False)
    return table.replace_schema_metadata(None)
