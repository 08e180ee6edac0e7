"""Products of blocks of rows with the integer weights of their experts, on NVIDIA GPUs (Triton).

A program computes R rows and ``_COLUMNS`` columns. Programs of one column strip follow each other
block by block, so an expert's weights come from memory once and from the cache for its other
blocks. Integers become bfloat16 in registers. 8-bit ones are scaled after the sum over a scale
group; 4-bit ones before it, which is exact, since a scale has no more bits than that needs.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from model.kernels.blocks import Blocks
from model.quantization import QuantizedTensor

_COLUMNS, _DEPTH = 128, 64
"""Columns of a program, and how much of the contracted axis it multiplies at a time."""


def supports(rows: int, weight: QuantizedTensor) -> bool:
    """Whether blocks of so many rows can be multiplied with a stack [L, E, in, out]."""
    depth, columns = weight.values.shape[-2:]
    group = depth // weight.groups
    if weight.values.dtype == jnp.int8:
        fits = group % _DEPTH == 0
    else:
        fits = weight.values.dtype == jnp.int4 and group % 16 == 0 and group <= 128
    return fits and rows % 16 == 0 and columns % _COLUMNS == 0


def multiply(
    x: jax.Array,
    weights: tuple[QuantizedTensor, ...],
    layer: jax.Array,
    blocks: Blocks,
    finish: Callable[..., jax.Array],
    dtype: jnp.dtype,
    interpret: bool,
) -> jax.Array:
    """``finish`` of x's products with each weight: [X * R, in] -> [X * R, out].

    Args:
      x: rows in blocks.
      weights: stacks [L, E, in, out] of one shape.
      layer: scalar, which of the stacks' layers.
      blocks: whose expert each block is; rows of blocks that are not used are undefined.
      finish: takes float32 products.
      dtype: of the result.
      interpret: for a machine without a GPU.
    """
    rows = len(x) // len(blocks.expert)
    columns = weights[0].values.shape[-1]
    packed = weights[0].values.dtype == jnp.int4
    halves = 2 if packed else 1
    strip = _COLUMNS // halves
    out = pl.pallas_call(
        functools.partial(
            _int4_kernel if packed else _int8_kernel,
            rows=rows,
            strip=strip,
            finish=finish,
            count=len(weights),
        ),
        grid=(len(blocks.expert), columns // _COLUMNS),
        out_shape=jax.ShapeDtypeStruct((halves, len(x), columns // halves), dtype),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=4),
        interpret=interpret,
    )(
        jnp.stack([layer.astype(jnp.int32), blocks.used]),
        blocks.expert,
        x,
        *[_bytes(w.values) if packed else w.values for w in weights],
        *[_pairs(w.scales) if packed else w.scales for w in weights],
    )
    return out[0] if halves == 1 else jnp.stack([*out], axis=-1).reshape(len(x), columns)


def _int8_kernel(scalars, experts, x, *refs, rows, strip, finish, count):
    values, scales, out = refs[:count], refs[count : 2 * count], refs[-1]
    block, column = pl.program_id(0), pl.ds(pl.program_id(1) * strip, strip)
    mine = pl.ds(block * rows, rows)
    groups, steps = scales[0].shape[2], values[0].shape[2] // scales[0].shape[2] // _DEPTH
    zeros = (jnp.zeros((rows, strip), jnp.float32),) * count

    @pl.when(block < scalars[1])
    def _():
        layer, expert = scalars[0], experts[block]

        def group(g, totals):
            def step(k, sums):
                part = pl.ds((g * steps + k) * _DEPTH, _DEPTH)
                left = x[mine, part]
                return tuple(
                    total + _dot(left, v[layer, expert, part, column].astype(left.dtype))
                    for total, v in zip(sums, values, strict=True)
                )

            sums = lax.fori_loop(0, steps, step, zeros)
            return tuple(
                total + part * s[layer, expert, g, column][None, :]
                for total, part, s in zip(totals, sums, scales, strict=True)
            )

        totals = lax.fori_loop(0, groups, group, zeros)
        out[0, mine, column] = finish(*totals).astype(out.dtype)


def _int4_kernel(scalars, experts, x, *refs, rows, strip, finish, count):
    values, scales, out = refs[:count], refs[count : 2 * count], refs[-1]
    block, column = pl.program_id(0), pl.ds(pl.program_id(1) * strip, strip)
    mine = pl.ds(block * rows, rows)
    groups = scales[0].shape[2]
    depth = values[0].shape[2] // groups
    zeros = ((jnp.zeros((rows, strip), jnp.float32),) * 2,) * count

    @pl.when(block < scalars[1])
    def _():
        layer, expert = scalars[0], experts[block]

        def group(g, totals):
            part = pl.ds(g * depth, depth)
            left = x[mine, part]

            def add(total, v, s):
                pair = v[layer, expert, part, column]
                factors = s[layer, expert, g, column, 0], s[layer, expert, g, column, 1]
                even, odd = (half.astype(left.dtype) for half in ((pair << 4) >> 4, pair >> 4))
                return (
                    total[0] + _dot(left, even * factors[0].astype(left.dtype)[None, :]),
                    total[1] + _dot(left, odd * factors[1].astype(left.dtype)[None, :]),
                )

            return tuple(add(*of) for of in zip(totals, values, scales, strict=True))

        totals = lax.fori_loop(0, groups, group, zeros)
        for half in (0, 1):
            out[half, mine, column] = finish(*[t[half] for t in totals]).astype(out.dtype)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.dot(x, y, preferred_element_type=jnp.float32)


def _bytes(values: jax.Array) -> jax.Array:
    """int4 [..., out] as int8 [..., out / 2], the even columns in the low bits; moves nothing."""
    *lead, columns = values.shape
    return lax.bitcast_convert_type(values.reshape(*lead, columns // 2, 2), jnp.int8)


def _pairs(scales: jax.Array) -> jax.Array:
    """[..., out] as [..., out / 2, 2]."""
    return scales.reshape(*scales.shape[:-1], -1, 2)
