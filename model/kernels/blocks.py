"""(Token, expert) pairs in blocks of one expert each, for kernels that multiply block by block."""

import dataclasses

import jax
import jax.numpy as jnp

from model.trees import Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """Pairs sorted by expert, each expert's padded to whole blocks of R rows.

    Attributes:
      expert: [X] int32, whose each block is; X suffices for any routing.
      used: scalar int32, how many blocks hold a pair.
      token: [X * R] int32, the token of each row, T for a row that pads.
      row: [T, chosen] int32, where each pair stands; those of tokens not live stand anywhere.
    """

    expert: Leaf
    used: Leaf
    token: Leaf
    row: Leaf


def group_by_expert(chosen: jax.Array, live: jax.Array, experts: int, rows: int) -> Blocks:
    """Lays out the pairs of [T, chosen] experts; ``live`` [T] says which tokens count."""
    tokens, each = chosen.shape
    pairs = tokens * each
    most = pairs // rows + min(experts, pairs)
    expert = jnp.where(live[:, None], chosen, experts).reshape(pairs)
    order = jnp.argsort(expert, stable=True).astype(jnp.int32)
    counts = (expert[:, None] == jnp.arange(experts)).sum(0, dtype=jnp.int32)
    starts = jnp.cumsum(counts) - counts
    blocks = (counts + rows - 1) // rows
    block_ends = jnp.cumsum(blocks)
    # Where the sorted pairs of an expert begin, in rows of blocks; of no expert: past the end.
    first = jnp.append((block_ends - blocks) * rows, most * rows)
    rank = jnp.arange(pairs) - jnp.append(starts, counts.sum())[expert[order]]
    row = first[expert[order]] + rank
    token = jnp.full(most * rows, tokens, jnp.int32)
    token = token.at[row].set(order // each, mode="drop")
    place = jnp.zeros(pairs, jnp.int32).at[order].set(jnp.minimum(row, most * rows - 1))
    # Blocks past the last used are said to be its expert's, so that nothing is fetched for them.
    used = block_ends[-1]
    block = jnp.minimum(jnp.arange(most), jnp.maximum(used - 1, 0))
    return Blocks(
        expert=jnp.minimum(jnp.searchsorted(block_ends, block, side="right"), experts - 1).astype(
            jnp.int32
        ),
        used=used.astype(jnp.int32),
        token=token,
        row=place.reshape(tokens, each).astype(jnp.int32),
    )
