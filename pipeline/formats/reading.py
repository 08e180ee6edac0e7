"""JSON lines, CSV and OpenAI batch files as Parquet, in one streaming pass after a look ahead."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from model.checkpoint import files, sink
from pipeline.formats.columns import Kinds, convert, table
from pipeline.formats.openai import rows_of
from pipeline.formats.records import Fault, Record, read_csv, read_json_lines
from pipeline.storage import Folder
from schemas.error import SetupError

FORMATS = ("jsonl", "csv", "openai")
_ERRORS = "_errors-{stem}.jsonl"
_PARQUET = re.compile(r"(?P<stem>.*)-\d{5,}\.parquet")

_FAULTS = 20
"""Faults that are kept to be shown."""

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


def import_files(
    urls: Sequence[str], output: str, kind: str | None = None, *, overwrite: bool = False
) -> Iterator[tuple[str, Imported]]:
    """Writes files' rows as Parquet files into a folder; faulty lines are told, not fatal.

    Each is read twice: once for the kinds of its columns, so that types do not depend on which rows
    come first, and once for the rows.

    Args:
      urls: the files; ``.gz`` and the like are decompressed.
      output: the folder.
      kind: one of ``FORMATS``; by default a file's name and first line tell.
      overwrite: whether to replace what earlier imports of files of these names left there.

    Yields:
      A file's URL and what came of it, once it is there.

    Raises:
      SetupError: a file cannot be read, its kind is not known, or others would be mixed with it.
    """
    stems: dict[str, str] = {}
    for url in urls:
        if (other := stems.setdefault(stem(url), url)) != url:
            raise SetupError(
                f"{files.redact(other)} and {files.redact(url)} would write files of one name; "
                "import them into folders of their own"
            )
    folder = Folder(output)
    names = sorted(folder.names())
    former = {url: [name for name in names if _is_of(name, of)] for of, url in stems.items()}
    if not overwrite and (there := next(filter(None, former.values()), None)):
        raise SetupError(
            f"{files.redact(output)} already holds {there[0]} of an earlier import; give another "
            "folder, or --overwrite to replace what that one left"
        )
    for url, old in former.items():
        yield url, _import(url, folder, kind or guess(url), old)


def errors_beside(url: str) -> str | None:
    """Where the import that wrote a Parquet file lists lines that became no row; None if none did.

    The list need not be there.
    """
    found = _PARQUET.fullmatch(files.basename(url))
    return found and files.join(files.parent(url), _ERRORS.format(stem=found["stem"]))


def _is_of(name: str, stem: str) -> bool:
    """Whether a file is one that an import writes."""
    found = _PARQUET.fullmatch(name)
    return name == _ERRORS.format(stem=stem) or (found is not None and found["stem"] == stem)


def _import(url: str, folder: Folder, kind: str, former: Sequence[str]) -> Imported:
    kinds = Kinds()
    for found in _rows(url, kind):
        if not isinstance(found, Fault):
            for row in found[1]:
                kinds.add(row)
    # Only now: a source that cannot be read should cost nothing. And before anything is written, so
    # that an import that is killed leaves no row of the old source beside those of the new.
    folder.remove(former)
    with _Writer(folder, stem(url), kinds.schema()) as writer:
        for found in _rows(url, kind):
            if isinstance(found, Fault):
                writer.reject(found)
                continue
            record, rows = found
            try:
                converted = [
                    {f.name: convert(row.get(f.name), f.name, f.type) for f in writer.schema}
                    for row in rows
                ]
            except ValueError as error:
                writer.reject(record.fault(files.redact(url), str(error)))
                continue
            for row in converted:
                writer.add(row)
    return writer.result()


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


def _rows(url: str, kind: str) -> Iterator[tuple[Record, list[dict[str, Any]]] | Fault]:
    """Each line with its rows: one, or of a request to OpenAI one a prompt."""
    readers: dict[str, Callable[[str], Iterator[Record | Fault]]] = {
        "jsonl": read_json_lines,
        "openai": read_json_lines,
        "csv": read_csv,
    }
    for record in readers[kind](url):
        if isinstance(record, Fault):
            yield record
        elif not record.values:
            yield record.fault(files.redact(url), "has no columns; give it a prompt")
        elif kind == "openai":
            rows = rows_of(record, files.redact(url))
            yield rows if isinstance(rows, Fault) else (record, rows)
        else:
            yield record, [record.values]


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
        self._errors: BinaryIO | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and (self._rows or not self._files):
            self._flush()
        self._open.__exit__(kind, error, trace)

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._bytes += sum(len(v) if isinstance(v, str | list) else 8 for v in row.values())
        if len(self._rows) >= _FILE_ROWS or self._bytes >= _FILE_BYTES:
            self._flush()

    def reject(self, fault: Fault) -> None:
        self._faulty += 1
        if len(self._faults) < _FAULTS:
            self._faults.append(fault)
        if self._errors is None:
            url = self._folder.at(_ERRORS.format(stem=self._stem))
            self._errors = self._open.enter_context(sink.open_write(url))
        line = json.dumps(dataclasses.asdict(fault), ensure_ascii=False) + "\n"
        self._errors.write(line.encode(errors="replace"))

    def result(self) -> Imported:
        return Imported(
            rows=self._written,
            files=self._files,
            faults=self._faults,
            faulty=self._faulty,
            errors=_ERRORS.format(stem=self._stem) if self._faulty else None,
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
