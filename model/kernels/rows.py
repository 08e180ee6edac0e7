"""Queries of attention as the rows that kernels work on."""

import dataclasses

import jax
import jax.numpy as jnp

from model.trees import Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionRows:
    """R rows for each of B blocks and K heads: the queries that share a KV head.

    Attributes:
      query: [B, K, R, N].
      positions: [B, R] position of each row in its sequence, -1 for none.
      pages: [B, P] the sequence's pages in order.
      needed: [B] int32, how many of them any row may see.
    """

    query: Leaf
    positions: Leaf
    pages: Leaf
    needed: Leaf


def to_rows(
    query: jax.Array,
    positions: jax.Array,
    pages: jax.Array,
    block_size: int,
    tiles: tuple[int, ...],
) -> AttentionRows:
    """Blocks of queries [B, Q, K, G, N] at positions [B, Q] as rows, filled up to whole tiles.

    ``tiles`` are the sizes that a kernel knows: rows are filled up to the smallest that holds them
    all, or to a multiple of the largest.
    """
    batch, count, heads, group, size = query.shape
    rows = query.transpose(0, 2, 1, 3, 4).reshape(batch, heads, count * group, size)
    positions = jnp.repeat(positions, group, axis=1)
    tile = next((t for t in tiles if t >= count * group), tiles[-1])
    spare = -(count * group) % tile
    return AttentionRows(
        query=jnp.pad(rows, ((0, 0), (0, 0), (0, spare), (0, 0))),
        positions=jnp.pad(positions, ((0, 0), (0, spare)), constant_values=-1).astype(jnp.int32),
        pages=pages.astype(jnp.int32),
        needed=(positions.max(1) // block_size + 1).astype(jnp.int32),
    )


def from_rows(rows: jax.Array, queries: int, group: int) -> jax.Array:
    """[B, K, R, N] back to [B, Q, K, G, N]."""
    batch, heads, _, size = rows.shape
    used = rows[:, :, : queries * group].reshape(batch, heads, queries, group, size)
    return used.transpose(0, 2, 1, 3, 4)
