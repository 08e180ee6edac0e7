"""Where values are rounded: the three numerics modes, as one object that the network asks.

``release`` rounds to bfloat16 wherever the release's code does; ``bf16`` feeds bfloat16 operands to
products and keeps everything between them in float32; ``float32`` rounds nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

_BF16_EXPONENT_BITS, _BF16_MANTISSA_BITS = 8, 7


@dataclasses.dataclass(frozen=True)
class Numerics:
    """One numerics mode.

    Attributes:
      name: ``release``, ``bf16`` or ``float32``.
      operand: dtype of activations that enter a product, and of the cache.
      rounds: whether each intermediate is rounded to bfloat16, as in the release.
    """

    name: str
    operand: jnp.dtype
    rounds: bool

    def round(self, x: jax.Array) -> jax.Array:
        """Rounds float32 values to bfloat16 precision where the release would; else nothing.

        A pair of casts would not do: XLA may drop it as excess precision.
        """
        if not self.rounds:
            return x
        return lax.reduce_precision(x, _BF16_EXPONENT_BITS, _BF16_MANTISSA_BITS)

    def einsum(self, subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
        """A product with float32 sums and a float32 result; the operands come as ``operand``."""
        full = x.dtype == jnp.float32 or y.dtype == jnp.float32
        if full:
            x, y = x.astype(jnp.float32), y.astype(jnp.float32)
        return jnp.einsum(
            subscripts,
            x,
            y,
            precision=lax.Precision.HIGHEST if full else None,
            preferred_element_type=jnp.float32,
        )


MODES: dict[str, Numerics] = {
    "release": Numerics("release", jnp.dtype(jnp.bfloat16), rounds=True),
    "bf16": Numerics("bf16", jnp.dtype(jnp.bfloat16), rounds=False),
    "float32": Numerics("float32", jnp.dtype(jnp.float32), rounds=False),
}
"""The modes by name."""
