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
from model.engine.sampler import Draws, Rows, sample
from model.engine.score import Asks, Scores, judge
from model.engine.state import SlotState
from model.engine.tables import TableRows, Tables, fill_tables, record_draws
from model.paged_cache import PagedCache, Place
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
class Pending:
    """Rows whose last tokens have been run and whose next ones have not been drawn.

    Attributes:
      slots: [B] the slot of each row, S for a row that is not used.
      tiles: scalar, how many tiles hold rows that are used.
      hidden: [B / devices, D] float32, the residual stream after the last layer.
    """

    slots: Leaf
    tiles: Leaf
    hidden: Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rounds:
    """What K times running and drawing gave; one time where ``draw`` is a step of its own.

    Attributes:
      slots: [K, B] the slot of each row, S for a row that drew nothing.
      draws: what each row drew, [K, B, ...].
    """

    slots: Leaf
    draws: Draws


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
    masks: jax.Array,
    rows: int,
    steps: int,
) -> tuple[PagedCache, SlotState, Tables, Rounds]:
    """Draws up to ``steps`` tokens for the sequences of the state, ``rows`` of them at a time.

    There may be more live slots than rows: a row whose sequence ends takes the next live slot
    in the following step, so rows stay full between two looks of the host. For the masks see
    ``draw``: they stay as they are.

    Returns:
      The cache, the state and the tables (donate them), and what was drawn.
    """
    everyone = jnp.ones_like(state.alive)

    def body(carry, _):
        cache, state, tables = carry
        cache, pending = run(net, params, cache, state, rows)
        state, tables, drawn = _draw(net, params, state, tables, masks, everyone, pending)
        return (cache, state, tables), drawn

    (cache, state, tables), rounds = lax.scan(body, (cache, state, tables), None, length=steps)
    return cache, state, tables, rounds


def run(
    net: Network, params: Params, cache: PagedCache, state: SlotState, rows: int
) -> tuple[PagedCache, Pending]:
    """Runs the last token of up to ``rows`` live slots.

    Returns:
      The cache (donate it), and what ``draw`` draws from.
    """
    exchange = net.collectives
    count = len(state.alive)
    slots, tiles = choose_slots(state.alive, rows, net.tile_rows, exchange.size)
    live = slots < count
    slot = jnp.where(live, slots, 0)
    positions = jnp.where(live, state.position[slot], -1)
    pages = state.pages[slot]
    place = _place(pages, positions, cache.block_size)
    token_rows = TokenRows(state.token[slot], jnp.maximum(positions, 0), place, live, tiles)
    index = jnp.arange(rows, dtype=jnp.int32)
    queries = Queries(
        rows=index[:, None],
        inverse=index,
        positions=positions[:, None],
        pages=pages,
        blocks=positions.max() // cache.block_size + 1,
    )
    hidden, cache = forward(net, params, cache, token_rows, queries)
    return cache, Pending(slots, tiles, hidden)


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
    state, tables, drawn = _draw(net, params, state, tables, masks, ready, pending)
    return state, tables, jax.tree.map(lambda x: x[None], drawn)


def _draw(
    net: Network,
    params: Params,
    state: SlotState,
    tables: Tables,
    masks: jax.Array,
    ready: jax.Array,
    pending: Pending,
) -> tuple[SlotState, Tables, Rounds]:
    """As ``draw``, but what was drawn is [B, ...]."""
    exchange = net.collectives
    count, rows = len(state.alive), len(pending.slots)
    slots = jnp.where(ready[jnp.minimum(pending.slots, count - 1)], pending.slots, count)
    # Rows that are not used do as a used one does, so that no feature runs for their sake.
    slot = jnp.where(slots < count, slots, jnp.minimum(slots.min(), count - 1))
    first_slot = _first_slot(net, tables)

    def next_token(hidden, slot):
        logits = head(net, final_hidden(net, params, hidden), params["head"])
        own = _rows(state, tables, masks, exchange.own_rows(slot), first_slot)
        return exchange.gather_rows_tree(sample(exchange.columns_to_rows(logits), own))

    tiles = rows // net.tile_rows
    draws = in_tiles(tiles, pending.tiles, next_token, pending.hidden, slot)
    drawn = state.drawn[slot] + 1
    ended = (draws.token[:, None] == state.stop_ids[slot]).any(-1)
    ended |= drawn >= state.max_tokens[slot]
    update = dataclasses.replace(
        state,
        token=state.token.at[slots].set(draws.token, mode="drop"),
        position=state.position.at[slots].add(1, mode="drop"),
        drawn=state.drawn.at[slots].set(drawn, mode="drop"),
        alive=state.alive.at[slots].set(~ended, mode="drop"),
    )
    penalised, bad_tokens = state.knobs.penalised[slot], state.knobs.bad_tokens[slot]
    bad_tokens = jnp.where(slots < count, bad_tokens, 0)
    tables = record_draws(tables, slots, draws.token, penalised, bad_tokens, first_slot)
    return update, tables, Rounds(slots, draws)


def _rows(
    state: SlotState, tables: Tables, masks: jax.Array, slot: jax.Array, first_slot: jax.Array
) -> Rows:
    """How rows of these slots are sampled; they are slots of this device, or unused rows."""
    early = state.drawn[slot] < state.min_tokens[slot]
    knobs = jax.tree.map(lambda x: x[slot], state.knobs)
    masked = knobs.masked & (state.drawn[slot] < state.masked_draws[slot])
    return Rows(
        knobs=dataclasses.replace(knobs, masked=masked),
        position=state.position[slot] + 1,
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


def choose_slots(
    alive: jax.Array, rows: int, tile_rows: int, devices: int
) -> tuple[jax.Array, jax.Array]:
    """Live slots for the rows of a step, and how many tiles they fill.

    Each device samples the rows that it holds of a tile, so slots are dealt to devices in equal
    ranges and each range fills its own rows.

    Args:
      alive: [S] bool; S is a multiple of ``devices``.
      rows: B.
      tile_rows: R.
      devices: of the mesh.

    Returns:
      [B] slot of each row, S for none; and a scalar.
    """
    count = len(alive)
    groups = alive.reshape(devices, -1)
    each = rows // devices
    order = jnp.argsort(~groups, axis=-1, stable=True)[:, :each].astype(jnp.int32)
    used = jnp.take_along_axis(groups, order, axis=-1)
    slots = order + jnp.arange(devices, dtype=jnp.int32)[:, None] * groups.shape[1]
    slots = jnp.where(used, slots, count)
    slots = slots.reshape(devices, rows // tile_rows, -1).swapaxes(0, 1).reshape(rows)
    per_tile = tile_rows // devices
    return slots, (used.sum(-1).max() + per_tile - 1) // per_tile


def _place(pages: jax.Array, positions: jax.Array, block_size: int) -> Place:
    """Where each row writes; rows with a negative position write to page 0."""
    block = jnp.maximum(positions, 0) // block_size
    page = jnp.take_along_axis(pages, block[:, None], axis=1)[:, 0]
    return Place(jnp.where(positions < 0, 0, page), jnp.maximum(positions, 0) % block_size)
