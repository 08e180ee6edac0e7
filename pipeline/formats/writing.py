"""Completions as other files: JSON lines, CSV, OpenAI's responses, a folder for ``datasets``."""

import csv
import datetime
import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq

from model.checkpoint import files
from pipeline.claim import JOB
from pipeline.formats import openai
from pipeline.plan import is_part
from pipeline.storage import Folder, open_parquet, read_file
from schemas.error import SetupError

FORMATS = ("jsonl", "csv", "openai", "datasets")

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A text that begins so is computed by the spreadsheet that opens it, and may send others away."""

_BATCH_ROWS = 1024
_BUFFER_BYTES = 4 << 20

_CARD = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---

# Completions

{rows:,} rows, completed with Grok-1 by grok1-batch. `_job.json` says how.
"""


def export_run(output: str, to: str, kind: str, *, spreadsheet: bool = False) -> int:
    """Writes a run's rows, in input order, in another format; returns how many.

    Args:
      output: the output folder of a run.
      to: a file; for ``datasets`` a folder.
      kind: one of ``FORMATS``.
      spreadsheet: of CSV, put an apostrophe before texts that a spreadsheet would compute.

    Raises:
      SetupError: there are no completions, or it cannot be written.
    """
    folder = Folder(output)
    parts = sorted(filter(is_part, folder.names()))
    if not parts:
        raise SetupError(f"{files.redact(output)} holds no completions; name an output folder")
    if kind == "datasets":
        return _write_datasets(folder, parts, to)
    job = json.loads(folder.read(JOB) or b"{}")
    prefix = job.get("settings", {}).get("output_prefix", "")
    writers: dict[str, Callable[[], Iterator[tuple[int, str]]]] = {
        "jsonl": lambda: _json_lines(folder, parts),
        "csv": lambda: _csv(folder, parts, spreadsheet),
        "openai": lambda: _openai(folder, parts, prefix, job),
    }
    count = 0
    with files.open_write(to) as file:
        for rows, text in writers[kind]():
            file.write(text.encode())
            count += rows
    return count


def _rows(folder: Folder, parts: Sequence[str]) -> Iterator[dict[str, Any]]:
    for part in parts:
        with open_parquet(folder.at(part), _BUFFER_BYTES) as source:
            for batch in pq.ParquetFile(source).iter_batches(_BATCH_ROWS, use_threads=False):
                yield from batch.to_pylist()


def _json_lines(folder: Folder, parts: Sequence[str]) -> Iterator[tuple[int, str]]:
    for row in _rows(folder, parts):
        yield 1, json.dumps(row, ensure_ascii=False, default=_plain) + "\n"


def _csv(folder: Folder, parts: Sequence[str], spreadsheet: bool) -> Iterator[tuple[int, str]]:
    """Lists and structs as JSON text in their field."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")

    def field(value: Any) -> Any:
        if isinstance(value, list | dict):
            value = json.dumps(value, ensure_ascii=False, default=_plain)
        if spreadsheet and isinstance(value, str) and value.startswith(_FORMULA):
            return f"'{value}"
        return value

    def taken() -> str:
        text = sink.getvalue()
        sink.seek(0)
        sink.truncate()
        return text

    for index, row in enumerate(_rows(folder, parts)):
        if not index:
            writer.writerow(map(field, row))
        writer.writerow(map(field, row.values()))
        yield 1, taken()


def _openai(
    folder: Folder, parts: Sequence[str], prefix: str, job: dict[str, Any]
) -> Iterator[tuple[int, str]]:
    created = job.get("created_at", "1970-01-01T00:00:00+00:00")
    stamp = int(datetime.datetime.fromisoformat(created).timestamp())
    model = files.basename(job.get("checkpoint") or "grok-1")
    for rows in openai.requests(_rows(folder, parts), prefix):
        yield len(rows), openai.response(rows, prefix, model, stamp) + "\n"


def _write_datasets(folder: Folder, parts: Sequence[str], to: str) -> int:
    """The parts under names that ``datasets`` takes, with a card that says where they are."""
    count = 0
    for index, part in enumerate(parts):
        data = read_file(folder.at(part))
        if data is None:
            raise SetupError(f"{files.redact(folder.at(part))} is gone; export again")
        name = f"train-{index:05d}-of-{len(parts):05d}.parquet"
        files.write_bytes(files.join(to, "data", name), data)
        with open_parquet(folder.at(part), _BUFFER_BYTES) as source:
            count += pq.ParquetFile(source).metadata.num_rows
    files.write_bytes(files.join(to, JOB), folder.read(JOB) or b"{}")
    files.write_bytes(files.join(to, "README.md"), _CARD.format(rows=count).encode())
    return count


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value)
