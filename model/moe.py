"""Mixture of experts: the router, and the chosen experts' products in blocks of fixed size.

Only chosen experts are computed, none is dropped, and a token's bits do not depend on the others:
(token, expert) pairs are sorted by expert and worked off in rounds of E blocks of a fixed row
count, as many rounds as the fullest expert needs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from model.config import Grok1Config
from model.kernels.accelerator import Kernels
from model.numerics import Numerics
from model.quantization import Weight, matmul
from model.stack import OfStack
from model.trees import Leaf

EXPERTS = ("gate", "up", "down")
"""The weights [E, in, out] of a layer's experts."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
    """Which experts see which token.

    Attributes:
      experts: [T, chosen] int32, the likelier first.
      gates: [T, chosen] float32 router probabilities, not renormalised.
    """

    experts: Leaf
    gates: Leaf


def router_logits(x: jax.Array, router: jax.Array) -> jax.Array:
    """x [T, D] float32 times [D, E], in full float32: a near tie decides which expert is asked."""
    return jnp.einsum("td,de->te", x, router, precision=lax.Precision.HIGHEST)


def route(logits: jax.Array, config: Grok1Config) -> Routing:
    """Softmax over all experts [T, E], then the most likely ones."""
    gates, experts = lax.top_k(jax.nn.softmax(logits), config.num_selected_experts)
    return Routing(experts, gates)


def expert_ffn(x: jax.Array, layer: dict[str, Any], numerics: Numerics) -> jax.Array:
    """(gelu(x gate) * (x up)) down, expert by expert: [E, R, D] -> [E, R, D] float32.

    Under tensor parallelism F is this device's part and the result a summand.
    """
    gate = numerics.round(matmul(x, layer["gate"], numerics))
    up = numerics.round(matmul(x, layer["up"], numerics))
    hidden = jax.nn.gelu(gate, approximate=True) * up
    if not numerics.rounds:  # the release keeps float32 from here to the down product
        hidden = hidden.astype(numerics.operand)
    return matmul(hidden, layer["down"], numerics)


def mixture(
    x: jax.Array,
    routing: Routing,
    live: jax.Array,
    layer: dict[str, Any],
    block_rows: int,
    numerics: Numerics,
    accelerator: Kernels | None = None,
) -> jax.Array:
    """The gated sum of each token's experts: x [T, D] -> [T, D] float32.

    Args:
      x: normed activations, dtype ``numerics.operand``.
      routing: experts and gates of each token.
      live: [T] bool; other rows cost nothing and give zeros.
      layer: the weights ``gate``, ``up`` and ``down``, [E, in, out] each.
      block_rows: rows that an expert computes a round.
      numerics: the mode.
      accelerator: kernels that are used where they apply.
    """
    results = None
    if accelerator is not None:
        results = accelerator.experts(x, routing.experts, live, layer)
    if results is None:
        results = _in_rounds(x, routing.experts, live, layer, block_rows, numerics)
    gates = numerics.round(routing.gates)
    mixed = results[:, 0] * gates[:, :1]
    for i in range(1, results.shape[1]):
        mixed = mixed + results[:, i] * gates[:, i : i + 1]
    return jnp.where(live[:, None], mixed, 0.0)


def _in_rounds(
    x: jax.Array,
    chosen_experts: jax.Array,
    live: jax.Array,
    layer: dict[str, Any],
    block_rows: int,
    numerics: Numerics,
) -> jax.Array:
    """The plain form: [T, chosen, D] outputs, in rounds in which each expert computes a block."""
    tokens, chosen = chosen_experts.shape
    experts = layer["router"].shape[-1]
    pairs = tokens * chosen
    expert = jnp.where(live[:, None], chosen_experts, experts).reshape(pairs)
    order = jnp.argsort(expert, stable=True).astype(jnp.int32)
    counts = (expert[:, None] == jnp.arange(experts)).sum(0, dtype=jnp.int32)
    starts = jnp.cumsum(counts) - counts
    # One row more than there are, for blocks that are not full.
    source = jnp.concatenate([x, jnp.zeros((1, x.shape[1]), x.dtype)])

    def work_off(state):
        done, results = state
        place = done + jnp.arange(block_rows)
        pair = order[jnp.minimum(starts[:, None] + place, pairs - 1)]
        pair = jnp.where(place < counts[:, None], pair, pairs)
        block = source[jnp.minimum(pair // chosen, tokens)]
        result = expert_ffn(block, {n: _taken(layer[n], done) for n in EXPERTS}, numerics)
        results = results.at[pair.reshape(-1)].set(
            result.reshape(-1, result.shape[-1]), mode="drop"
        )
        return done + block_rows, results

    results = jnp.zeros((pairs, x.shape[1]), jnp.float32)
    _, results = lax.while_loop(
        lambda state: state[0] < counts.max(), work_off, (jnp.int32(0), results)
    )
    return results.reshape(tokens, chosen, -1)


def _taken(weight: Any, counter: jax.Array) -> Weight:
    return weight.take(counter) if isinstance(weight, OfStack) else weight
