"""What the device keeps of slots whose logits are changed before a draw, and the changes.

In the order of vLLM: biases, penalties, then masks. Log-probabilities are those of the raw logits,
so nothing here shows in them. Each change costs only while some row asks for it, and a slot that
asks for none never touches its part of the tables.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from model.trees import Leaf
from schemas.sampling import MAX_BAD_WORD_TOKENS, MAX_BIASES

WORD_BITS = 32
"""Tokens that one word of a mask allows or not, the lowest bit first."""

FILL_ROWS = 16
"""Slots that one call of ``fill_tables`` or ``fill_histories`` sets."""

_IN_PROMPT = 1 << 15
"""Bit of a count: the token stands in the prompt. The others count how often it was drawn."""

_COLUMNS = 64
"""Listed tokens that are scattered at once: a longer list costs another round."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tables:
    """Of S slots; each device holds those that it samples, whole.

    Attributes:
      counts: [S, V] uint16, see ``_IN_PROMPT``.
      bias_ids: [S, MAX_BIASES] token ids, -1 after the last.
      biases: [S, MAX_BIASES] float32, what is added to their logits.
      words: [S, MAX_BAD_WORD_TOKENS] bad words end to end, -1 after the last.
      first: the same shape, bool; whether the token is the first of its word.
      last: whether it is the last.
      matched: whether the completion so far ends with the word up to this token.
    """

    counts: Leaf
    bias_ids: Leaf
    biases: Leaf
    words: Leaf
    first: Leaf
    last: Leaf
    matched: Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TableRows:
    """New contents of ``FILL_ROWS`` slots.

    Attributes:
      slot: [X]; one past the last slot for none.
      prompt: [X, P] the prompt's tokens, -1 after the last; for penalties.
      tables: what the slots hold from now on, [X, ...], but for ``counts``, which has no columns.
    """

    slot: Leaf
    prompt: Leaf
    tables: Tables


def empty_tables(slots: int, vocabulary: int, counts: bool = True) -> Tables:
    """Tables, as NumPy arrays, that change nothing; without ``counts`` those have no columns."""
    words = np.full((slots, MAX_BAD_WORD_TOKENS), -1, np.int32)
    flags = np.zeros(words.shape, bool)
    return Tables(
        counts=np.zeros((slots, vocabulary if counts else 0), np.uint16),
        bias_ids=np.full((slots, MAX_BIASES), -1, np.int32),
        biases=np.zeros((slots, MAX_BIASES), np.float32),
        words=words,
        first=flags,
        last=flags.copy(),
        matched=flags.copy(),
    )


def empty_masks(slots: int, vocabulary: int) -> np.ndarray:
    """[S, V / WORD_BITS] uint32 that allow everything."""
    return np.full((slots, -(-vocabulary // WORD_BITS)), 2**32 - 1, np.uint32)


def empty_rows(slots: int, vocabulary: int, prompt_tokens: int) -> TableRows:
    """Rows, as NumPy arrays, that change no slot; ``slots`` is S, ``prompt_tokens`` P."""
    return TableRows(
        slot=np.full(FILL_ROWS, slots, np.int32),
        prompt=np.full((FILL_ROWS, prompt_tokens), -1, np.int32),
        tables=empty_tables(FILL_ROWS, vocabulary, counts=False),
    )


def fill_tables(tables: Tables, rows: TableRows, first_slot: jax.Array) -> Tables:
    """The tables with new contents in some slots; no token has been drawn there.

    Args:
      tables: this device's; donate them.
      rows: for any device's slots.
      first_slot: the first slot of this device.
    """
    at = _own(rows.slot, first_slot, len(tables.counts))
    counts = tables.counts.at[at].set(0, mode="drop")
    prompt = _or_past(rows.prompt, counts.shape[-1])
    counts = counts.at[at[:, None], prompt].set(_IN_PROMPT, mode="drop")
    kept = dataclasses.replace(tables, counts=rows.tables.counts)
    filled = jax.tree.map(lambda old, new: old.at[at].set(new, mode="drop"), kept, rows.tables)
    return dataclasses.replace(filled, counts=counts)


def record_draws(
    tables: Tables,
    slot: jax.Array,
    token: jax.Array,
    penalised: jax.Array,
    bad_tokens: jax.Array,
    first_slot: jax.Array,
) -> Tables:
    """The tables once each of B slots has drawn a token; no slot stands twice.

    Args:
      tables: this device's.
      slot: [B] of any device; one past the last slot for none.
      token: [B] what was drawn.
      penalised: [B] whether the slot's draws are counted.
      bad_tokens: [B] tokens of the slot's bad words.
      first_slot: the first slot of this device.
    """
    count = len(tables.counts)
    own = _own(slot, first_slot, count)
    at = jnp.where(penalised, own, count)
    before = tables.counts.at[at, token].get(mode="fill", fill_value=0)
    # A count that is full stays so, lest it reach the prompt's bit.
    full = (before & (_IN_PROMPT - 1)) == _IN_PROMPT - 1
    counts = tables.counts.at[at, token].add((~full).astype(jnp.uint16), mode="drop")

    def advance(_, matched):
        at = jnp.where(bad_tokens > 0, own, count)
        row = jnp.minimum(at, count - 1)
        reached = _reached(tables.first[row], matched[row])
        return matched.at[at].set(reached & (tables.words[row] == token[:, None]), mode="drop")

    matched = lax.fori_loop(0, (bad_tokens > 0).any().astype(jnp.int32), advance, tables.matched)
    return dataclasses.replace(tables, counts=counts, matched=matched)


def add_biases(logits: jax.Array, tables: Tables, slot: jax.Array, used: jax.Array) -> jax.Array:
    """Logits [R, V] with the biases of each row's slot added, of which ``used`` [R] are in use."""
    rows = jnp.arange(len(logits))[:, None]

    def add(ids, logits, start):
        some = lax.dynamic_slice_in_dim(tables.biases, start, _COLUMNS, axis=1)[slot]
        return logits.at[rows, ids].add(some, mode="drop")

    return _scatter(logits, tables.bias_ids, slot, used, add)


def penalise(
    logits: jax.Array,
    tables: Tables,
    slot: jax.Array,
    repetition: jax.Array,
    presence: jax.Array,
    frequency: jax.Array,
) -> jax.Array:
    """Logits [R, V] less the penalties [R], as vLLM and OpenAI define them."""
    counts = tables.counts[slot]
    drawn = (counts & (_IN_PROMPT - 1)).astype(jnp.float32)
    factor = jnp.where(counts > 0, repetition[:, None], 1.0)
    logits = jnp.where(logits > 0, logits / factor, logits * factor)
    logits = logits - frequency[:, None] * drawn
    return logits - jnp.where(drawn > 0, presence[:, None], 0.0)


def keep_allowed(
    logits: jax.Array, masks: jax.Array, slot: jax.Array, masked: jax.Array
) -> jax.Array:
    """Logits [R, V] with -inf where the mask of a ``masked`` [R] row's slot has no bit."""
    words = jnp.where(masked[:, None], masks[slot], jnp.uint32(2**32 - 1))
    bits = (words[:, :, None] >> jnp.arange(WORD_BITS, dtype=jnp.uint32)) & 1
    return jnp.where(bits.reshape(len(logits), -1)[:, : logits.shape[-1]] > 0, logits, -jnp.inf)


def ban_words(logits: jax.Array, tables: Tables, slot: jax.Array, used: jax.Array) -> jax.Array:
    """Logits [R, V] with -inf for each token that would complete a bad word.

    ``used`` [R] are the tokens of each row's words, 0 where it has none.
    """
    reached = _reached(tables.first[slot], tables.matched[slot])
    completes = reached & tables.last[slot] & (used > 0)[:, None]
    return ban_ids(logits, jnp.where(completes, tables.words[slot], -1), used)


def ban_ids(logits: jax.Array, ids: jax.Array, used: jax.Array) -> jax.Array:
    """Logits [R, V] with -inf at ids [R, X], -1 for none, of which the first ``used`` [R] count."""
    rows = jnp.arange(len(logits))
    return _scatter(
        logits,
        ids,
        rows,
        used,
        lambda ids, logits, _: logits.at[rows[:, None], ids].set(-jnp.inf, mode="drop"),
    )


def _reached(first: jax.Array, matched: jax.Array) -> jax.Array:
    """[R, X] whether all tokens of the word before this one have just been drawn."""
    before = jnp.pad(matched[:, :-1], ((0, 0), (1, 0)))
    return first | before


def _scatter(
    logits: jax.Array,
    ids: jax.Array,
    row: jax.Array,
    used: jax.Array,
    change: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Applies ``change(ids [R, _COLUMNS], logits, start)`` to as many columns as are in use.

    A row's ids stand in row ``row`` [R] of ``ids``; past its ``used`` [R] they are another's.
    """

    def body(i, logits):
        start = i * _COLUMNS
        some = lax.dynamic_slice_in_dim(ids, start, _COLUMNS, axis=1)[row]
        mine = start + jnp.arange(_COLUMNS) < used[:, None]
        return change(_or_past(jnp.where(mine, some, -1), logits.shape[-1]), logits, start)

    return lax.fori_loop(0, (used.max() + _COLUMNS - 1) // _COLUMNS, body, logits)


def _own(slot: jax.Array, first_slot: jax.Array, count: int) -> jax.Array:
    """Slots counted from this device's first; one past its last, which writes drop, for others."""
    own = slot - first_slot
    return jnp.where((own >= 0) & (own < count), own, count)


def _or_past(tokens: jax.Array, vocabulary: int) -> jax.Array:
    """Token ids with negative ones moved past the vocabulary, where a scatter drops them."""
    return jnp.where(tokens < 0, vocabulary, tokens)
