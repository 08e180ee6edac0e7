"""Segments of prompts as the arrays of a prefill step. NumPy only."""

import numpy as np

from model.attention import Queries
from model.engine.programs import empty_prompts, no_asks
from model.engine.scheduler import Segment
from model.engine.score import Asks
from model.engine.shapes import Shapes
from model.transformer import TokenRows


def pack(segments: list[Segment], shapes: Shapes) -> tuple[TokenRows, Queries]:
    """Lays segments end to end over token rows, and one to a block of queries."""
    rows, queries = empty_prompts(shapes)
    size = shapes.block_size
    used = last_block = 0
    for block, segment in enumerate(segments):
        count = segment.stop - segment.start
        span, lane = slice(used, used + count), slice(0, count)
        positions = np.arange(segment.start, segment.stop, dtype=np.int32)
        rows.tokens[span] = segment.prompt.request.prompt_token_ids[segment.start : segment.stop]
        rows.positions[span] = positions
        rows.place.page[span] = segment.pages[-1]
        rows.place.offset[span] = positions % size
        rows.live[span] = True
        queries.rows[block, lane] = np.arange(used, used + count)
        queries.inverse[span] = block * size + np.arange(count)
        queries.positions[block, lane] = positions
        queries.pages[block, : len(segment.pages)] = segment.pages
        used += count
        last_block = max(last_block, len(segment.pages))
    tiles = np.int32(-(-used // shapes.prefill_tile_rows))
    rows = TokenRows(rows.tokens, rows.positions, rows.place, rows.live, tiles)
    blocks = np.int32(last_block)
    return rows, Queries(queries.rows, queries.inverse, queries.positions, queries.pages, blocks)


def ask(segments: list[Segment], shapes: Shapes) -> Asks:
    """What the model thinks of the token after each row that ``pack`` lays out."""
    asks = no_asks(shapes)
    used = 0
    for segment in segments:
        request = segment.prompt.request
        span = slice(used, used + segment.stop - segment.start)
        asks.rows[span] = np.arange(span.start, span.stop)
        asks.targets[span] = request.prompt_token_ids[segment.start + 1 : segment.stop + 1]
        asks.wanted[span] = request.params.prompt_logprobs or 0
        used = span.stop
    return Asks(asks.rows, asks.targets, asks.wanted, np.int32(-(-used // shapes.score_tile_rows)))
