"""Few-shot examples: rows of a second table that precede a prompt, made text by a template."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.checkpoint import files
from pipeline.template import Template, TemplateFailed
from schemas.columns import values
from schemas.error import SetupError

_MAX_BYTES = 64 << 20
"""Of a table; all workers hold it."""

_TOKEN_BYTES = 4
"""Usual for text."""


class ExamplesChanged(Exception):
    """The table of examples is not the one that the job was set up with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """A table of examples.

    Attributes:
      rows: column -> value, for each.
      pieces: what each gives to a prompt.
      digest: of the file's bytes.
    """

    rows: tuple[Mapping[str, Any], ...]
    pieces: tuple[str, ...]
    digest: str

    @property
    def tokens(self) -> float:
        """About how many tokens one has."""
        return sum(len(piece.encode()) for piece in self.pieces) / len(self.pieces) / _TOKEN_BYTES


def read(url: str, template: str) -> Examples:
    """The examples of a Parquet file, at least one.

    Args:
      url: of the file.
      template: text of the template over its columns.

    Raises:
      SetupError: it cannot be read, is empty, or does not fit the template.
    """
    data = files.read_bytes(url, _MAX_BYTES)
    rows = _rows(data, url)
    if not rows:
        raise SetupError(f"--few-shot {files.redact(url)} has no rows; give at least one example")
    compiled, pieces = Template(template, "--few-shot-template"), []
    for place, row in enumerate(rows):
        try:
            pieces.append(compiled.render(row))
        except TemplateFailed as fault:
            raise SetupError(
                f"--few-shot-template: row {place} of {files.redact(url)}: {fault}; fill it, or "
                "let the template do without"
            ) from None
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return Examples(rows=tuple(rows), pieces=tuple(pieces), digest=digest)


def pick(count: int, asked: Sequence[str | None], own: str, address: str | None) -> list[int]:
    """Places of the examples that precede a row.

    Args:
      count: how many; fewer if there are no more.
      asked: what each example asks, or None; one that asks what the row asks would give it away.
      own: what the row asks.
      address: what the row's draw derives from; None takes the first ones.
    """
    order = range(len(asked)) if address is None else draw(address, len(asked))
    picked: list[int] = []
    for place in order:
        if len(picked) == count:
            break
        if asked[place] != own:
            picked.append(place)
    return picked


def draw(address: str, total: int) -> Iterator[int]:
    """0 to ``total`` - 1 in an order that an address decides, made as far as it is looked at."""
    swapped: dict[int, int] = {}
    for at in range(total):
        digest = hashlib.blake2b(f"few-shot|{address}|{at}".encode(), digest_size=8).digest()
        other = at + int.from_bytes(digest, "little") % (total - at)
        yield swapped.get(other, other)
        swapped[other] = swapped.get(at, at)


def _rows(data: bytes, url: str) -> list[dict[str, Any]]:
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SetupError(
            f"--few-shot {files.redact(url)} is no readable Parquet file: {reason}; "
            "grok1 import makes one of JSON lines and CSV"
        ) from None
    columns = {name: values(table, name) for name in table.schema.names}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
