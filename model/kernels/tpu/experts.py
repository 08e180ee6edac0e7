"""Products of blocks of rows with the integer weights of their experts, on TPUs (Mosaic).

The grid walks column strips, and for each strip the blocks: while blocks of one expert follow each
other its strip stays in fast memory, so weights are read once. Integers become bfloat16 there.
8-bit ones are scaled after the sum over a scale group; 4-bit ones before it, which is exact, since
a scale has no more bits than that needs.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from model.kernels.blocks import Blocks
from model.quantization import QuantizedTensor

_LANES = 128
_STRIP_NUMBERS = 2 << 20
"""Of a weight in fast memory at a time; it is there twice, and once as bfloat16."""

_VMEM_BYTES = 64 << 20


def supports(rows: int, weight: QuantizedTensor) -> bool:
    """Whether blocks of so many rows can be multiplied with a stack [L, E, in, out]."""
    depth, columns = weight.values.shape[-2:]
    group = depth // weight.groups
    if weight.values.dtype == jnp.int8:
        fits = group % _LANES == 0
    else:
        fits = weight.values.dtype == jnp.int4 and group % 64 == 0
    return fits and rows % 16 == 0 and columns % _LANES == 0


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
      interpret: for a machine without a TPU.
    """
    rows = len(x) // len(blocks.expert)
    depth, columns = weights[0].values.shape[-2:]
    groups = weights[0].groups
    strip = _LANES
    while columns % (2 * strip) == 0 and 2 * strip * depth <= _STRIP_NUMBERS:
        strip *= 2

    def rows_of(column, block, layer, used, expert):
        return jnp.minimum(block, jnp.maximum(used[0] - 1, 0))

    def strip_of(column, block, layer, used, expert):
        return layer[0], expert[block], 0, column

    return pl.pallas_call(
        functools.partial(_kernel, finish=finish, count=len(weights)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(columns // strip, len(blocks.expert)),
            in_specs=[
                pl.BlockSpec((rows, depth), lambda *at: (rows_of(*at), 0)),
                *[pl.BlockSpec((None, None, depth, strip), strip_of)] * len(weights),
                *[pl.BlockSpec((None, None, groups, strip), strip_of)] * len(weights),
            ],
            out_specs=pl.BlockSpec((rows, strip), lambda *at: (rows_of(*at), at[0])),
        ),
        out_shape=jax.ShapeDtypeStruct((len(x), columns), dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_VMEM_BYTES
        ),
        interpret=interpret,
    )(
        layer.astype(jnp.int32).reshape(1),
        blocks.used.reshape(1),
        blocks.expert,
        x,
        *[w.values for w in weights],
        *[w.scales for w in weights],
    )


def _kernel(layer, used, expert, x, *refs, finish, count):
    values, scales, out = refs[:count], refs[count : 2 * count], refs[-1]
    product = _scaled_before if values[0].dtype == jnp.int4 else _scaled_after

    @pl.when(pl.program_id(1) < used[0])
    def _():
        totals = [product(x, v, s) for v, s in zip(values, scales, strict=True)]
        out[...] = finish(*totals).astype(out.dtype)


def _scaled_after(x, values, scales):
    groups = scales.shape[0]
    depth = values.shape[0] // groups
    total = jnp.float32(0)
    for g in range(groups):
        part = pl.ds(g * depth, depth)
        product = _dot(x[:, part], values[part, :].astype(x.dtype))
        total = total + product * scales[g : g + 1, :]
    return total


def _scaled_before(x, values, scales):
    depth, columns = values.shape
    groups = scales.shape[0]
    numbers = values[...].astype(x.dtype).reshape(groups, depth // groups, columns)
    return _dot(x[...], (numbers * scales[...][:, None, :]).reshape(depth, columns))


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.dot(x, y, preferred_element_type=jnp.float32)
