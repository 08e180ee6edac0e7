"""The compiled steps: what runs on the devices. Parts that compose, and pure functions all.

``prefill`` fills the cache with prompts but for their last token. ``run`` runs last tokens, and
``draw`` draws the next; ``decode`` is both, several times over without the host, and where the host
has a say between them they are steps of their own. So everything is drawn in one place, and a
prompt's last position is a decode row whichever way its cache was filled.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from model.attention import Queries
from model.engine.drafts import Histories, look_up, remember
from model.engine.rows import Pending, choose_rows, right_rows
from model.engine.sampler import Draws, Rows, sample
from model.engine.score import Asks, Scores, judge
from model.engine.state import SlotState
from model.engine.tables import TableRows, Tables, fill_tables, record_draws
from model.paged_cache import PagedCache, find_places
from model.transformer import (
    Network,
    Params,
    TokenRows,
    final_hidden,
    forward,
    head,
    in_tiles,
    tiled,
)
from model.trees import Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rounds:
    """What K times running and drawing gave; one time where ``draw`` is a step of its own.

    Attributes:
      slots: [K, B] the slot of each row, S for a row that drew nothing; rows of one slot stand
        in the order of their tokens.
      draws: what each row drew, [K, B, ...].
      drafted: [K] drafts that were run.
      accepted: [K] those of them that were right.
    """

    slots: Leaf
    draws: Draws
    drafted: Leaf
    accepted: Leaf


def prefill(
    net: Network, params: Params, cache: PagedCache, rows: TokenRows, queries: Queries
) -> PagedCache:
    """Runs prompt tokens through the network for what they leave in the cache."""
    return forward(net, params, cache, rows, queries)[1]


def score(
    net: Network,
    params: Params,
    cache: PagedCache,
    rows: TokenRows,
    queries: Queries,
    asks: Asks,
    tile_rows: int,
) -> tuple[PagedCache, Scores]:
    """As ``prefill``, and what the model thinks of tokens after some of the rows.

    Args:
      net: what is fixed.
      params: the weights.
      cache: to be filled.
      rows: T prompt tokens.
      queries: how they attend.
      asks: A questions about the rows.
      tile_rows: questions that the head answers at once; divides A.

    Returns:
      The cache, and the answers [A, ...].
    """
    hidden, cache = forward(net, params, cache, rows, queries)
    x = tiled(net, rows, lambda h: final_hidden(net, params, h), hidden)[asks.rows]
    answers = in_tiles(
        len(x) // tile_rows,
        asks.tiles,
        lambda *tile: judge(net, params["head"], *tile),
        x,
        asks.targets,
        asks.wanted,
    )
    return cache, answers


def decode(
    net: Network,
    params: Params,
    cache: PagedCache,
    state: SlotState,
    tables: Tables,
    histories: Histories,
    masks: jax.Array,
    rows: int,
    steps: int,
    drafts: int,
    free_rows: int,
) -> tuple[PagedCache, SlotState, Tables, Histories, Rounds]:
    """Draws tokens for the sequences of the state, ``steps`` times, ``rows`` of them at a time.

    There may be more live slots than rows: a row whose sequence ends takes the next live slot
    in the following step, so rows stay full between two looks of the host. Where there are fewer,
    up to ``drafts`` tokens of a sequence are run beside its last; see ``look_up``. For the masks
    see ``draw``: they stay as they are.

    Returns:
      The cache, the state, the tables and the histories (donate them), and what was drawn.
    """
    everyone = jnp.ones_like(state.alive)

    def body(carry, _):
        cache, state, tables, histories = carry
        ahead = look_up(histories, state, drafts, free_rows) if drafts else None
        cache, pending = run(net, params, cache, state, rows, ahead)
        state, tables, drawn, last = _draw(net, params, state, tables, masks, everyone, pending)
        if drafts:
            right = drawn.slots < len(everyone)
            what = (pending.positions, drawn.draws.token)
            histories = remember(histories, pending.rows, right, last, *what)
        return (cache, state, tables, histories), drawn

    carry = (cache, state, tables, histories)
    (cache, state, tables, histories), rounds = lax.scan(body, carry, None, length=steps)
    return cache, state, tables, histories, rounds


def run(
    net: Network,
    params: Params,
    cache: PagedCache,
    state: SlotState,
    rows: int,
    ahead: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[PagedCache, Pending]:
    """Runs the last token of up to ``rows`` live slots, and drafts where rows are left.

    Args:
      net: what is fixed.
      params: the weights.
      cache: donate it.
      state: of all slots.
      rows: B.
      ahead: drafts [S, J] of each slot and how many of them count [S], or None.

    Returns:
      The cache, and what ``draw`` draws from.
    """
    exchange = net.collectives
    count = len(state.alive)
    tokens, wanted = ahead or (state.token[:, None], jnp.zeros_like(state.token))
    chosen = choose_rows(state.alive, wanted, rows, net.tile_rows, exchange.size)
    live = chosen.slots < count
    slot = jnp.where(live, chosen.slots, 0)
    drafted = tokens[slot, jnp.maximum(chosen.offsets - 1, 0)]
    token = jnp.where(chosen.offsets > 0, drafted, state.token[slot])
    positions = jnp.where(live, state.position[slot] + chosen.offsets, -1)
    pages = state.pages[slot]
    place = find_places(pages, positions, cache.block_size)
    token_rows = TokenRows(token, jnp.maximum(positions, 0), place, live, chosen.tiles)
    index = jnp.arange(rows, dtype=jnp.int32)
    queries = Queries(
        rows=index[:, None],
        inverse=index,
        positions=positions[:, None],
        pages=pages,
        blocks=positions.max() // cache.block_size + 1,
    )
    hidden, cache = forward(net, params, cache, token_rows, queries)
    return cache, Pending(chosen, token, positions, hidden)


def draw(
    net: Network,
    params: Params,
    state: SlotState,
    tables: Tables,
    masks: jax.Array,
    ready: jax.Array,
    pending: Pending,
) -> tuple[SlotState, Tables, Rounds]:
    """Draws the next token of the rows that ``run`` ran.

    Args:
      net: what is fixed.
      params: ``final_norm`` and ``head``.
      state: of all slots; donate it.
      tables: this device's; donate them.
      masks: [S / devices, V / 32] uint32, a bit for each token that a slot of this device may draw.
      ready: [S] bool; a slot that is not, such as one whose mask is still being made, draws
        nothing, and its token is run again.
      pending: what was run; no slot of it has changed its owner since.

    Returns:
      The state, the tables, and what was drawn, K = 1.
    """
    state, tables, drawn, _ = _draw(net, params, state, tables, masks, ready, pending)
    return state, tables, jax.tree.map(lambda x: x[None], drawn)


def _draw(
    net: Network,
    params: Params,
    state: SlotState,
    tables: Tables,
    masks: jax.Array,
    ready: jax.Array,
    pending: Pending,
) -> tuple[SlotState, Tables, Rounds, jax.Array]:
    """As ``draw``, but what was drawn is [B, ...]; and [B] bool, the last row of each slot."""
    exchange, chosen = net.collectives, pending.rows
    count, rows = len(state.alive), len(chosen.slots)
    slots = jnp.where(ready[jnp.minimum(chosen.slots, count - 1)], chosen.slots, count)
    live = slots < count
    # Rows that are not used do as a used one does, so that no feature runs for their sake.
    slot = jnp.where(live, slots, jnp.minimum(slots.min(), count - 1))
    first_slot = _first_slot(net, tables)

    def next_token(hidden, slot, offset):
        logits = head(net, final_hidden(net, params, hidden), params["head"])
        at = (exchange.own_rows(slot), exchange.own_rows(offset))
        own = _rows(state, tables, masks, *at, first_slot)
        return exchange.gather_rows_tree(sample(exchange.columns_to_rows(logits), own))

    tiles = rows // net.tile_rows
    draws = in_tiles(tiles, chosen.tiles, next_token, pending.hidden, slot, chosen.offsets)
    drawn = state.drawn[slot] + chosen.offsets + 1
    ends = jnp.arange(state.stop_ids.shape[-1]) >= state.endless[slot][:, None]
    ended = (ends & (draws.token[:, None] == state.stop_ids[slot])).any(-1)
    ended |= drawn >= state.max_tokens[slot]
    sizes = (net.tile_rows, exchange.size)
    right, last = right_rows(chosen, live, pending.tokens, draws.token, ended, *sizes)
    at = jnp.where(last, slots, count)
    update = dataclasses.replace(
        state,
        token=state.token.at[at].set(draws.token, mode="drop"),
        position=state.position.at[at].add(chosen.offsets + 1, mode="drop"),
        drawn=state.drawn.at[at].set(drawn, mode="drop"),
        alive=state.alive.at[at].set(~ended, mode="drop"),
    )
    slots = jnp.where(right, slots, count)
    penalised, bad_tokens = state.knobs.penalised[slot], state.knobs.bad_tokens[slot]
    bad_tokens = jnp.where(right, bad_tokens, 0)
    tables = record_draws(tables, slots, draws.token, penalised, bad_tokens, first_slot)
    drafts = (chosen.offsets > 0).sum(dtype=jnp.int32)
    accepted = (right & (chosen.offsets > 0)).sum(dtype=jnp.int32)
    return update, tables, Rounds(slots, draws, drafts, accepted), last


def _rows(
    state: SlotState,
    tables: Tables,
    masks: jax.Array,
    slot: jax.Array,
    offset: jax.Array,
    first_slot: jax.Array,
) -> Rows:
    """How rows of these slots, at these offsets, are sampled; slots of this device, or unused."""
    drawn = state.drawn[slot] + offset
    early = drawn < state.min_tokens[slot]
    knobs = jax.tree.map(lambda x: x[slot], state.knobs)
    masked = knobs.masked & (drawn < state.masked_draws[slot])
    return Rows(
        knobs=dataclasses.replace(knobs, masked=masked),
        position=state.position[slot] + offset + 1,
        banned=jnp.where(early[:, None], state.stop_ids[slot], -1),
        tables=tables,
        masks=masks,
        slot=jnp.clip(slot - first_slot, 0, len(tables.counts) - 1),
    )


def fill_slots(net: Network, tables: Tables, rows: TableRows) -> Tables:
    """The tables (donate them) with new contents in the slots of ``rows``."""
    return fill_tables(tables, rows, _first_slot(net, tables))


def _first_slot(net: Network, tables: Tables) -> jax.Array:
    """The first slot of this device's part of the tables."""
    return net.collectives.rank() * len(tables.counts)
