"""Completions as other files: JSON lines, CSV, OpenAI's responses, a folder for ``datasets``."""

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from model.checkpoint import files, sink
from pipeline import shards
from pipeline.claim import JOB, SUCCESS
from pipeline.formats import openai
from pipeline.formats.reading import errors_beside
from pipeline.formats.records import Fault, read_json_lines
from pipeline.parts import read_batches
from pipeline.plan import is_part, read_chunks
from pipeline.storage import Folder
from schemas.error import SetupError

FORMATS = ("jsonl", "csv", "openai", "datasets")

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A text that begins so is computed by the spreadsheet that opens it, and may send others away."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
      rows: of the run's output.
      refused: requests that the import refused, each with a line of its own.
      missing: input rows of the run that are still to come.
      unknown: why it cannot be told what the import refused, or None.
    """

    rows: int
    refused: int = 0
    missing: int = 0
    unknown: str | None = None


def export_run(
    output: str,
    to: str,
    kind: str,
    *,
    spreadsheet: bool = False,
    partial: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Writes a run's rows, in input order, in another format.

    Args:
      output: the output folder of a run.
      to: a file; for ``datasets`` a folder.
      kind: one of ``FORMATS``.
      spreadsheet: of CSV, put an apostrophe before texts that a spreadsheet would compute.
      partial: take what is there of a run that has not finished.
      overwrite: replace what is there.

    Raises:
      SetupError: there are no completions, the run has not finished, or it cannot be written.
    """
    folder = Folder(output)
    names = folder.names()
    parts = sorted(filter(is_part, names))
    if not parts:
        raise SetupError(f"{files.redact(output)} holds no completions; name an output folder")
    missing = 0
    if SUCCESS not in names:
        chunks = read_chunks(folder)
        missing = sum(chunk.rows for chunk in chunks if chunk.part_name not in names)
        if not partial:
            raise SetupError(
                f"the run in {files.redact(output)} has not finished: {len(parts):,} of "
                f"{len(chunks):,} parts are there, {missing:,} rows are to come; start it again, "
                "or take what is there: --partial"
            )
    if kind == "datasets":
        return Exported(rows=_write_datasets(folder, parts, to, overwrite), missing=missing)
    if not overwrite and files.exists(to):
        raise SetupError(f"{files.redact(to)} is already there: give another name or --overwrite")
    job = json.loads(folder.read(JOB) or b"{}")
    if kind == "openai" and job.get("settings", {}).get("task") == "score":
        raise SetupError(
            f"{files.redact(output)} holds scores, for which OpenAI's format has no place; "
            "write them as jsonl, csv or datasets"
        )
    refused, unknown = 0, None
    with sink.open_write(to) as file:
        if kind == "openai":
            rows = _write_openai(folder, parts, job, file)
            try:
                for line in _refused(job):
                    file.write(f"{openai.refused_line(line)}\n".encode())
                    refused += 1
            except SetupError as error:
                unknown = str(error)
        else:
            written = _json_lines if kind == "jsonl" else _csv(spreadsheet)
            rows = 0
            for row in _rows(folder, parts):
                file.write(written(row).encode())
                rows += 1
    return Exported(rows=rows, refused=refused, missing=missing, unknown=unknown)


def _rows(folder: Folder, parts: Sequence[str]) -> Iterator[dict[str, Any]]:
    for part in parts:
        for batch in read_batches(folder, part):
            yield from batch.to_pylist()


def _json_lines(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=_plain) + "\n"


def _csv(spreadsheet: bool) -> Callable[[dict[str, Any]], str]:
    """Lists and structs as JSON text in their field; the names of the columns before the first."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    begun = False

    def field(value: Any) -> Any:
        if isinstance(value, list | dict):
            value = json.dumps(value, ensure_ascii=False, default=_plain)
        if spreadsheet and isinstance(value, str) and value.startswith(_FORMULA):
            return f"'{value}"
        return value

    def written(row: dict[str, Any]) -> str:
        nonlocal begun
        if not begun:
            writer.writerow(map(field, row))
            begun = True
        writer.writerow(map(field, row.values()))
        text = sink.getvalue()
        sink.seek(0)
        sink.truncate()
        return text

    return written


def _write_openai(folder: Folder, parts: Sequence[str], job: dict[str, Any], file: BinaryIO) -> int:
    responses, count = openai.Responses(job), 0
    for rows in responses.requests(_rows(folder, parts)):
        file.write(f"{responses.line(rows)}\n".encode())
        count += len(rows)
    return count


def _refused(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What imports list of the lines that became no row of the job's input.

    Raises:
      SetupError: the input is out of reach.
    """
    options = job.get("options")
    if options is None:
        return
    listed = shards.list_inputs(options["input"], options["input_root"])
    # By no means all input was imported, but a list lies beside what was.
    beside = dict.fromkeys(filter(None, (errors_beside(file.url) for file in listed)))
    for url in beside:
        for record in read_json_lines(url) if files.exists(url) else ():
            if isinstance(record, Fault):
                raise SetupError(f"{record.file}, line {record.line}: {record.message}")
            yield record.values


def _write_datasets(folder: Folder, parts: Sequence[str], to: str, overwrite: bool) -> int:
    """The parts under names that ``datasets`` takes, with a card that says where they are."""
    data, count = Folder(files.join(to, "data")), 0
    old = sorted(name for name in data.names() if name.endswith(".parquet"))
    if old and not overwrite:
        raise SetupError(
            f"{files.redact(data.url)} already holds {old[0]}: give another folder or --overwrite"
        )
    data.remove(old)
    for index, part in enumerate(parts):
        content = folder.read(part)
        if content is None:
            raise SetupError(f"{files.redact(folder.at(part))} is gone; export again")
        data.replace(f"train-{index:05d}-of-{len(parts):05d}.parquet", content)
        count += pq.ParquetFile(pa.BufferReader(content)).metadata.num_rows
    sink.write_bytes(files.join(to, JOB), folder.read(JOB) or b"{}")
    sink.write_bytes(files.join(to, "README.md"), _CARD.format(rows=count).encode())
    return count


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value)
