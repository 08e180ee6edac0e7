"""Products with weights that lie in the order in which the kernels read them."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from model.config import Grok1Config
from model.trees import Leaf

PANEL = 16
"""Columns of a panel: the float32 sums of one vector."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedTensor:
    """A weight [..., K, N] in panels of its columns.

    Attributes:
      values: [..., N / 16, K / 2, 16, 2] bfloat16, which small integers are exactly.
      scales: [..., G, N] float32; group g covers rows [g * K / G, (g + 1) * K / G).
    """

    values: Leaf
    scales: Leaf

    def __len__(self) -> int:
        """N."""
        return self.scales.shape[-1]

    def columns(self, start: jax.Array, count: int) -> "PackedTensor":
        """Columns [start, start + count), both multiples of 16, of a weight [K, N]."""
        values = jax.lax.dynamic_slice_in_dim(self.values, start // PANEL, count // PANEL)
        scales = jax.lax.dynamic_slice_in_dim(self.scales, start, count, axis=-1)
        return PackedTensor(values, scales)


def packable(config: Grok1Config) -> bool:
    """Whether a model's sizes are multiples of what the kernels take at once."""
    c = config
    outputs = (c.emb_size, c.num_q_heads * c.key_size, c.num_kv_heads * c.key_size, c.vocab_size)
    inputs = (c.ffn_size, c.num_q_heads * c.key_size)
    return (
        all(size % (2 * PANEL) == 0 for size in outputs)
        and c.ffn_size % PANEL == 0
        and all(size % (2 * c.model_shards) == 0 for size in inputs)
    )


@jax.jit
def pack(values: jax.Array, scales: jax.Array | None = None) -> PackedTensor:
    """Packs [..., K, N] values, with scales [..., G, N] or none."""
    *lead, rows, columns = values.shape
    at = len(lead)
    split = values.reshape(*lead, rows // 2, 2, columns // PANEL, PANEL)
    panels = jnp.transpose(split, (*range(at), at + 2, at, at + 3, at + 1))
    if scales is None:
        scales = jnp.ones((*lead, 1, columns), jnp.float32)
    return PackedTensor(panels.astype(jnp.bfloat16), scales)


def packed_shapes(shape: Sequence[int], groups: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of values and scales of a packed weight [..., K, N]."""
    *lead, rows, columns = shape
    return (*lead, columns // PANEL, rows // 2, PANEL, 2), (*lead, groups, columns)


def matmul(x: jax.Array, *weights: PackedTensor) -> jax.Array:
    """x [R, K] bfloat16 times weights [K, N], [K, N'], ... side by side: [R, N + N' + ...]."""
    shape = (len(x), sum(map(len, weights)))
    call = jax.ffi.ffi_call("grok1_matmul", jax.ShapeDtypeStruct(shape, jnp.float32))
    return call(x, *jax.tree.leaves(weights))
