"""The network: embedding, 64 layers of attention and experts, head. One forward for everything.

All but attention runs over flat token rows, in tiles of a fixed row count: a compiler may add in
another order for another shape, and a row's bits must not depend on how many others there are.
The CPU's kernels add in one order and need no tiles.
Axis letters are in config.py; T counts token rows here, R the rows of a tile.

Under tensor parallelism (inside ``shard_map``) each device holds its part of heads, expert width
and vocabulary. The residual stream is split by rows: a sublayer gathers its normed input, computes
a summand of every row, and each device gets the sums of its own rows back. That is one gather and
one exchange a sublayer, the bytes of an all-reduce, and norms are computed once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from model.attention import Queries, attention, phases, rotary
from model.config import Grok1Config
from model.hlo import LAYER
from model.kernels.accelerator import Kernels
from model.kernels.cpu import layer as kernels
from model.kernels.cpu import products
from model.kernels.cpu.products import PackedTensor
from model.moe import EXPERTS, Routing, mixture, route, router_logits
from model.numerics import Numerics
from model.paged_cache import PagedCache, Place
from model.quantization import matmul
from model.sharding import Collectives
from model.stack import OfStack
from model.trees import Leaf

Layer = dict[str, Any]
Params = dict[str, Any]
"""``embedding`` [V, D], the same as ``head`` in the precision of products, ``final_norm`` [D], and
``layers``: a tuple of ``Layer``, or one ``Layer`` whose arrays have a leading axis L and which a
loop walks through."""
Head = jax.Array | PackedTensor
"""The tied embedding as the output layer reads it, [v, D], or packed: [D, v]."""


@dataclasses.dataclass(frozen=True)
class Network:
    """What is fixed when a step is compiled.

    Attributes:
      config: the model's sizes.
      numerics: where it rounds.
      collectives: how devices exchange.
      tile_rows: R; the number of token rows is a multiple.
      expert_rows: rows that an expert computes at once.
      accelerator: kernels of a TPU or GPU; None for plain products everywhere.
    """

    config: Grok1Config
    numerics: Numerics
    collectives: Collectives
    tile_rows: int
    expert_rows: int
    accelerator: Kernels | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenRows:
    """T token rows of any sequences.

    Attributes:
      tokens: [T] ids.
      positions: [T] in their sequences.
      place: where their keys and values go; page 0 for rows that are not live.
      live: [T] bool; the others are computed and ignored.
      tiles: scalar, how many tiles hold live rows; the others are skipped.
    """

    tokens: Leaf
    positions: Leaf
    place: Place
    live: Leaf
    tiles: Leaf


def rms_norm(x: jax.Array, scale: jax.Array, config: Grok1Config) -> jax.Array:
    """x / rms(x) * scale over the last axis, in float32; the scale multiplies directly (no + 1)."""
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * lax.rsqrt(mean_square + config.rms_norm_eps) * scale


def forward(
    net: Network,
    params: Params,
    cache: PagedCache,
    rows: TokenRows,
    queries: Queries,
) -> tuple[jax.Array, PagedCache]:
    """Runs token rows through the network, writing their keys and values to the cache.

    Args:
      net: what is fixed.
      params: the weights, this device's part.
      cache: donate it: it is updated in place.
      rows: the tokens.
      queries: how they attend.

    Returns:
      Residual stream [T / devices, D] float32 after the last layer, split by rows tile by tile, and
      the cache.
    """
    hidden = tiled(net, rows, lambda tokens: embed(net, params, tokens), rows.tokens)

    def step(layer: Layer, index: jax.Array, state: Any) -> Any:
        hidden, cache = state
        return transformer_layer(net, layer, index, hidden, cache, rows, queries)

    return _each_layer(step, params["layers"], (hidden, cache))


@jax.named_scope(LAYER)
def transformer_layer(
    net: Network,
    layer: Layer,
    index: jax.Array,
    hidden: jax.Array,
    cache: PagedCache,
    rows: TokenRows,
    queries: Queries,
) -> tuple[jax.Array, PagedCache]:
    """One layer: attention, then experts, each normed before and after, added to the residual."""
    if cache.packed:
        return _layer_by_kernels(net, layer, index, hidden, cache, rows, queries)
    numerics, exchange, config = net.numerics, net.collectives, net.config

    def norm(x, name):
        return numerics.round(rms_norm(x, layer[name], config))

    def project(hidden, positions):
        x = exchange.gather_rows(norm(hidden, "attn_norm").astype(numerics.operand))
        weights = [layer[name] for name in ("query", "key", "value")]
        heads = [
            numerics.round(matmul(x, w, numerics)).reshape(len(x), -1, config.key_size)
            for w in weights
        ]
        query, key = (numerics.round(rotary(h, positions, config.rope_base)) for h in heads[:2])
        return tuple(h.astype(numerics.operand) for h in (query, key, heads[2]))

    def after_attention(hidden, mixed):
        summand = matmul(mixed.astype(numerics.operand), layer["attn_out"], numerics)
        output = numerics.round(exchange.sum_to_own_rows(summand))
        hidden = numerics.round(hidden + norm(output, "attn_post_norm"))
        x = norm(hidden, "moe_norm")
        logits = router_logits(x, layer["router"])
        x, logits = exchange.gather_rows_with(x.astype(numerics.operand), logits)
        routing = route(logits, config)
        return hidden, x, routing.experts, routing.gates

    def after_experts(hidden, summand):
        output = numerics.round(exchange.sum_to_own_rows(summand))
        return numerics.round(hidden + norm(output, "moe_post_norm"))

    query, key, value = tiled(net, rows, project, hidden, rows.positions)
    cache = cache.write(index, rows.place, key, value)
    mixed = attention(query, cache, index, queries, config, numerics, net.accelerator)
    hidden, x, experts, gates = tiled(net, rows, after_attention, hidden, mixed)
    routing = Routing(experts, gates)
    how = (net.expert_rows, numerics, net.accelerator)
    summand = mixture(x, routing, rows.live, layer, *how)
    hidden = tiled(net, rows, after_experts, hidden, summand)
    return hidden, cache


def _layer_by_kernels(
    net: Network,
    layer: Layer,
    index: jax.Array,
    hidden: jax.Array,
    cache: PagedCache,
    rows: TokenRows,
    queries: Queries,
) -> tuple[jax.Array, PagedCache]:
    """``transformer_layer`` where a CPU has kernels: on one device, in ``bf16`` mode."""
    config, used = net.config, rows.tiles * net.tile_rows
    at = (rows.place.page, rows.place.offset, index)
    where = (*phases(rows.positions, config.key_size, config.rope_base), *at)
    cached = (cache.keys, cache.values)
    query, keys, values = kernels.project(hidden, used, layer, *where, *cached, config)
    asked = (queries.rows, queries.positions, queries.pages)
    mixed = kernels.attention(query, keys, values, index, *asked, config)
    hidden, x, experts, gates = kernels.route(mixed, hidden, used, layer, config)
    hidden = kernels.experts(x, hidden, experts, gates, rows.live, layer, config)
    return hidden, PagedCache(keys, values, packed=True)


def embed(net: Network, params: Params, tokens: jax.Array) -> jax.Array:
    """Input embeddings of a tile: [R] ids -> [R / devices, D] float32, scaled."""
    table, exchange = params["embedding"], net.collectives
    local = tokens - exchange.rank() * len(table)
    mine = (local >= 0) & (local < len(table))
    vectors = jnp.where(mine[:, None], table[jnp.where(mine, local, 0)], 0)
    # One device has the row, the others add exact zeros.
    vectors = exchange.exact_sum_to_own_rows(vectors.astype(jnp.float32))
    scale = net.numerics.round(jnp.float32(net.config.embedding_multiplier_scale))
    return net.numerics.round(vectors * scale)


def final_hidden(net: Network, params: Params, hidden: jax.Array) -> jax.Array:
    """What the head reads, for a tile: residual [R / devices, D] -> normed [R, D]."""
    x = net.numerics.round(rms_norm(hidden, params["final_norm"], net.config))
    return net.collectives.gather_rows(x.astype(net.numerics.operand))


def head(net: Network, x: jax.Array, table: Head) -> jax.Array:
    """Logits [R, v] float32 over the v rows of the tied embedding that ``table`` holds."""
    numerics = net.numerics
    if isinstance(table, PackedTensor):
        logits = products.matmul(x, table)
    else:
        logits = numerics.round(numerics.einsum("rd,vd->rv", x, table))
    scale = numerics.round(jnp.float32(net.config.output_multiplier_scale))
    return numerics.round(logits * scale)


def slice_head(table: Head, start: jax.Array, count: int) -> Head:
    """Tokens [start, start + count) of a table; both multiples of 16 where it is packed."""
    if isinstance(table, PackedTensor):
        return table.columns(start, count)
    return lax.dynamic_slice_in_dim(table, start, count)


def tiled(net: Network, rows: TokenRows, function: Callable, *arrays: jax.Array) -> Any:
    """Applies a function of one tile's rows to all tiles in use; results as one array again.

    Args:
      net: gives R.
      rows: gives the number of tiles, and how many are in use; results of the others are zero.
      function: takes [R, ...] or, of arrays split by rows over devices, [R / devices, ...].
      arrays: [tiles * that, ...].
    """
    return in_tiles(len(rows.tokens) // net.tile_rows, rows.tiles, function, *arrays)


def in_tiles(tiles: int, used: jax.Array, function: Callable, *arrays: jax.Array) -> Any:
    """``tiled`` for rows of any kind: ``arrays`` in so many tiles, of which ``used`` are in use."""
    if tiles == 1:
        return function(*arrays)
    split = [array.reshape(tiles, -1, *array.shape[1:]) for array in arrays]
    shapes = jax.eval_shape(function, *(array[0] for array in split))
    results = jax.tree.map(lambda s: jnp.zeros((tiles, *s.shape), s.dtype), shapes)

    def body(i, results):
        tile = function(*(lax.dynamic_index_in_dim(a, i, keepdims=False) for a in split))
        return jax.tree.map(lambda r, t: lax.dynamic_update_index_in_dim(r, t, i, 0), results, tile)

    results = lax.fori_loop(0, used, body, results)
    return jax.tree.map(lambda r: r.reshape(-1, *r.shape[2:]), results)


def _each_layer(step: Callable, layers: Layer | tuple[Layer, ...], state: Any) -> Any:
    if isinstance(layers, tuple):
        for index, layer in enumerate(layers):
            state = step(layer, jnp.int32(index), state)
        return state

    def body(index, state):
        stacked = {name: OfStack(stack, index) for name, stack in layers.items()}
        # Experts' weights are read in loops of their own.
        layer = {n: w if n in EXPERTS else w.take() for n, w in stacked.items()}
        return step(layer, index, state)

    return lax.fori_loop(0, len(layers["attn_norm"]), body, state)
