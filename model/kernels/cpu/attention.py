"""The paged cache in the order in which the kernels read it."""

import jax
import jax.numpy as jnp
import numpy as np

from model.config import Grok1Config

MAX_HEAD = 128
"""Longest head whose sums the registers hold."""


def fits(config: Grok1Config, block_size: int | None) -> bool:
    """Whether the kernels take such pages and heads."""
    return config.key_size <= MAX_HEAD and (block_size is None or block_size % 2 == 0)


def store(
    heads: jax.Array,
    cosines: jax.Array,
    sines: jax.Array,
    page: jax.Array,
    offset: jax.Array,
    layer: jax.Array,
    keys: jax.Array,
    values: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rotates, and stores keys and values in place.

    Args:
      heads: [T, (H + 2 K) N] float32: queries, keys, values.
      cosines: [T, N / 2] of each position's phases.
      sines: the same.
      page: [T] where to store.
      offset: [T] row of the page.
      layer: scalar.
      keys: [L, P, K, C, N] bits of bfloat16, taken over; a page's insides have an own order.
      values: the same.

    Returns:
      Queries [T, H, N] bfloat16, keys, values.
    """
    _, _, kv_heads, _, size = keys.shape
    query_heads = heads.shape[1] // size - 2 * kv_heads
    results = (
        jax.ShapeDtypeStruct((len(heads), query_heads, size), jnp.bfloat16),
        jax.ShapeDtypeStruct(keys.shape, keys.dtype),
        jax.ShapeDtypeStruct(values.shape, values.dtype),
    )
    call = jax.ffi.ffi_call("grok1_store", results, input_output_aliases={6: 1, 7: 2})
    query, keys, values = call(heads, cosines, sines, page, offset, layer, keys, values)
    return query, keys, values


def attention(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    layer: jax.Array,
    rows: jax.Array,
    positions: jax.Array,
    pages: jax.Array,
    config: Grok1Config,
) -> jax.Array:
    """``attention.attention`` over a cache that ``store`` has written: [T, H * N] bfloat16."""
    tokens, heads, size = query.shape
    result = jax.ShapeDtypeStruct((tokens, heads * size), jnp.bfloat16)
    call = jax.ffi.ffi_call("grok1_attention", result)
    return call(
        query,
        keys,
        values,
        layer,
        rows,
        positions,
        pages,
        multiplier=np.float32(config.attn_output_multiplier),
        cap=np.float32(config.attn_logit_cap),
    )
