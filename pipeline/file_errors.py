"""Input files that could not be read, or not wholly."""

import collections
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.plan import PlannedFile
from schemas.error import INPUT_ERRORS, RowError

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("rows", pa.int64()),
        ("rows_errored", pa.int64()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
    ]
)
"""Of ``_errors/files.parquet``."""


def left_out(fault: RowError) -> str:
    """Why no row of a file is in the plan, and how to take them in: there are none to retry."""
    return f"{fault.message} (mend the file, then give the same command with --extend)"


def collect(
    planned: Sequence[PlannedFile], lines: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The files that could not be read, or not wholly.

    Args:
      planned: all files; none where no plan tells of them.
      lines: of the manifest.

    Returns:
      For each, by the names of ``SCHEMA``: its ``rows``, or None if nobody knows;
      ``rows_errored`` among the output's rows; the error. Rows of a file with no part in the plan
      stand in no count of rows.
    """
    lost: dict[str, tuple[collections.Counter[str], str]] = {}
    for line in lines:
        if line["input_fault"] is not None:
            codes, _ = lost.setdefault(line["input"], (collections.Counter(), line["input_fault"]))
            counts = json.loads(line["errors"])
            codes.update({code: counts[code] for code in INPUT_ERRORS if code in counts})
    found: list[dict[str, Any]] = []
    for path in sorted(lost.keys() - {file.path for file in planned}):
        codes, message = lost[path]
        if codes:
            unplanned = {"path": path, "size": None, "rows": None, "rows_errored": codes.total()}
            code = str(codes.most_common(1)[0][0])
            found.append({**unplanned, "error_code": code, "error_message": message})
    for file in planned:
        codes, message = lost.get(file.path, (collections.Counter(), ""))
        if file.fault is None and not codes:
            continue
        found.append(
            {
                "path": file.path,
                "size": file.size,
                "rows": file.rows,
                "rows_errored": codes.total(),
                "error_code": str(file.fault.code if file.fault else codes.most_common(1)[0][0]),
                "error_message": left_out(file.fault) if file.fault else message,
            }
        )
    return found
