"""Quantised weights, and the one product that takes them."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from model.numerics import Numerics
from model.trees import Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedTensor:
    """A weight as small integers and scales.

    Attributes:
      values: [..., in, out] integers: int4, int8, or held as bfloat16, which is exact.
      scales: [..., G, out] float32, beside int4 bfloat16; group g covers rows
        [g * in / G, (g + 1) * in / G).
    """

    values: Leaf
    scales: Leaf

    @property
    def groups(self) -> int:
        """G."""
        return self.scales.shape[-2]


Weight = jax.Array | QuantizedTensor


def dequantize(weight: QuantizedTensor) -> jax.Array:
    """[..., in, out] float32: each value times its group's scale, exactly."""
    *lead, rows, out = weight.values.shape
    groups = weight.groups
    values = weight.values.astype(jnp.float32).reshape(*lead, groups, rows // groups, out)
    return (values * weight.scales[..., None, :].astype(jnp.float32)).reshape(*lead, rows, out)


def matmul(x: jax.Array, weight: Weight, numerics: Numerics) -> jax.Array:
    """[..., R, in] times [..., in, out] -> [..., R, out] float32, summed in float32.

    In ``bf16`` mode integers enter the product as they are and scales come after it, one partial
    product a scale group: scaling the weight first would write a whole dequantised copy of it. In
    ``release`` mode int8 x scale is rounded to bfloat16 first, since the release does that.

    4-bit weights have a scale every few rows: a partial product for each would be many times the
    weight's size. But 4-bit integer x scale is exact in bfloat16 (``quantize_int4``), so they are
    scaled first, expert by expert: what is written of them is one expert's matrix at a time. A
    kernel that scales what it has read does better.
    """
    if not isinstance(weight, QuantizedTensor):
        return numerics.einsum("...rk,...ko->...ro", x, weight)
    if weight.values.dtype == jnp.int4 and weight.values.ndim == 3:
        return lax.map(lambda pair: matmul(pair[0], pair[1], numerics), (x, weight))
    if numerics.name != "bf16" or weight.values.dtype == jnp.int4:
        dense = numerics.round(dequantize(weight)).astype(numerics.operand)
        return numerics.einsum("...rk,...ko->...ro", x, dense)
    values = weight.values.astype(numerics.operand)
    if weight.groups == 1:
        return numerics.einsum("...rk,...ko->...ro", x, values) * weight.scales
    *lead, rows, out = values.shape
    split = (weight.groups, rows // weight.groups)
    x = x.reshape(*x.shape[:-1], *split)
    values = values.reshape(*lead, *split, out)
    partial = numerics.einsum("...rgk,...gko->...gro", x, values)
    return (partial * weight.scales[..., :, None, :]).sum(-3)
