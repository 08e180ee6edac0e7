"""What the model thinks of given tokens, with no row of logits ever whole.

The vocabulary comes in blocks, always in the same order, and of each block only maxima, sums and
what was asked for stay. Under tensor parallelism each device goes through its own part, and the
parts meet in rank order. So memory never holds [rows, V], and a row's bits are its own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from model.transformer import Head, Network, head, slice_head
from model.trees import Leaf
from schemas.sampling import MAX_LOGPROBS

BLOCK = 2048
"""Tokens of the vocabulary at once: at 256 rows 2 MiB of logits."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Asks:
    """A questions about token rows; several may be about one row.

    Attributes:
      rows: [A] the token row whose next token is judged.
      targets: [A] that token.
      wanted: [A] how many top log-probabilities; 0 for the rank alone, -1 for neither.
      tiles: scalar, how many tiles of questions are in use; the others are skipped.
    """

    rows: Leaf
    targets: Leaf
    wanted: Leaf
    tiles: Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scores:
    """The answers to R questions, of the raw logits.

    Attributes:
      token: [R] the target.
      logprob: [R] float32, its log-probability.
      likeliest: [R] the token that greedy decoding would take.
      rank: [R] tokens at least as likely as the target, itself included; 0 where not wanted.
      top_tokens: [R, min(MAX_LOGPROBS, V)], likeliest first; zeros where not wanted.
      top_logprobs: the same shape, float32.
    """

    token: Leaf
    logprob: Leaf
    likeliest: Leaf
    rank: Leaf
    top_tokens: Leaf
    top_logprobs: Leaf


def judge(net: Network, table: Head, x: jax.Array, targets: jax.Array, wanted: jax.Array) -> Scores:
    """Scores R targets.

    Args:
      net: what is fixed.
      table: [v, D], this device's part of the output embedding.
      x: [R, D] what the head reads, all rows on every device.
      targets: [R] token ids.
      wanted: [R], see ``Asks``.

    Returns:
      The same on every device.
    """
    exchange = net.collectives
    first = exchange.rank() * len(table)
    alternatives = (wanted > 0).any()
    width = min(MAX_LOGPROBS, net.config.vocab_size)

    def add(logits: jax.Array, tokens: jax.Array, state: Any) -> Any:
        top, total, likeliest, chosen, values, ids = state
        highest = logits.max(-1)
        likeliest = jnp.where(highest > top, tokens[logits.argmax(-1)], likeliest)
        new_top = jnp.maximum(top, highest)
        total = total * jnp.exp(top - new_top) + jnp.exp(logits - new_top[:, None]).sum(-1)
        hit = jnp.where(tokens == targets[:, None], logits, -jnp.inf)
        values, ids = lax.cond(
            alternatives,
            lambda: _likeliest(
                jnp.concatenate([values, logits], 1),
                jnp.concatenate([ids, jnp.broadcast_to(tokens, logits.shape)], 1),
                width,
            ),
            lambda: (values, ids),
        )
        return new_top, total, likeliest, jnp.maximum(chosen, hit.max(-1)), values, ids

    count = len(x)
    lowest = jnp.full(count, -jnp.inf)
    start = (
        lowest,
        jnp.zeros(count),
        jnp.zeros(count, jnp.int32),
        lowest,
        jnp.full((count, width), -jnp.inf),
        jnp.zeros((count, width), jnp.int32),
    )
    state = _each_block(net, table, x, first, add, start)
    tops, totals, bests, chosens, values, ids = exchange.gather_ranks_tree(state)
    top, chosen = tops.max(0), chosens.max(0)
    likeliest = jnp.take_along_axis(bests, tops.argmax(0)[None], axis=0)[0]
    total = jnp.zeros(count)
    for rank in range(exchange.size):
        total = total + totals[rank] * jnp.exp(tops[rank] - top)
    norm = top + jnp.log(total)

    def count_above(logits: jax.Array, tokens: jax.Array, above: jax.Array) -> jax.Array:
        # The target counts by its id: this loop may be compiled to round otherwise than the first.
        within = (logits >= chosen[:, None]) | (tokens == targets[:, None])
        return above + (within & (logits > -jnp.inf)).sum(-1, dtype=jnp.int32)

    none = jnp.zeros(count, jnp.int32)
    above = lax.cond(
        (wanted >= 0).any(),
        lambda: _each_block(net, table, x, first, count_above, none),
        lambda: none,
    )
    values, ids = (jnp.moveaxis(a, 0, 1).reshape(count, -1) for a in (values, ids))
    values, ids = _likeliest(values, ids, width)
    return Scores(
        token=targets,
        logprob=chosen - norm,
        likeliest=likeliest,
        rank=exchange.gather_ranks_tree(above).sum(0),
        top_tokens=ids,
        top_logprobs=jnp.where(alternatives, values - norm[:, None], 0.0),
    )


def _each_block(
    net: Network, table: Head, x: jax.Array, first: jax.Array, add: Callable, state: Any
) -> Any:
    """Folds ``add(logits [R, W], tokens [W], state)`` over this device's part of the vocabulary.

    The last block begins early enough to be whole; what it has in common with the one before is
    -inf in it.
    """
    size = min(BLOCK, len(table))

    def body(i: jax.Array, state: Any) -> Any:
        start = jnp.minimum(i * size, len(table) - size)
        at = start + jnp.arange(size, dtype=jnp.int32)
        # On a CPU a slice of bfloat16 is one of float32 in truth. The barrier keeps that in here,
        # where it makes a block of float32; else a copy of the whole table would precede the loop.
        part, start = lax.optimization_barrier((table, start))
        logits = head(net, x, slice_head(part, start, size))
        return add(jnp.where(at >= i * size, logits, -jnp.inf), first + at, state)

    return lax.fori_loop(0, -(-len(table) // size), body, state)


def _likeliest(values: jax.Array, ids: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """The ``width`` largest of each row's values with their ids, the first of equal ones first."""
    values, at = lax.top_k(values, width)
    return values, jnp.take_along_axis(ids, at, axis=1)
