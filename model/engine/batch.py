"""What is to run as the arguments of a step: prompts, and rows of the tables. NumPy only."""

import numpy as np

from model.attention import Queries
from model.engine.rules import Rules
from model.engine.score import Asks
from model.engine.sequence import Segment, Sequence
from model.engine.shapes import Shapes
from model.engine.state import STOP_IDS, SlotState, set_knobs
from model.engine.tables import FILL_ROWS, TableRows, empty_rows
from model.paged_cache import Place
from model.transformer import TokenRows


def empty_prompts(shapes: Shapes) -> tuple[TokenRows, Queries]:
    """A prefill step's arguments, as NumPy arrays, that run nothing."""
    tokens, blocks, size = shapes.prefill_rows, shapes.prefill_blocks, shapes.block_size
    zeros = np.zeros(tokens, np.int32)
    rows = TokenRows(
        tokens=zeros.copy(),
        positions=zeros.copy(),
        place=Place(zeros.copy(), zeros.copy()),
        live=np.zeros(tokens, bool),
        tiles=np.int32(0),
    )
    queries = Queries(
        rows=np.full((blocks, size), tokens, np.int32),
        inverse=np.full(tokens, blocks * size, np.int32),
        positions=np.full((blocks, size), -1, np.int32),
        pages=np.zeros((blocks, shapes.sequence_pages), np.int32),
        blocks=np.int32(0),
    )
    return rows, queries


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


def no_asks(shapes: Shapes) -> Asks:
    """The score step's questions, as NumPy arrays, that ask nothing: A = T."""
    zeros = np.zeros(shapes.prefill_rows, np.int32)
    return Asks(rows=zeros, targets=zeros.copy(), wanted=zeros - 1, tiles=np.int32(0))


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


def no_rows(shapes: Shapes, vocabulary: int) -> TableRows:
    """The argument of ``fill_tables``, as NumPy arrays, that changes nothing."""
    return empty_rows(shapes.slots, vocabulary, shapes.max_context)


def table_rows(sequences: list[Sequence], rows: TableRows) -> None:
    """Writes what the tables are to hold of new sequences into rows that change nothing yet."""
    tables = rows.tables
    for row, sequence in enumerate(sequences):
        request, rules = sequence.request, sequence.prompt.ticket.rules
        params = request.params
        rows.slot[row] = sequence.slot
        if params.penalises:
            rows.prompt[row, : len(request.prompt_token_ids)] = request.prompt_token_ids
        for column, (token_id, bias) in enumerate(params.logit_bias):
            tables.bias_ids[row, column] = token_id
            tables.biases[row, column] = bias
        end = 0
        for word in rules.bad_words:
            start, end = end, end + len(word)
            tables.words[row, start:end] = word
            tables.first[row, start] = tables.last[row, end - 1] = True


def histories(sequences: list[Sequence], shapes: Shapes) -> tuple[np.ndarray, np.ndarray]:
    """The arguments of ``fill_histories`` for new sequences, of which it takes so many at once."""
    slots = np.full(FILL_ROWS, shapes.slots, np.int32)
    prompts = np.zeros((FILL_ROWS, shapes.history_tokens), np.int32)
    for row, sequence in enumerate(sequences):
        ids = sequence.request.prompt_token_ids
        slots[row], prompts[row, : len(ids)] = sequence.slot, ids
    return slots, prompts


def fill_slot(values: SlotState, sequence: Sequence, rules: Rules) -> None:
    """Writes the state of a sequence that has drawn nothing into NumPy arrays."""
    slot, request = sequence.slot, sequence.request
    params = request.params
    values.alive[slot] = True
    values.token[slot] = request.prompt_token_ids[-1]
    values.position[slot] = len(request.prompt_token_ids) - 1
    values.max_tokens[slot] = params.max_tokens
    values.min_tokens[slot] = params.min_tokens
    values.masked_draws[slot] = params.max_tokens if request.healed is None else 1
    stops = (rules.early_ids or rules.stop_ids)[:STOP_IDS]
    values.stop_ids[slot, : len(stops)] = stops
    values.endless[slot] = len(set(stops) - set(rules.stop_ids))
    values.pages[slot, : len(sequence.pages)] = sequence.pages
    set_knobs(values.knobs, slot, request.sample_key(sequence.index), params, rules)
