"""The network as a plain function that can be differentiated: whole sequences, no cache.

The same arithmetic as ``model/``, whose functions it is made of; a test holds the two together.
What differs is how the work is laid out: attention over all of a sequence at once, and experts over
as many rows as they get on average, and some more, since a gradient needs fixed shapes.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from model.attention import rotary
from model.config import Grok1Config
from model.moe import expert_ffn, route, router_logits
from model.numerics import MODES
from model.params import declare
from model.transformer import rms_norm

Params = dict[str, Any]
"""``embedding`` [V, D], ``final_norm`` [D], and ``layers``: each weight with a leading axis L."""

_FLOAT32 = MODES["float32"]

_QUERY_BLOCK = 64
"""Queries that attend at once: half of all (query, key) pairs are so never computed."""


def initial_params(config: Grok1Config, seed: int) -> Params:
    """Random weights: products keep the size of what they take, and a layer adds a little."""
    random = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> jax.Array:
        if "norm" in name:
            scale = 1 / math.sqrt(2 * config.num_layers) if "post" in name else 1.0
            return jnp.full(shape, scale, jnp.float32)
        spread = 1 / math.sqrt(shape[-2])
        if name == "embedding":
            spread = 1 / config.embedding_multiplier_scale
        return jnp.asarray(random.standard_normal(shape, np.float32) * np.float32(spread))

    params: Params = {"layers": {}}
    for param in declare(config).values():
        if param.per_layer:
            shape = (config.num_layers, *param.shape)
            params["layers"][param.name] = draw(param.name, shape)
        else:
            params[param.name] = draw(param.name, param.shape)
    return params


def logits(
    params: Params, tokens: jax.Array, config: Grok1Config, capacity: float | None = None
) -> tuple[jax.Array, jax.Array]:
    """Logits of whole sequences.

    Args:
      params: the weights.
      tokens: [B, T] ids.
      config: the model's shape.
      capacity: rows that an expert takes, as a multiple of the average; what is beyond is dropped.
        None drops nothing.

    Returns:
      [B, T, V] float32, and how uneven the experts' loads are, averaged over layers: 1 if even.
    """
    hidden = params["embedding"][tokens] * config.embedding_multiplier_scale

    def layer(hidden: jax.Array, weights: Params) -> tuple[jax.Array, jax.Array]:
        def norm(x: jax.Array, name: str) -> jax.Array:
            return rms_norm(x, weights[name], config)

        mixed = _attention(norm(hidden, "attn_norm"), weights, config)
        hidden = hidden + norm(mixed, "attn_post_norm")
        mixed, balance = _mixture(norm(hidden, "moe_norm"), weights, config, capacity)
        return hidden + norm(mixed, "moe_post_norm"), balance

    hidden, balance = lax.scan(layer, hidden, params["layers"], unroll=config.num_layers)
    hidden = rms_norm(hidden, params["final_norm"], config)
    scores = _FLOAT32.einsum("btd,vd->btv", hidden, params["embedding"])
    return scores * config.output_multiplier_scale, balance.mean()


def token_losses(scores: jax.Array, targets: jax.Array) -> jax.Array:
    """[B, T] negative log probability of each position's target, [B, T, V] logits given."""
    chosen = jnp.take_along_axis(scores, targets[..., None], -1)[..., 0]
    return jax.nn.logsumexp(scores, -1) - chosen


def _attention(x: jax.Array, weights: Params, config: Grok1Config) -> jax.Array:
    """Causal attention of normed [B, T, D] -> [B, T, D], before the norm that follows."""
    batch, length, _ = x.shape
    positions = jnp.tile(jnp.arange(length), batch)

    def project(name: str) -> jax.Array:
        """[B, T, heads, N]"""
        heads = _FLOAT32.einsum("btd,dk->btk", x, weights[name])
        return heads.reshape(batch, length, -1, config.key_size)

    def rotated(heads: jax.Array) -> jax.Array:
        flat = heads.reshape(batch * length, -1, config.key_size)
        return rotary(flat, positions, config.rope_base).reshape(heads.shape)

    query, key, value = rotated(project("query")), rotated(project("key")), project("value")
    query = query.reshape(batch, length, config.num_kv_heads, -1, config.key_size)

    def attend(start: int) -> jax.Array:
        """[B, Q, K, G, N] for the queries of a block, which see no key past its end."""
        end = min(start + _QUERY_BLOCK, length)
        scores = _FLOAT32.einsum("bqkgn,bskn->bkgqs", query[:, start:end], key[:, :end])
        scores = scores * config.attn_output_multiplier
        scores = config.attn_logit_cap * jnp.tanh(scores / config.attn_logit_cap)
        seen = jnp.arange(end) <= jnp.arange(start, end)[:, None]
        shares = jnp.where(seen, jnp.exp(scores), 0.0)  # the cap bounds it: no maximum is needed
        mixed = _FLOAT32.einsum("bkgqs,bskn->bqkgn", shares, value[:, :end])
        return mixed / shares.sum(-1).transpose(0, 3, 1, 2)[..., None]

    blocks = [attend(start) for start in range(0, length, _QUERY_BLOCK)]
    mixed = jnp.concatenate(blocks, 1).reshape(batch, length, -1)
    return _FLOAT32.einsum("btk,kd->btd", mixed, weights["attn_out"])


def _mixture(
    x: jax.Array, weights: Params, config: Grok1Config, capacity: float | None
) -> tuple[jax.Array, jax.Array]:
    """Experts' gated sum for normed [B, T, D] -> [B, T, D], and how uneven their loads are."""
    rows, count, chosen = x.shape[0] * x.shape[1], config.num_experts, config.num_selected_experts
    flat = x.reshape(rows, -1)
    scores = router_logits(flat, weights["router"])
    routing = route(scores, config)
    room = rows
    if capacity is not None:
        room = min(rows, -(-int(capacity * rows * chosen / count) // 8) * 8)

    expert = routing.experts.reshape(-1)
    asked = expert[:, None] == jnp.arange(count)
    rank = jnp.take_along_axis(jnp.cumsum(asked, 0), expert[:, None], 1)[:, 0] - 1
    # Where each (row, expert) pair stands among the experts' rows, and which pair stands there.
    place = jnp.where(rank < room, expert * room + rank, count * room)
    pairs = jnp.full(count * room + 1, rows * chosen).at[place].set(jnp.arange(rows * chosen))
    pairs = pairs[:-1]
    places = place.reshape(rows, chosen)

    blocks = _move(flat, pairs // chosen, places).reshape(count, room, -1)
    results = expert_ffn(blocks, weights, _FLOAT32).reshape(count * room, -1)
    results = _move(results, place, pairs[:, None]).reshape(rows, chosen, -1)
    mixed = jnp.einsum("tcd,tc->td", results, routing.gates)

    share = asked.mean(0) * count
    balance = (share * jax.nn.softmax(scores).mean(0)).sum()
    return mixed.reshape(x.shape), balance


@jax.custom_vjp
def _move(x: jax.Array, source: jax.Array, targets: jax.Array) -> jax.Array:
    """Rows of x by index, zeros for indices past its end; [A, D], [B], [A, c] -> [B, D].

    ``targets`` are the rows of the result that each row of x becomes: with them the gradient is a
    sum of rows by index too. Else it would be a scatter, which XLA does row by row on a CPU.
    """
    return _rows(x, source)


def _move_forward(x: jax.Array, source: jax.Array, targets: jax.Array) -> tuple[Any, Any]:
    return _rows(x, source), targets


def _move_backward(targets: jax.Array, gradient: jax.Array) -> tuple[Any, None, None]:
    return sum(_rows(gradient, target) for target in targets.T), None, None


_move.defvjp(_move_forward, _move_backward)


def _rows(x: jax.Array, source: jax.Array) -> jax.Array:
    return jnp.concatenate([x, jnp.zeros((1, x.shape[1]), x.dtype)])[jnp.minimum(source, len(x))]
