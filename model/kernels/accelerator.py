"""The kernels of a TPU or a GPU: where they apply, and how the network's arrays become theirs.

Each gives what the plain form beside its call gives, with sums in the same precision. ``None`` says
that a kernel does not know these sizes or types, and the plain form is to be used.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from model.config import Grok1Config
from model.kernels.blocks import group_by_expert
from model.kernels.rows import from_rows, to_rows
from model.paged_cache import PagedCache
from model.quantization import QuantizedTensor
from model.stack import OfStack

_LEAST_ROWS, _MOST_ROWS = 16, 128
"""Of a block of an expert's rows."""


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The kernels of one kind of accelerator, for the ``bf16`` mode.

    Attributes:
      platform: ``tpu`` or ``gpu``.
      interpret: run them without one, for tests.
    """

    platform: str
    interpret: bool = False

    def attention(
        self,
        query: jax.Array,
        cache: PagedCache,
        layer: jax.Array,
        positions: jax.Array,
        pages: jax.Array,
        config: Grok1Config,
    ) -> jax.Array | None:
        """Attends blocks of queries [B, Q, K, G, N] at positions [B, Q] to pages [B, P].

        Returns:
          [B, Q, K, G, N] float32, or None.
        """
        kernel = self._kernel("attention")
        _, count, _, group, size = query.shape
        if not kernel.supports(size, cache.block_size):
            return None
        rows = to_rows(query, positions, pages, cache.block_size, kernel.TILES)
        mixed = kernel.attend(rows, cache, layer, config, self.interpret)
        return from_rows(mixed, count, group)

    def experts(
        self, x: jax.Array, chosen: jax.Array, live: jax.Array, layer: dict[str, Any]
    ) -> jax.Array | None:
        """Each token's chosen experts' outputs: x [T, D] and [T, chosen] -> [T, chosen, D] float32.

        Those of tokens that are not ``live`` are undefined. None if the experts' weights are no
        stacks of integers of sizes that the kernel knows.
        """
        kernel = self._kernel("experts")
        given = [layer[name] for name in ("gate", "up", "down")]
        if not all(isinstance(w, OfStack) and isinstance(w.stack, QuantizedTensor) for w in given):
            return None
        gate, up, down = (w.stack for w in given)
        index, experts = given[0].layer, gate.values.shape[1]
        rows = _block_rows(chosen.size, experts)
        if not all(kernel.supports(rows, w) for w in (gate, up, down)):
            return None
        blocks = group_by_expert(chosen, live, experts, rows)
        # One row more than there are, for blocks that are not full.
        source = jnp.concatenate([x, jnp.zeros((1, x.shape[1]), x.dtype)])
        hidden = kernel.multiply(
            source[blocks.token],
            (gate, up),
            index,
            blocks,
            lambda gate, up: jax.nn.gelu(gate, approximate=True) * up,
            x.dtype,
            self.interpret,
        )
        outputs = kernel.multiply(
            hidden, (down,), index, blocks, lambda sums: sums, jnp.float32, self.interpret
        )
        return outputs[blocks.row]

    def _kernel(self, name: str) -> Any:
        """The module of a kernel; those of other platforms may not be importable here."""
        if self.platform == "tpu":
            from model.kernels import tpu

            return getattr(tpu, name)
        from model.kernels import gpu

        return getattr(gpu, name)


def _block_rows(pairs: int, experts: int) -> int:
    """An even share of the pairs, as a power of two that kernels like."""
    rows = _LEAST_ROWS
    while rows < min(pairs // experts, _MOST_ROWS):
        rows *= 2
    return rows
