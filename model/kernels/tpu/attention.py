"""Attention over the paged cache on TPUs (Mosaic): pages are fetched while others are computed.

The grid walks blocks of queries. Each walks the pages of its own sequence alone, in order, some at
a time; the fetch of the next ones, of the next block's at the end, runs meanwhile. Sums are those
of the plain form, page by page.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from model.config import Grok1Config
from model.kernels.rows import AttentionRows
from model.paged_cache import PagedCache

TILES = (16, 128)
"""Query rows are filled up to the smallest that suffices, or to a multiple of the largest."""

_PAGES = 4
"""Fetched at once."""

_CORES = 2
"""That may share a device's blocks, each walking its own part of them."""

_VMEM_BYTES = 48 << 20


def supports(size: int, block_size: int) -> bool:
    """Whether heads of N and pages of C can be computed with."""
    return size == 128 and block_size % 128 == 0


def attend(
    rows: AttentionRows, cache: PagedCache, layer: jax.Array, config: Grok1Config, interpret: bool
) -> jax.Array:
    """[B, K, R, N] float32: each row's sum over what it may see of its sequence's pages."""
    batch, heads, count, size = rows.query.shape
    cores = _CORES if batch % _CORES == 0 else 1
    each = batch // cores
    stores = [
        s for s in (cache.keys, cache.values, cache.key_scales, cache.value_scales) if s is not None
    ]
    spare = -rows.pages.shape[1] % _PAGES

    def block_of(core, step, *_):
        return core * each + step, 0, 0, 0

    return pl.pallas_call(
        functools.partial(_kernel, config=config, each=each),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(cores, each),
            in_specs=[
                pl.BlockSpec((None, heads, count, size), block_of),
                pl.BlockSpec((None, count, 1), lambda *at: block_of(*at)[:3]),
                *[pl.BlockSpec(memory_space=pl.ANY)] * len(stores),
            ],
            out_specs=pl.BlockSpec((None, heads, count, size), block_of),
            scratch_shapes=[
                *[pltpu.VMEM((2, _PAGES, *s.shape[2:]), s.dtype) for s in stores],
                pltpu.SemaphoreType.DMA((2, len(stores), _PAGES)),
                pltpu.SMEM((1,), jnp.int32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(rows.query.shape, jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_VMEM_BYTES
        ),
        interpret=interpret,
    )(
        jnp.asarray(layer, jnp.int32).reshape(1),
        # At least one fetch a block, so that the walk has no holes; page 0 is in nobody's way.
        jnp.maximum((rows.needed + _PAGES - 1) // _PAGES, 1),
        jnp.pad(rows.pages, ((0, 0), (0, spare))),
        rows.query,
        rows.positions[..., None],
        *stores,
    )


def _kernel(layer, fetches, pages, query, positions, *refs, config, each):
    kinds = (len(refs) - 3) // 2
    stores, out, buffers = refs[:kinds], refs[kinds], refs[kinds + 1 : -2]
    done, turn = refs[-2:]
    heads, count, size = query.shape
    block_size = buffers[0].shape[3]
    first = pl.program_id(0) * each
    block = first + pl.program_id(1)

    def fetch(block, step, slot):
        return [
            pltpu.make_async_copy(
                store.at[layer[0], pages[block, step * _PAGES + i]],
                buffer.at[slot, i],
                done.at[slot, kind, i],
            )
            for kind, (store, buffer) in enumerate(zip(stores, buffers, strict=True))
            for i in range(_PAGES)
        ]

    def start(block, step, slot):
        for copy in fetch(block, step, slot):
            copy.start()

    @pl.when(pl.program_id(1) == 0)
    def _():
        turn[0] = 0
        start(block, 0, 0)

    def add(step, state):
        slot = turn[0]
        last = step + 1 == fetches[block]

        @pl.when(jnp.logical_not(last))
        def _():
            start(block, step + 1, 1 - slot)

        @pl.when(jnp.logical_and(last, block + 1 < first + each))
        def _():
            start(block + 1, 0, 1 - slot)

        for copy in fetch(block, step, slot):
            copy.wait()
        mixed, norm = list(state[0]), list(state[1])
        for i in range(_PAGES):
            start_of_page = (step * _PAGES + i) * block_size
            key_position = start_of_page + lax.broadcasted_iota(jnp.int32, (1, block_size), 1)
            seen = key_position <= positions[...]
            for head in range(heads):
                part = [buffer[slot, i, head] for buffer in buffers]
                weighted, total = _page(query[head], seen, part, config)
                mixed[head] = mixed[head] + weighted
                norm[head] = norm[head] + total
        turn[0] = 1 - slot
        return tuple(mixed), tuple(norm)

    zeros = (
        (jnp.zeros((count, size), jnp.float32),) * heads,
        (jnp.zeros((count, 1), jnp.float32),) * heads,
    )
    mixed, norm = lax.fori_loop(0, fetches[block], add, zeros)
    for head in range(heads):
        out[head] = mixed[head] / jnp.where(norm[head] > 0, norm[head], 1.0)


def _page(query, seen, part, config):
    """One head's sums over one page: [R, N] of weighted values, and [R, 1] of weights."""
    keys, values, *scales = part
    logits = lax.dot_general(
        query,
        keys.astype(query.dtype),
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    if scales:
        logits = logits * scales[0][None, :]
    logits = logits * config.attn_output_multiplier
    logits = config.attn_logit_cap * jnp.tanh(logits / config.attn_logit_cap)
    share = jnp.where(seen, jnp.exp(logits), 0.0)
    total = share.astype(query.dtype).astype(jnp.float32).sum(-1, keepdims=True)
    if scales:
        share = share * scales[1][None, :]
    weighted = jnp.dot(
        share.astype(query.dtype), values.astype(query.dtype), preferred_element_type=jnp.float32
    )
    return weighted, total
