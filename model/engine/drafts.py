"""Drafts: tokens that a sequence may go on with, looked up in what it already holds.

Where the last tokens of a sequence stand in it before, what followed them there is drafted to
follow again: prompt lookup, vLLM's ``ngram`` method. A draft is run as a decode row like any other,
in a row that would idle, and is right if the row before it drew just that token. So drafts change
how soon tokens come and never which, drawn at random or not.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from model.engine.rows import StepRows
from model.engine.state import SlotState
from model.trees import Leaf

_FIRST_SHARE = 0.5
"""What is expected of a sequence's drafts before any has been run."""

_LEAST_SHARE = 0.2
"""A sequence whose drafts are right less often rests, however little they cost."""

_MEMORY = 0.75
"""How much of the share a step leaves as it was."""

_RECOVERY = _LEAST_SHARE / 128
"""What each step of rest adds to the share: after a failure, one more try in some thirty steps."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Histories:
    """Of S slots.

    Attributes:
      tokens: [S, X] of prompt and completion by position, up to the slot's own.
      share: [S] float32, how many of the drafts were right of late.
    """

    tokens: Leaf
    share: Leaf


def empty_histories(slots: int, context: int) -> Histories:
    """Histories, as NumPy arrays, of no sequence; ``context`` is X."""
    return Histories(np.zeros((slots, context), np.int32), np.zeros(slots, np.float32))


def fill_histories(histories: Histories, slots: jax.Array, prompts: jax.Array) -> Histories:
    """The histories (donate them) of new sequences.

    Args:
      histories: of all slots.
      slots: [Y]; S for none.
      prompts: [Y, X] their prompts from the first token on.
    """
    return Histories(
        histories.tokens.at[slots].set(prompts, mode="drop"),
        histories.share.at[slots].set(_FIRST_SHARE, mode="drop"),
    )


def look_up(
    histories: Histories, state: SlotState, most: int, free_rows: int
) -> tuple[jax.Array, jax.Array]:
    """Drafts of each slot: what followed the last place where its last two or three tokens stand.

    A place so near that less than ``most`` tokens follow it is read over again: the sequence may
    go round. What depends on tokens drawn in between, such as a penalty, has no drafts.

    With n rows a step takes about as long as reading the weights, worth ``free_rows`` rows, and n
    rows more. So a token costs (free_rows + n) / n rows, a draft one, and drafts gain while more
    than n / (free_rows + n) of them are right.

    Args:
      histories: up to the last token of each slot.
      state: of the slots.
      most: drafts of a slot.
      free_rows: rows whose products take as long as reading the weights.

    Returns:
      [S, most] token ids, and [S] how many of them are worth a row; never beyond ``max_tokens``.
    """
    tokens, last = histories.tokens, state.position[:, None]

    def same(back):
        """[S, X] whether so many tokens before each place stands what does before the last."""
        wanted = jnp.take_along_axis(tokens, jnp.maximum(last - back, 0), axis=1)
        return jnp.pad(tokens[:, : tokens.shape[1] - back] == wanted, ((0, 0), (back, 0)))

    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    pairs = same(0) & same(1) & (place < last) & (place > 0)
    rank = jnp.where(pairs, place + jnp.where(same(2) & (place > 1), len(place), 0), -1)
    best = rank.argmax(-1).astype(jnp.int32)[:, None]
    ahead = jnp.arange(most) % jnp.maximum(last - best, 1)
    drafts = jnp.take_along_axis(tokens, jnp.minimum(best + 1 + ahead, last), axis=1)
    length = jnp.ceil(most * histories.share).astype(jnp.int32)
    knobs = state.knobs
    live = state.alive.sum()
    least = jnp.maximum(live / (live + free_rows), _LEAST_SHARE)
    may = (rank.max(-1) >= 0) & (histories.share >= least)
    may &= ~knobs.penalised & (knobs.bad_tokens == 0)
    return drafts, jnp.where(may, jnp.minimum(length, state.max_tokens - state.drawn - 1), 0)


def remember(
    histories: Histories,
    rows: StepRows,
    right: jax.Array,
    last: jax.Array,
    positions: jax.Array,
    drew: jax.Array,
) -> Histories:
    """The histories once a step has drawn.

    Args:
      histories: before.
      rows: of the step.
      right: [B] bool, rows whose draw counts.
      last: [B] bool, the last of those of each slot.
      positions: [B] where the token stands that each row ran.
      drew: [B] the token that it drew.
    """
    count = len(histories.share)
    slots = jnp.where(right, rows.slots, count)
    tokens = histories.tokens.at[slots, positions + 1].set(drew, mode="drop")
    found = rows.offsets / jnp.maximum(rows.drafts, 1)
    before = histories.share[jnp.minimum(rows.slots, count - 1)]
    tried = before + (1 - _MEMORY) * (found - before)
    rested = jnp.maximum(before, jnp.minimum(before + _RECOVERY, _FIRST_SHARE))
    share = jnp.where(rows.drafts > 0, tried, rested)
    at = jnp.where(last, rows.slots, count)
    return Histories(tokens, histories.share.at[at].set(share, mode="drop"))
