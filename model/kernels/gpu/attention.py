"""Attention over the paged cache on NVIDIA GPUs (Triton): a program for a tile of query rows.

A program walks the pages of its own sequence alone, in order, where the plain form gathers a page
of every sequence as often as the longest needs. Sums are those of the plain form, page by page.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from model.config import Grok1Config
from model.kernels.rows import AttentionRows
from model.paged_cache import PagedCache

TILES = (16, 64)
"""Query rows of a program: the smallest that suffices, else the largest."""


def supports(size: int, block_size: int) -> bool:
    """Whether heads of N and pages of C can be computed with."""
    return size in (64, 128) and block_size in (16, 32, 64, 128)


def attend(
    rows: AttentionRows, cache: PagedCache, layer: jax.Array, config: Grok1Config, interpret: bool
) -> jax.Array:
    """[B, K, R, N] float32: each row's sum over what it may see of its sequence's pages."""
    batch, heads, count, _ = rows.query.shape
    tile = min(count, TILES[-1])
    scaled = cache.key_scales is not None
    scales = (cache.key_scales, cache.value_scales) if scaled else ()
    return pl.pallas_call(
        functools.partial(_kernel, config=config, tile=tile),
        grid=(count // tile, heads, batch),
        out_shape=jax.ShapeDtypeStruct(rows.query.shape, jnp.float32),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
    )(
        jnp.asarray(layer, jnp.int32).reshape(1),
        rows.needed,
        rows.pages,
        rows.positions,
        rows.query,
        cache.keys,
        cache.values,
        *scales,
    )


def _kernel(layers, needed, pages, positions, query, keys, values, *refs, config, tile):
    *scales, out = refs
    row, head, block = pl.ds(pl.program_id(0) * tile, tile), pl.program_id(1), pl.program_id(2)
    layer, size, block_size = layers[0], query.shape[-1], keys.shape[3]
    asks = query[block, head, row, :]
    position = positions[block, row]

    def add(i, state):
        mixed, norm = state
        page = pages[block, i]
        logits = jnp.dot(
            asks,
            keys[layer, page, head, :, :].astype(asks.dtype).T,
            preferred_element_type=jnp.float32,
        )
        if scales:
            logits = logits * scales[0][layer, page, head, :][None, :]
        logits = logits * config.attn_output_multiplier
        logits = config.attn_logit_cap * jnp.tanh(logits / config.attn_logit_cap)
        seen = (i * block_size + jnp.arange(block_size))[None, :] <= position[:, None]
        share = jnp.where(seen, jnp.exp(logits), 0.0)
        norm = norm + share.astype(asks.dtype).astype(jnp.float32).sum(-1)
        if scales:
            share = share * scales[1][layer, page, head, :][None, :]
        mixed = mixed + jnp.dot(
            share.astype(asks.dtype),
            values[layer, page, head, :, :].astype(asks.dtype),
            preferred_element_type=jnp.float32,
        )
        return mixed, norm

    zeros = jnp.zeros((tile, size), jnp.float32), jnp.zeros(tile, jnp.float32)
    mixed, norm = lax.fori_loop(0, needed[block], add, zeros)
    out[block, head, row, :] = mixed / jnp.where(norm > 0, norm, 1.0)[:, None]
