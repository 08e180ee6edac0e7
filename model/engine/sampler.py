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

from model.trees import Leaf
from schemas.sampling import MAX_LOGPROBS

_BLOCK = 512
"""Tokens of a block in the two-level draw: one word picks the block, one the token in it."""

_BITS = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Knobs:
    """How R rows are sampled.

    Attributes:
      key: [R, 2] uint32 of the sample.
      position: [R] of the token to draw.
      temperature: [R]; 0 is greedy.
      top_k: [R]; 0 keeps all.
      top_p: [R] in (0, 1].
      banned: [R, W] token ids that may not be drawn now, -1 for none.
      logprobs: [R] how many top log-probabilities are wanted; -1 for none, not even the rank.
    """

    key: Leaf
    position: Leaf
    temperature: Leaf
    top_k: Leaf
    top_p: Leaf
    banned: Leaf
    logprobs: Leaf


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


def sample(logits: jax.Array, knobs: Knobs) -> Draws:
    """Draws one token for each row of logits [R, V] float32."""
    allowed = _when(
        (knobs.banned >= 0).any(),
        lambda x: x.at[jnp.arange(len(x))[:, None], _or_past(knobs.banned, x)].set(
            -jnp.inf, mode="drop"
        ),
        logits,
    )
    likeliest = jnp.argmax(allowed, axis=-1).astype(jnp.int32)
    random = knobs.temperature > 0
    drawn = lax.cond(
        random.any(),
        lambda: draw(filter_logits(allowed, knobs), knobs.key, knobs.position),
        lambda: likeliest,
    )
    token = jnp.where(random, drawn, likeliest)
    return describe(logits, token, knobs.logprobs)


def filter_logits(logits: jax.Array, knobs: Knobs) -> jax.Array:
    """Logits over temperature, -inf for tokens outside of top-k and then top-p."""
    temperature = jnp.where(knobs.temperature > 0, knobs.temperature, 1.0)
    scaled = logits / temperature[:, None]
    top_k = jnp.where(knobs.top_k > 0, knobs.top_k, logits.shape[-1])
    scaled = _when((top_k < logits.shape[-1]).any(), lambda x: keep_top_k(x, top_k), scaled)
    return _when((knobs.top_p < 1).any(), lambda x: keep_top_p(x, knobs.top_p), scaled)


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
    rows, vocabulary = logits.shape
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    weights = jnp.pad(weights, ((0, 0), (0, -vocabulary % _BLOCK))).reshape(rows, -1, _BLOCK)
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
    return jnp.argmax(running > (uniform * running[:, -1])[:, None], axis=-1).astype(jnp.int32)


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


def _or_past(tokens: jax.Array, logits: jax.Array) -> jax.Array:
    """Token ids with negative ones moved past the vocabulary, where a scatter drops them."""
    return jnp.where(tokens < 0, logits.shape[-1], tokens)
