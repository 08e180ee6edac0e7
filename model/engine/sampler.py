"""Drawing the next token on the device, a whole vocabulary row at a time, without sorting it.

Randomness comes from a sample's key and the position alone, so a token's draw does not depend on
when or beside what it is made. Each feature costs only while some row uses it.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import threefry_2x32

from model.engine.tables import (
    Tables,
    add_biases,
    ban_ids,
    ban_words,
    keep_allowed,
    penalise,
)
from model.trees import Leaf
from schemas.sampling import MAX_LOGPROBS

_BLOCK = 512
"""Tokens of a block in the two-level draw: one word picks the block, one the token in it."""

_BITS = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Knobs:
    """How R rows are sampled, the same at every position.

    Attributes:
      key: [R, 2] uint32 of the sample.
      temperature: [R]; 0 is greedy.
      top_k: [R]; 0 keeps all.
      top_p: [R] in (0, 1].
      min_p: [R] in [0, 1].
      repetition: [R] repetition penalty; 1 for none.
      presence: [R] presence penalty.
      frequency: [R] frequency penalty.
      masked: [R] bool; whether the slot's mask of allowed tokens counts.
      biases: [R] tokens that have a bias.
      bad_tokens: [R] tokens of all bad words.
      logprobs: [R] how many top log-probabilities are wanted; -1 for none, not even the rank.
    """

    key: Leaf
    temperature: Leaf
    top_k: Leaf
    top_p: Leaf
    min_p: Leaf
    repetition: Leaf
    presence: Leaf
    frequency: Leaf
    masked: Leaf
    biases: Leaf
    bad_tokens: Leaf
    logprobs: Leaf

    @property
    def penalised(self) -> jax.Array:
        """[R] bool; whether logits depend on what has been drawn."""
        return (self.repetition != 1) | (self.presence != 0) | (self.frequency != 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """R rows to be sampled, each of a slot and a position; nothing is remembered between calls.

    Attributes:
      knobs: how.
      position: [R] of the token to draw.
      banned: [R, X] ids that may not be drawn now, -1 for none.
      tables: what changes the logits, of all slots of this device.
      masks: [S, V / WORD_BITS] uint32, what they may draw.
      slot: [R] the row's place in tables and masks.
    """

    knobs: Knobs
    position: Leaf
    banned: Leaf
    tables: Tables
    masks: Leaf
    slot: Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draws:
    """What was drawn for R rows; log-probabilities are those of the raw logits.

    Attributes:
      token: [R].
      logprob: [R] float32.
      rank: [R], 1 for the likeliest; 0 where not wanted.
      top_tokens: [R, MAX_LOGPROBS]; zeros where not wanted.
      top_logprobs: [R, MAX_LOGPROBS] float32.
    """

    token: Leaf
    logprob: Leaf
    rank: Leaf
    top_tokens: Leaf
    top_logprobs: Leaf


def sample(logits: jax.Array, rows: Rows) -> Draws:
    """Draws one token for each row of logits [R, V] float32."""
    knobs = rows.knobs
    allowed = change_logits(logits, rows)
    likeliest = _argmax(allowed)
    random = knobs.temperature > 0
    drawn = lax.cond(
        random.any(),
        lambda: draw(filter_logits(allowed, knobs), knobs.key, rows.position),
        lambda: likeliest,
    )
    token = jnp.where(random, drawn, likeliest)
    return describe(logits, token, knobs.logprobs)


def change_logits(logits: jax.Array, rows: Rows) -> jax.Array:
    """Logits [R, V] with biases, penalties and masks, in vLLM's order.

    Where bad words and bans would leave nothing to draw, they give way to the mask: what must
    come, such as the end of a constraint, comes.
    """
    knobs, tables, slot = rows.knobs, rows.tables, rows.slot
    penalised = knobs.penalised
    ids = (rows.banned >= 0).sum(-1)
    barred = (ids > 0) | (knobs.bad_tokens > 0)

    def bar(x):
        some = ban_ids(ban_words(x, tables, slot, knobs.bad_tokens), rows.banned, ids)
        return jnp.where((some.max(-1) > -jnp.inf)[:, None], some, x)

    def change(x):
        x = _when((knobs.biases > 0).any(), lambda x: add_biases(x, tables, slot, knobs.biases), x)
        penalties = knobs.repetition, knobs.presence, knobs.frequency
        x = _when(penalised.any(), lambda x: penalise(x, tables, slot, *penalties), x)
        x = _when(knobs.masked.any(), lambda x: keep_allowed(x, rows.masks, slot, knobs.masked), x)
        return _when(barred.any(), bar, x)

    changed = (knobs.biases > 0) | penalised | knobs.masked | barred
    return _when(changed.any(), change, logits)


def filter_logits(logits: jax.Array, knobs: Knobs) -> jax.Array:
    """Logits over temperature, -inf for tokens outside of min-p, then top-k, then top-p."""
    temperature = jnp.where(knobs.temperature > 0, knobs.temperature, 1.0)
    scaled = logits / temperature[:, None]
    scaled = _when((knobs.min_p > 0).any(), lambda x: keep_min_p(x, knobs.min_p), scaled)
    top_k = jnp.where(knobs.top_k > 0, knobs.top_k, logits.shape[-1])
    scaled = _when((top_k < logits.shape[-1]).any(), lambda x: keep_top_k(x, top_k), scaled)
    return _when((knobs.top_p < 1).any(), lambda x: keep_top_p(x, knobs.top_p), scaled)


def keep_min_p(logits: jax.Array, min_p: jax.Array) -> jax.Array:
    """[R, V] with -inf for tokens that are less than min_p [R] times as likely as the likeliest."""
    share = jnp.exp(logits - logits.max(-1, keepdims=True))
    return jnp.where(share >= min_p[:, None], logits, -jnp.inf)


def keep_top_k(logits: jax.Array, top_k: jax.Array) -> jax.Array:
    """[R, V] with all but the top_k [R] largest of each row at -inf; ties of the last stay."""
    order = _sortable(logits)

    def enough(threshold):
        return (order >= threshold[:, None]).sum(-1) >= top_k

    return jnp.where(order >= _largest_that(enough, len(logits))[:, None], logits, -jnp.inf)


def keep_top_p(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """[R, V] with the tail of each row at -inf: the least likely, while less than 1 - top_p.

    A token stays if the probability of all tokens up to and with it, the least likely first,
    reaches 1 - top_p; ties of the last stay. That is the release's nucleus.
    """
    order = _sortable(logits)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    spare = (1 - top_p) * weights.sum(-1)

    def below(threshold):
        return jnp.where(order < threshold[:, None], weights, 0.0).sum(-1) < spare

    return jnp.where(order >= _largest_that(below, len(logits))[:, None], logits, -jnp.inf)


def draw(logits: jax.Array, key: jax.Array, position: jax.Array) -> jax.Array:
    """[R] token ids with probability softmax(logits [R, V]): the inverse of the running sum.

    Two levels, a random word each, so that float32 resolves each token of a large vocabulary.
    """
    weights = _blocks(jnp.exp(logits - logits.max(-1, keepdims=True)), 0.0)
    words = jax.vmap(threefry_2x32)(key, jnp.stack([position, position * 0], -1).astype(jnp.uint32))
    block = _inverse(weights.sum(-1), words[:, 0])
    weights = jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0]
    return block * _BLOCK + _inverse(weights, words[:, 1])


def describe(logits: jax.Array, token: jax.Array, wanted: jax.Array) -> Draws:
    """Log-probability, rank and likeliest alternatives of each row's token."""
    norm = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    rank = lax.cond(
        (wanted >= 0).any(),
        lambda: (logits >= chosen[:, None]).sum(-1, dtype=jnp.int32),
        lambda: jnp.zeros_like(token),
    )
    width = min(MAX_LOGPROBS, logits.shape[-1])
    values, tokens = lax.cond(
        (wanted > 0).any(),
        lambda: tuple(lax.top_k(logits, width)),
        lambda: (jnp.zeros((len(token), width)), jnp.zeros((len(token), width), jnp.int32)),
    )
    return Draws(token, chosen - norm, rank, tokens, values - norm[:, None])


def _inverse(weights: jax.Array, word: jax.Array) -> jax.Array:
    """[R] first index at which the running sum of weights [R, X] exceeds a uniform part of it."""
    running = jnp.cumsum(weights, axis=-1)
    uniform = (word >> 8).astype(jnp.float32) * jnp.float32(2**-24)
    # The sum is made in parallel, so rounding may let it creep up where a weight is zero.
    beyond = (running > (uniform * running[:, -1])[:, None]) & (weights > 0)
    index = jnp.where(beyond.any(-1), beyond.argmax(-1), weights.argmax(-1))
    return index.astype(jnp.int32)


def _argmax(x: jax.Array) -> jax.Array:
    """[R] first index of the largest of x [R, X].

    Two levels: on a CPU only plain maxima are fast, some 70 times at V = 131072.
    """
    blocks = _blocks(x, -jnp.inf)
    block = jnp.argmax(blocks.max(-1), axis=-1)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return (block * _BLOCK + jnp.argmax(inside, axis=-1)).astype(jnp.int32)


def _blocks(x: jax.Array, fill: float) -> jax.Array:
    """[R, X] -> [R, blocks, _BLOCK]."""
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[-1] % _BLOCK)), constant_values=fill)
    return padded.reshape(len(x), -1, _BLOCK)


def _sortable(x: jax.Array) -> jax.Array:
    """uint32 in the same order as float32 x."""
    bits = lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)  # one zero, not two
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign, ~bits, bits | sign)


def _largest_that(holds: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """[R] largest uint32 for which a monotone test [R] -> bool holds, bit by bit from the top."""

    def body(i, value):
        candidate = value | (jnp.uint32(1) << (_BITS - 1 - i).astype(jnp.uint32))
        return jnp.where(holds(candidate), candidate, value)

    return lax.fori_loop(0, _BITS, body, jnp.zeros(rows, jnp.uint32))


def _when(
    condition: jax.Array, function: Callable[[jax.Array], jax.Array], x: jax.Array
) -> jax.Array:
    """function(x) if the scalar condition holds, else x at no cost."""
    return lax.cond(condition, function, lambda x: x, x)
