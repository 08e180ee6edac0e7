"""Parquet pages that cannot be decoded, found and blanked, so that the rows around them are read.

A reader gives up on a row group at its first bad page. Here that page is replaced, in memory, by
one of nulls of the same length, and the reader goes on behind it. That works for columns that may
be null and whose pages say how many rows they hold; for others, the rows from the bad page to the
end of the row group are given up. Page headers: Thrift's compact protocol,
https://github.com/apache/parquet-format.
"""

import dataclasses
import errno
import io
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from model.checkpoint.answers import Answer, answer
from pipeline import page_header

_MOST_BLANKS = 64
"""Pages of a column that are looked for one by one; a column with more of them is given up."""


@dataclasses.dataclass(frozen=True)
class Salvaged:
    """What can be read of a row group.

    Attributes:
      parquet: the file, bad pages blanked.
      rows: how many of the group's rows can be read, from its first.
      bad: ranges among these whose values are lost in some column.
      reason: what is wrong with the first bad page.
    """

    parquet: pq.ParquetFile
    rows: int
    bad: list[range]
    reason: str


@dataclasses.dataclass(frozen=True)
class _Page:
    offset: int
    length: int
    first_row: int
    rows: int


def is_corrupt(error: Exception) -> bool:
    """Whether a reader's error says that the file's bytes are bad, not that they were out of reach.

    Stores raise their own errors through the reader; those of the reader itself carry no number.
    S3's client has the disk's number for what it does not know, and names the cause.
    """
    if answer(error)[0] is not Answer.NONE:
        return False
    if isinstance(error, OSError):
        numbers = (None, errno.EIO) if error.__cause__ is None else (None,)
        return error.errno in numbers and type(error) is OSError
    return isinstance(error, pa.ArrowException)


def salvage(source: Any, metadata: pq.FileMetaData, group: int) -> Salvaged:
    """Finds the bad pages of a row group and blanks them.

    Args:
      source: the file, seekable; it stays open as long as the result is used.
      metadata: its footer.
      group: the row group.
    """
    file = _Patched(source)
    rows = metadata.row_group(group).num_rows
    bad: list[range] = []
    reason = ""
    for column in range(metadata.num_columns):
        reader = _Column(file, metadata, group, column)
        blanked = 0
        while error := reader.error(rows):
            reason = reason or error
            page = reader.first_bad_page(rows) if blanked < _MOST_BLANKS else None
            blank = None if page is None else reader.blank(page)
            if page is None or blank is None:
                rows = min(rows, reader.readable_rows(rows))
                break
            file.patches[page.offset] = blank
            bad.append(range(page.first_row, page.first_row + page.rows))
            blanked += 1
    bad = [range(span.start, min(span.stop, rows)) for span in bad if span.start < rows]
    parquet = _open(file, metadata)
    return Salvaged(parquet, rows, bad, reason)


class _Column:
    """One column of a row group."""

    def __init__(
        self, file: "_Patched", metadata: pq.FileMetaData, group: int, column: int
    ) -> None:
        self._file, self._metadata, self._group = file, metadata, group
        self._levels = metadata.schema.column(column)
        self._path = metadata.row_group(group).column(column).path_in_schema
        self._chunk = metadata.row_group(group).column(column)
        self._pages: list[_Page] | None = None

    def error(self, rows: int) -> str:
        """Why the column's first rows cannot be read; empty if they can."""
        if not rows:
            return ""
        try:
            batches = _open(self._file, self._metadata).iter_batches(
                rows, row_groups=[self._group], columns=[self._path], use_threads=False
            )
            read = next(batches).num_rows
        except StopIteration:
            read = 0
        except Exception as error:
            if not is_corrupt(error):
                raise
            return " ".join(str(error).split())[:200] or type(error).__name__
        return "" if read == rows else f"the column {self._path!r} ends after {read} rows"

    def readable_rows(self, rows: int) -> int:
        """How many rows come before the first that cannot be read, by bisection."""
        low, high = 0, rows
        while low < high:
            middle = (low + high + 1) // 2
            if self.error(middle):
                high = middle - 1
            else:
                low = middle
        return low

    def first_bad_page(self, rows: int) -> _Page | None:
        """The page that the first unreadable row is in; None if headers do not say."""
        if self._pages is None:
            self._pages = self._walk()
        pages = self._pages
        low, high = 0, len(pages) - 1
        if high < 0 or pages[-1].first_row + pages[-1].rows < rows:
            return None
        # A list ends where the next one begins: to read the last of a page is to read the next.
        ahead = int(self._levels.max_repetition_level > 0)
        while low < high:
            middle = (low + high) // 2
            if self.error(min(rows, pages[middle].first_row + pages[middle].rows - ahead)):
                high = middle
            else:
                low = middle + 1
        return pages[low]

    def blank(self, page: _Page) -> bytes | None:
        """A page of nulls of the same length; None if the column has none, or it is too short."""
        if not self._levels.max_definition_level or page.offset in self._file.patches:
            return None
        repeated = self._levels.max_repetition_level > 0
        return page_header.page_of_nulls(page.rows, page.length, repeated)

    def _walk(self) -> list[_Page]:
        """The pages as far as their headers can be read and say how many rows they hold."""
        start = self._chunk.data_page_offset
        if self._chunk.has_dictionary_page:
            start = min(start, self._chunk.dictionary_page_offset or start)
        self._file.seek(start)
        data = self._file.read(self._chunk.total_compressed_size)
        pages: list[_Page] = []
        at = row = 0
        repeated = self._levels.max_repetition_level > 0
        while at < len(data):
            try:
                length, rows = page_header.read_extent(data, at, repeated)
            except ValueError:
                return pages
            if rows:
                pages.append(_Page(start + at, length, row, rows))
            at, row = at + length, row + rows
        return pages


class _Patched(io.RawIOBase):
    """A file of which some pages, by their offset, read as others of the same length."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.patches: dict[int, bytes] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._source.seek(offset, whence)
        return self._source.tell()

    def tell(self) -> int:
        return self._source.tell()

    def read(self, size: int = -1) -> bytes:
        start = self._source.tell()
        data = self._source.read() if size is None or size < 0 else self._source.read(size)
        if not self.patches:
            return data
        patched = bytearray(data)
        for offset, page in self.patches.items():
            begin, end = max(offset, start), min(offset + len(page), start + len(data))
            if begin < end:
                patched[begin - start : end - start] = page[begin - offset : end - offset]
        return bytes(patched)


def _open(file: _Patched, metadata: pq.FileMetaData) -> pq.ParquetFile:
    return pq.ParquetFile(
        file, metadata=metadata, pre_buffer=False, page_checksum_verification=True
    )
