"""One layer's weight where it lies among all layers', and is not to be copied out."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from model.trees import Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OfStack:
    """A layer's weight.

    Attributes:
      stack: [L, ...] a weight of all layers.
      layer: scalar, which.
    """

    stack: Any
    layer: Leaf

    def take(self, counter: jax.Array | int = 0) -> Any:
        """The weight [...], to be multiplied with at once.

        ``counter``, which is never negative, is that of a loop around the product. The index is
        made to depend on it, since a compiler would take a slice that stays the same out of the
        loop, and a slice without a product beside it is a copy.
        """
        index = self.layer + jnp.minimum(counter, 0)
        return jax.tree.map(
            lambda w: lax.dynamic_index_in_dim(w, index, keepdims=False), self.stack
        )
