"""The network in float64 NumPy, straight down, one sequence at a time: an oracle for tests."""

import numpy as np

from model.checkpoint.base import Checkpoint, HostTensor
from model.config import Grok1Config


def numbers(host: HostTensor) -> np.ndarray:
    """[..., in, out] float64: each integer times its scale, exactly."""
    values = host.values.astype(np.float64)
    if host.scales is None:
        return values
    repeat = values.shape[-2] // host.scales.shape[-2]
    return values * np.repeat(host.scales.astype(np.float64), repeat, axis=-2)


def dequantized(checkpoint: Checkpoint) -> dict[tuple[int | None, str], np.ndarray]:
    """All weights as integers x scale, exactly, by layer and name."""
    return {(t.layer, t.param.name): numbers(host) for t, host in checkpoint.stream()}


def logits(config: Grok1Config, weights, tokens: list[int]) -> np.ndarray:
    """[T, V] logits of one sequence."""
    c, count = config, len(tokens)
    whole = {name: w for (layer, name), w in weights.items() if layer is None}
    hidden = whole["embedding"][tokens] * c.embedding_multiplier_scale
    seen = np.tril(np.ones((count, count), bool))
    for i in range(c.num_layers):
        w = {name: value for (layer, name), value in weights.items() if layer == i}

        def norm(x, name, w=w):
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.rms_norm_eps) * w[name]

        x = norm(hidden, "attn_norm")
        q, k, v = (
            (x @ w[name]).reshape(count, -1, c.key_size) for name in ("query", "key", "value")
        )
        q, k = rotate(q, c.rope_base), rotate(k, c.rope_base)
        group = c.num_q_heads // c.num_kv_heads
        k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
        scores = np.einsum("qhn,khn->hqk", q, k) * c.attn_output_multiplier
        scores = c.attn_logit_cap * np.tanh(scores / c.attn_logit_cap)
        shares = softmax(np.where(seen, scores, -np.inf))
        mixed = np.einsum("hqk,khn->qhn", shares, v).reshape(count, -1)
        hidden = hidden + norm(mixed @ w["attn_out"], "attn_post_norm")
        x = norm(hidden, "moe_norm")
        hidden = hidden + norm(experts(c, w, x), "moe_post_norm")
    scale = np.sqrt((hidden**2).mean(-1, keepdims=True) + c.rms_norm_eps)
    return hidden / scale * whole["final_norm"] @ whole["embedding"].T * c.output_multiplier_scale


def experts(c: Grok1Config, w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    gates = softmax(x @ w["router"])
    chosen = np.argsort(-gates, axis=-1, kind="stable")[:, : c.num_selected_experts]
    out = np.zeros_like(x)
    for t, picks in enumerate(chosen):
        for e in picks:
            gate, up = x[t] @ w["gate"][e], x[t] @ w["up"][e]
            inner = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
            out[t] += gates[t, e] * ((0.5 * gate * (1 + np.tanh(inner)) * up) @ w["down"][e])
    return out


def rotate(x: np.ndarray, base: float) -> np.ndarray:
    half = x.shape[-1] // 2
    phase = np.outer(np.arange(len(x)), base ** (-np.arange(half) / half))[:, None]
    low, high = x[..., :half], x[..., half:]
    cos, sin = np.cos(phase), np.sin(phase)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
