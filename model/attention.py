"""Grouped-query attention over a paged cache: rotary embedding, and the sum over pages.

One function serves prompts and decoding: queries come as blocks [B, Q] of one sequence each, with
Q = 1 when decoding and Q = C in a prompt. The cap of 30 bounds the logits, so exp needs no running
maximum; masked terms are exact zeros, so a longer loop over pages adds nothing to a short sequence
and leaves its bits alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from model.config import Grok1Config
from model.kernels.accelerator import Kernels
from model.numerics import Numerics
from model.paged_cache import Page, PagedCache
from model.trees import Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queries:
    """Which tokens ask, and what they may see.

    Attributes:
      rows: [B, Q] the token row of each query, T for none.
      inverse: [T] where in B * Q each row stands, B * Q for none.
      positions: [B, Q] position in the sequence, -1 for none.
      pages: [B, P] the sequence's pages in order.
      blocks: scalar, how many columns of ``pages`` any query needs.
    """

    rows: Leaf
    inverse: Leaf
    positions: Leaf
    pages: Leaf
    blocks: Leaf


def phases(positions: jax.Array, size: int, base: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [T, N / 2] by which the halves of a head of ``size`` N are rotated."""
    half = size // 2
    exponents = jnp.arange(half, dtype=jnp.float32) / half
    frequencies = 1.0 / jnp.float32(base) ** exponents
    phase = positions.astype(jnp.float32)[:, None] * frequencies
    return jnp.cos(phase), jnp.sin(phase)


def rotary(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    """Rotary embedding of x [T, heads, N] in float32; halves rotate, not pairs."""
    half = x.shape[-1] // 2
    cos, sin = (p[:, None] for p in phases(positions, x.shape[-1], base))
    low, high = x[..., :half], x[..., half:]
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def attention(
    query: jax.Array,
    cache: PagedCache,
    layer: jax.Array,
    queries: Queries,
    config: Grok1Config,
    numerics: Numerics,
    accelerator: Kernels | None = None,
) -> jax.Array:
    """Attends [T, H, N] queries to their sequences' cached keys and values -> [T, H * N] float32.

    Own keys and values must have been written before. Rows that ``queries`` leaves out are zero.
    ``accelerator`` has kernels that are used where they apply.
    """
    _, heads, size = query.shape
    kv_heads = cache.keys.shape[2]
    padded = jnp.concatenate([query, jnp.zeros((1, heads, size), query.dtype)])
    blocks = padded[queries.rows]
    blocks = blocks.reshape(*queries.rows.shape, kv_heads, heads // kv_heads, size)
    blocks = blocks.astype(numerics.operand)
    mixed = None
    if accelerator is not None:
        asked = (queries.positions, queries.pages)
        mixed = accelerator.attention(blocks, cache, layer, *asked, config)
    if mixed is None:
        mixed = _page_by_page(blocks, cache, layer, queries, config, numerics)
    mixed = numerics.round(mixed).reshape(-1, heads * size)
    return jnp.concatenate([mixed, jnp.zeros((1, heads * size))])[queries.inverse]


def _page_by_page(
    blocks: jax.Array,
    cache: PagedCache,
    layer: jax.Array,
    queries: Queries,
    config: Grok1Config,
    numerics: Numerics,
) -> jax.Array:
    """The plain form: [B, Q, K, G, N] queries, one page of all sequences after the other."""

    def weights(page: jax.Array, cached: Page) -> jax.Array:
        """[B, K, G, Q, C] exponentials of the capped logits; zero where a key may not be seen."""
        keys = cached.keys.astype(numerics.operand)
        logits = numerics.einsum("bqkgn,bkcn->bkgqc", blocks, keys)
        if cached.key_scales is not None:
            logits = logits * cached.key_scales[:, :, None, None, :]
        logits = numerics.round(logits) * config.attn_output_multiplier
        logits = config.attn_logit_cap * jnp.tanh(logits / config.attn_logit_cap)
        key_position = page * cache.block_size + jnp.arange(cache.block_size)
        seen = key_position <= queries.positions[:, None, None, :, None]
        return jnp.where(seen, jnp.exp(logits), 0.0)

    def total(page, so_far):
        return so_far + weights(page, cache.read(layer, queries.pages[:, page])).sum(-1)

    def add(page, so_far):
        mixed, norm = so_far
        cached = cache.read(layer, queries.pages[:, page])
        share = weights(page, cached)
        if numerics.rounds:  # the release rounds normalised weights, so their sum is known first
            share = share / norm[..., None]
        if not numerics.rounds:
            norm = norm + share.astype(numerics.operand).astype(jnp.float32).sum(-1)
        if cached.value_scales is not None:
            share = share * cached.value_scales[:, :, None, None, :]
        share, values = share.astype(numerics.operand), cached.values.astype(numerics.operand)
        mixed = mixed + numerics.einsum("bkgqc,bkcn->bkgqn", share, values)
        return mixed, norm

    batch, count, kv_heads, group, size = blocks.shape
    shape = (batch, kv_heads, group, count)
    norm = jnp.zeros(shape, jnp.float32)
    if numerics.rounds:
        norm = lax.fori_loop(0, queries.blocks, total, norm)
        norm = jnp.where(norm > 0, norm, 1.0)
    mixed = jnp.zeros((*shape, size), jnp.float32)
    mixed, norm = lax.fori_loop(0, queries.blocks, add, (mixed, norm))
    if not numerics.rounds:
        mixed = mixed / jnp.where(norm > 0, norm, 1.0)[..., None]
    return mixed.transpose(0, 3, 1, 2, 4)
