"""Segments of prompts as the arrays of a prefill step. NumPy only."""

import numpy as np

from model.attention import Queries
from model.engine.programs import empty_prompts, no_asks
from model.engine.score import Asks
from model.engine.sequence import Segment
from model.engine.shapes import Shapes
from model.transformer import TokenRows


def pack(segments: list[Segment], shapes: Shapes) -> tuple[TokenRows, Queries]:
    """Lays segments end to end over token rows, and one to a block of queries.

    A token's lane in its block goes by its position, wherever its segment begins.
    """
    rows, queries = empty_prompts(shapes)
    size = shapes.block_size
    used = last_block = 0
    for block, segment in enumerate(segments):
        count, first = len(segment.tokens), segment.start % size
        span, lane = slice(used, used + count), slice(first, first + count)
        positions = segment.start + np.arange(count, dtype=np.int32)
        rows.tokens[span] = segment.tokens
        rows.positions[span] = positions
        rows.place.page[span] = segment.pages[-1]
        rows.place.offset[span] = positions % size
        rows.live[span] = True
        queries.rows[block, lane] = np.arange(used, used + count)
        queries.inverse[span] = block * size + positions % size
        queries.positions[block, lane] = positions
        queries.pages[block, : len(segment.pages)] = segment.pages
        used += count
        last_block = max(last_block, len(segment.pages))
    tiles = np.int32(-(-used // shapes.prefill_tile_rows))
    rows = TokenRows(rows.tokens, rows.positions, rows.place, rows.live, tiles)
    blocks = np.int32(last_block)
    return rows, Queries(queries.rows, queries.inverse, queries.positions, queries.pages, blocks)


def ask(segments: list[Segment], shapes: Shapes) -> Asks:
    """What segments ask about the rows that ``pack`` lays out, in order."""
    asks = no_asks(shapes)
    row = used = 0
    for segment in segments:
        span = slice(used, used + len(segment.asks))
        if segment.asks:
            positions, targets, _ = np.transpose(segment.asks)
            asks.rows[span] = row + positions - segment.start
            asks.targets[span] = targets
            asks.wanted[span] = segment.prompt.request.logprobs_wanted
        row += len(segment.tokens)
        used = span.stop
    return Asks(asks.rows, asks.targets, asks.wanted, np.int32(-(-used // shapes.score_tile_rows)))
