"""Lines of other files as records: one dictionary each, or what is wrong with the line."""

import csv
import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import fsspec

from model.checkpoint import files
from schemas.error import SetupError

_BROKEN = re.compile("[\udc80-\udcff]")
"""What ``surrogateescape`` makes of a byte that is no text."""

_SHOWN = 200
"""Characters of a faulty line that are kept to find it again."""

_ONE_OBJECT = "write one JSON object on the line"
_QUOTING = "quote fields that hold commas, quotes or line ends, and double the quotes in them"
_UTF8 = "save the file as UTF-8"
"""What to do about a line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """A line that became no row.

    Attributes:
      file: where it stands.
      line: its number, from 1.
      message: what is wrong with it; and what to do.
      text: its beginning.
      custom_id: the user's own id of it, or None.
    """

    file: str
    line: int
    message: str
    text: str
    custom_id: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """A line that can be read.

    Attributes:
      line: its number, from 1.
      values: by column.
      text: the line as it stands.
    """

    line: int
    values: dict[str, Any]
    text: str

    def fault(self, file: str, message: str) -> Fault:
        """What is wrong with it after all."""
        own = self.values.get("custom_id")
        return Fault(
            file=file,
            line=self.line,
            message=message,
            text=self.text[:_SHOWN],
            custom_id=own if isinstance(own, str) else None,
        )


def read_json_lines(url: str) -> Iterator[Record | Fault]:
    """The objects of a file with one JSON object a line; blank lines are passed over."""
    shown = files.redact(url)
    for number, line in _lines(url):
        if isinstance(line, Fault):
            yield line
        elif line.strip():
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                reason = f"is no JSON: {error.msg} (character {error.pos + 1}); {_ONE_OBJECT}"
                yield Record(number, {}, line).fault(shown, reason)
                continue
            except (ValueError, RecursionError) as error:
                yield Record(number, {}, line).fault(shown, f"is no JSON: {error}; {_ONE_OBJECT}")
                continue
            if isinstance(values, dict):
                yield Record(number, values, line)
            else:
                yield Record(number, {}, line).fault(shown, f"is no JSON object; {_ONE_OBJECT}")


def read_csv(url: str) -> Iterator[Record | Fault]:
    """The rows of a CSV file with a header, values as strings; an empty field is a null.

    Raises:
      SetupError: the header is missing, or names a column twice.
    """
    shown = files.redact(url)
    csv.field_size_limit(1 << 30)  # prompts are long
    # A byte that is no text stays in its place, so that its row's neighbours stay in theirs.
    lines = _lines(url, keep_ends=True, errors="surrogateescape")
    texts = (line for _, line in lines if isinstance(line, str))
    rows = csv.reader(texts, strict=True)
    header: list[str] | None = None
    while True:
        begin = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield Record(begin, {}, "").fault(shown, f"is no CSV: {error}; {_QUOTING}")
            continue
        if row is None:
            break
        if header is None:
            header = row
            if twice := next((name for name in header if header.count(name) > 1), None):
                raise SetupError(f"{shown} has two columns named {twice!r}; rename one")
        elif row:
            values = dict(zip(header, (v or None for v in row), strict=False))
            record = Record(begin, values, ",".join(row))
            if _BROKEN.search(record.text):
                shown_text = record.text.encode(errors="surrogateescape").decode(errors="replace")
                fault = Record(begin, {}, shown_text).fault(shown, f"is not valid UTF-8; {_UTF8}")
                yield fault
            elif len(row) == len(header):
                yield record
            else:
                message = f"has {len(row)} fields, the header has {len(header)}; {_QUOTING}"
                yield record.fault(shown, message)
    if header is None:
        raise SetupError(f"{shown} is empty; a CSV file begins with the names of its columns")


def _lines(
    url: str, keep_ends: bool = False, errors: str = "strict"
) -> Iterator[tuple[int, str | Fault]]:
    """The file's lines, decompressed by its name's ending."""
    shown = files.redact(url)
    files.split(url)  # an unknown protocol is told in our words
    try:
        with fsspec.open(files.absolute(url), "rb", compression="infer") as file:
            for number, line in enumerate(file, 1):
                data = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                try:
                    text = data.decode(errors=errors)
                except UnicodeDecodeError as error:
                    begin = data[:_SHOWN].decode(errors="replace")
                    yield (
                        number,
                        Fault(
                            file=shown,
                            line=number,
                            message=f"is not valid UTF-8 at byte {error.start}; {_UTF8}",
                            text=begin,
                        ),
                    )
                    continue
                yield number, text if keep_ends else text.rstrip("\r\n")
    except FileNotFoundError:
        raise SetupError(f"cannot read {shown}: no such file; check how it is spelled") from None
    except (OSError, EOFError) as error:
        raise SetupError(f"cannot read {shown}: {error}; check that it is whole") from None
