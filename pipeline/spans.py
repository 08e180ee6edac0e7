"""Chunks grouped into spans, each for one worker to read in one go."""

import dataclasses
from collections.abc import Iterator, Sequence

from pipeline.plan import Chunk

SPAN_BYTES = 64 << 20
SPAN_CHUNKS = 16
GROUP_BYTES = 256 << 20
"""Bounds of a span, which is one chunk unless files are tiny: whoever holds a span keeps its other
chunks from those who are idle. Only where a row group is larger than this do its chunks go
together, since the reader of a span passes over the rows before it in their row group."""

_SPANS_WANTED = 64
"""Small jobs get at least so many spans if they have the chunks, to keep several in flight."""


@dataclasses.dataclass(frozen=True)
class Span:
    """Chunks that one worker reads in one go, in input order."""

    chunks: tuple[Chunk, ...]


def spans(chunks: Sequence[Chunk]) -> Iterator[Span]:
    """Groups chunks into spans: one each, but for tiny files and for very large row groups."""
    most = max(1, min(SPAN_CHUNKS, len(chunks) // _SPANS_WANTED))
    group: list[Chunk] = []
    size = 0
    for chunk in chunks:
        share = chunk.file.size * chunk.rows // max(1, chunk.file.rows or 0)
        other_file = group and group[-1].file.index != chunk.file.index
        tiny = size + share <= SPAN_BYTES // 16
        apart = not tiny if other_file else chunk.file.group_bytes <= GROUP_BYTES
        if group and (len(group) >= most or size + share > SPAN_BYTES or apart):
            yield Span(tuple(group))
            group, size = [], 0
        group.append(chunk)
        size += share
    if group:
        yield Span(tuple(group))
