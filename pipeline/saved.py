"""Answers to some rows of a chunk, as output rows: kept between attempts, and joined to a part."""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.counts import Counts

_KEY = b"grok1.saved"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saved:
    """Output rows of some input rows of a chunk.

    Attributes:
      sources: for each output row, the input row of the chunk that it belongs to.
      table: the output rows.
      counts: what they come to.
    """

    sources: tuple[int, ...]
    table: pa.Table
    counts: Counts

    @classmethod
    def of(cls, sources: Sequence[int], table: pa.Table, counts: Counts) -> "Saved":
        """From output rows and the input row of each."""
        return cls(sources=tuple(sources), table=table, counts=counts)

    @property
    def rows(self) -> set[int]:
        """The input rows."""
        return set(self.sources)

    def to_bytes(self) -> bytes:
        """In Arrow's own format, which keeps every type and bit."""
        facts = json.dumps({"sources": self.sources, "counts": dataclasses.asdict(self.counts)})
        schema = self.table.schema
        schema = schema.with_metadata({**(schema.metadata or {}), _KEY: facts.encode()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(self.table.replace_schema_metadata(schema.metadata))
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Saved":
        """What ``to_bytes`` made."""
        table = pa.ipc.open_stream(data).read_all()
        metadata = dict(table.schema.metadata)
        facts = json.loads(metadata.pop(_KEY))
        return cls(
            sources=tuple(facts["sources"]),
            table=table.replace_schema_metadata(metadata or None),
            counts=Counts(**facts["counts"]),
        )


def without(pieces: Sequence[Saved]) -> list[Saved]:
    """The pieces of which no input row is in one before it: two attempts may have had one row."""
    kept: list[Saved] = []
    have: set[int] = set()
    for piece in pieces:
        if not piece.rows & have:
            kept.append(piece)
            have |= piece.rows
    return kept


def merge(pieces: Sequence[Saved]) -> pa.Table:
    """One table of pieces of one schema, in the order of the input rows."""
    pieces = [piece for piece in pieces if piece.sources] or list(pieces[:1])
    if len(pieces) == 1:
        return pieces[0].table
    sources = np.concatenate([piece.sources for piece in pieces])
    order = np.argsort(sources, kind="stable")
    whole = pa.concat_tables(piece.table for piece in pieces).combine_chunks()
    return whole.take(pa.array(order))
