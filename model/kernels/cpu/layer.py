"""One layer by the CPU's kernels: each stands for a stretch of ``transformer.transformer_layer``.

They work on the first ``used`` of T rows, and leave the others as they are, or undefined.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.config import Grok1Config

Layer = dict[str, Any]

MAX_HEAD = 128
"""Longest head whose sums the registers hold."""

_SPREAD = 32
"""Unused columns between workspace rows, which would else fall on the same lines of the cache."""


def fits(config: Grok1Config, block_size: int | None) -> bool:
    """Whether the kernels take such pages and heads."""
    return config.key_size <= MAX_HEAD and (block_size is None or block_size % 2 == 0)


def project(
    hidden: jax.Array,
    used: jax.Array,
    layer: Layer,
    cosines: jax.Array,
    sines: jax.Array,
    page: jax.Array,
    offset: jax.Array,
    index: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    config: Grok1Config,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Norms and projects the residual stream, rotates, and stores keys and values in place.

    Args:
      hidden: [T, D] float32.
      used: scalar, how many rows.
      layer: ``attn_norm``, ``query``, ``key`` and ``value``.
      cosines: [T, N / 2] of each position's phases.
      sines: the same.
      page: [T] where to store.
      offset: [T] row of the page.
      index: scalar, the layer of the cache.
      keys: [L, P, K, C, N] bits of bfloat16, taken over; a page's insides have an own order.
      values: the same.
      config: the model's sizes.

    Returns:
      Queries [T, H, N] bfloat16, keys, values.
    """
    tokens, width = hidden.shape
    size, query_heads = config.key_size, config.num_q_heads
    across = (query_heads + 2 * config.num_kv_heads) * size
    results = (
        jax.ShapeDtypeStruct((tokens, query_heads, size), jnp.bfloat16),
        jax.ShapeDtypeStruct(keys.shape, keys.dtype),
        jax.ShapeDtypeStruct(values.shape, values.dtype),
        jax.ShapeDtypeStruct((tokens, width + _SPREAD), jnp.bfloat16),
        jax.ShapeDtypeStruct((tokens, across), jnp.float32),
    )
    call = jax.ffi.ffi_call("grok1_project", results, input_output_aliases={8: 1, 9: 2})
    where = (cosines, sines, page, offset, index, keys, values)
    weights = jax.tree.leaves([layer[name] for name in ("query", "key", "value")])
    arrays = (hidden, used, layer["attn_norm"], *where, *weights)
    query, keys, values, *_ = call(*arrays, epsilon=np.float32(config.rms_norm_eps))
    return query, keys, values


def attention(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    index: jax.Array,
    rows: jax.Array,
    positions: jax.Array,
    pages: jax.Array,
    config: Grok1Config,
) -> jax.Array:
    """``attention.attention`` over a cache that ``project`` has written: [T, H * N] bfloat16."""
    tokens, heads, size = query.shape
    result = jax.ShapeDtypeStruct((tokens, heads * size), jnp.bfloat16)
    call = jax.ffi.ffi_call("grok1_attention", result)
    return call(
        query,
        keys,
        values,
        index,
        rows,
        positions,
        pages,
        multiplier=np.float32(config.attn_output_multiplier),
        cap=np.float32(config.attn_logit_cap),
    )


def route(
    mixed: jax.Array, hidden: jax.Array, used: jax.Array, layer: Layer, config: Grok1Config
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Adds attention's output to the residual stream, and chooses experts.

    Args:
      mixed: [T, H * N] bfloat16, what attention gave.
      hidden: [T, D] float32, taken over.
      used: scalar, how many rows.
      layer: ``attn_out``, ``attn_post_norm``, ``moe_norm`` and ``router``.
      config: the model's sizes.

    Returns:
      The residual stream, what experts read of it [T, D] bfloat16, which experts [T, chosen] int32
      and their gates [T, chosen] float32.
    """
    tokens, chosen = len(hidden), config.num_selected_experts
    results = (
        jax.ShapeDtypeStruct(hidden.shape, jnp.float32),
        jax.ShapeDtypeStruct(hidden.shape, jnp.bfloat16),
        jax.ShapeDtypeStruct((tokens, chosen), jnp.int32),
        jax.ShapeDtypeStruct((tokens, chosen), jnp.float32),
        jax.ShapeDtypeStruct(hidden.shape, jnp.float32),
    )
    call = jax.ffi.ffi_call("grok1_route", results, input_output_aliases={1: 0})
    weights = [layer[name] for name in ("attn_post_norm", "moe_norm", "router")]
    weights += jax.tree.leaves(layer["attn_out"])
    arrays = (mixed, hidden, used, *weights)
    hidden, x, experts, gates, _ = call(*arrays, epsilon=np.float32(config.rms_norm_eps))
    return hidden, x, experts, gates


def experts(
    x: jax.Array,
    hidden: jax.Array,
    chosen: jax.Array,
    gates: jax.Array,
    live: jax.Array,
    layer: Layer,
    config: Grok1Config,
) -> jax.Array:
    """The residual stream [T, D] (taken over) and the normed mixture; see ``moe.mixture``."""
    pairs = chosen.size
    results = (
        jax.ShapeDtypeStruct(hidden.shape, jnp.float32),
        jax.ShapeDtypeStruct((pairs, config.emb_size + _SPREAD), jnp.bfloat16),
        jax.ShapeDtypeStruct((pairs, config.ffn_size + _SPREAD), jnp.bfloat16),
        jax.ShapeDtypeStruct((pairs, config.emb_size), jnp.float32),
    )
    call = jax.ffi.ffi_call("grok1_experts", results, input_output_aliases={1: 0})
    weights = jax.tree.leaves([layer[name] for name in ("gate", "up", "down")])
    arrays = (x, hidden, chosen, gates, live, layer["moe_post_norm"], *weights)
    return call(*arrays, epsilon=np.float32(config.rms_norm_eps))[0]
