"""JSON lines, CSV and OpenAI batch files as Parquet, in one streaming pass after a look ahead."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.checkpoint import files
from pipeline.formats.columns import Kinds, convert, table
from pipeline.formats.openai import rows_of
from pipeline.formats.records import Fault, Record, read_csv, read_json_lines
from pipeline.storage import Folder
from schemas.error import SetupError

FORMATS = ("jsonl", "csv", "openai")
_ERRORS = "_errors-{stem}.jsonl"
_ERRORS_KEPT = 100_000

_FILE_ROWS = 100_000
_FILE_BYTES = 128 << 20
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """What came of it.

    Attributes:
      rows: written.
      files: Parquet files written.
      faults: lines that became no row; the first ones.
      faulty: how many there are.
      errors: name of the file in the folder that lists them, or None.
    """

    rows: int
    files: int
    faults: list[Fault]
    faulty: int
    errors: str | None


def import_file(url: str, output: str, kind: str | None = None) -> Imported:
    """Writes a file's rows as Parquet files into a folder; faulty lines are told, not fatal.

    The file is read twice: once for the kinds of its columns, so that types do not depend on which
    rows come first, and once for the rows.

    Args:
      url: the file; ``.gz`` and the like are decompressed.
      output: the folder.
      kind: one of ``FORMATS``; by default its name and first line tell.

    Raises:
      SetupError: the file cannot be read, or its kind is not known.
    """
    kind = kind or guess(url)
    kinds = Kinds()
    for row in _rows(url, kind):
        if not isinstance(row, Fault):
            kinds.add(row[1])
    writer = _Writer(Folder(output), stem(url), kinds.schema())
    for row in _rows(url, kind):
        if isinstance(row, Fault):
            writer.reject(row)
            continue
        record, values = row
        try:
            writer.add({f.name: convert(values.get(f.name), f.name, f.type) for f in writer.schema})
        except ValueError as error:
            writer.reject(record.fault(files.redact(url), str(error)))
    return writer.close()


def guess(url: str) -> str:
    """The kind of a file, by its name, and of JSON lines by what the first one holds.

    Raises:
      SetupError: the name tells nothing.
    """
    name = re.sub(r"\.(gz|bz2|xz|zst)$", "", files.basename(url).lower())
    kind = next((kind for ending, kind in _ENDINGS.items() if name.endswith(ending)), None)
    if kind is None:
        raise SetupError(
            f"the name of {files.redact(url)} does not tell its format; give --format, "
            f"one of {', '.join(FORMATS)}"
        )
    if kind == "jsonl":
        first = next((r for r in read_json_lines(url) if isinstance(r, Record)), None)
        if first is not None and isinstance(first.values.get("body"), dict):
            return "openai"
    return kind


def _rows(url: str, kind: str) -> Iterator[tuple[Record, dict[str, Any]] | Fault]:
    readers: dict[str, Callable[[str], Iterator[Record | Fault]]] = {
        "jsonl": read_json_lines,
        "openai": read_json_lines,
        "csv": read_csv,
    }
    for record in readers[kind](url):
        if isinstance(record, Fault):
            yield record
        elif not record.values:
            yield record.fault(files.redact(url), "has no columns")
        elif kind == "openai":
            for row in rows_of(record, files.redact(url)):
                yield row if isinstance(row, Fault) else (record, row)
        else:
            yield record, record.values


def stem(url: str) -> str:
    """What an imported file's Parquet files are called after: its name, without endings.

    Nothing in it can be part of a path or hide the file from readers.
    """
    name = re.sub(r"(\.\w+)+$", "", files.basename(url))
    return re.sub(r"[^\w-]+", "-", name).strip("-_") or "rows"


class _Writer:
    """Rows gathered into Parquet files of bounded size, each written whole."""

    def __init__(self, folder: Folder, stem: str, schema: pa.Schema) -> None:
        self.schema = schema
        self._folder, self._stem = folder, stem
        self._rows: list[dict[str, Any]] = []
        self._bytes = self._written = self._files = self._faulty = 0
        self._faults: list[Fault] = []
        self._lines: list[str] = []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._bytes += sum(len(v) if isinstance(v, str | list) else 8 for v in row.values())
        if len(self._rows) >= _FILE_ROWS or self._bytes >= _FILE_BYTES:
            self._flush()

    def reject(self, fault: Fault) -> None:
        self._faulty += 1
        if len(self._faults) < 20:
            self._faults.append(fault)
        if self._faulty <= _ERRORS_KEPT:
            self._lines.append(json.dumps(dataclasses.asdict(fault), ensure_ascii=False))

    def close(self) -> Imported:
        if self._rows or not self._files:
            self._flush()
        errors = None
        if self._lines:
            errors = _ERRORS.format(stem=self._stem)
            self._folder.replace(errors, ("\n".join(self._lines) + "\n").encode(errors="replace"))
        return Imported(
            rows=self._written,
            files=self._files,
            faults=self._faults,
            faulty=self._faulty,
            errors=errors,
        )

    def _flush(self) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table(self._rows, self.schema), sink, compression="zstd")
        self._folder.replace(
            f"{self._stem}-{self._files:05d}.parquet", sink.getvalue().to_pybytes()
        )
        self._written += len(self._rows)
        self._files += 1
        self._rows, self._bytes = [], 0
