"""Random weights and rows for the tests of the CPU kernels, and how near results must be."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from model.config import PRESETS
from model.kernels.cpu import products
from model.numerics import MODES
from model.quantization import QuantizedTensor

BF16 = MODES["bf16"]
TINY = PRESETS["tiny"]


def rows(rng, count: int, width: int, dtype=jnp.bfloat16) -> jax.Array:
    return jnp.asarray(rng.normal(size=(count, width)), dtype)


def weight(rng, *shape: int, groups: int = 1) -> QuantizedTensor:
    values = rng.integers(-127, 128, shape)
    scales = rng.uniform(0.5, 1.5, (*shape[:-2], groups, shape[-1])) / (73 * shape[-2] ** 0.5)
    return QuantizedTensor(jnp.asarray(values, jnp.bfloat16), jnp.asarray(scales, jnp.float32))


def scale(rng, width: int) -> jax.Array:
    return jnp.asarray(rng.uniform(0.5, 1.5, width), jnp.float32)


def packed(layer: dict) -> dict:
    """The same layer as the kernels read it."""
    return {
        name: products.pack(w.values, w.scales) if isinstance(w, QuantizedTensor) else w
        for name, w in layer.items()
    }


def layer_of(rng, config=TINY) -> dict:
    """A layer's weights, those of the products as integers and scales."""
    c = config
    width, wide, count = c.emb_size, c.ffn_size, c.num_experts
    inputs = {"query": c.num_q_heads, "key": c.num_kv_heads, "value": c.num_kv_heads}
    layer = {name: weight(rng, width, heads * c.key_size) for name, heads in inputs.items()}
    layer["attn_out"] = weight(rng, c.num_q_heads * c.key_size, width, groups=c.model_shards)
    layer["gate"], layer["up"] = (weight(rng, count, width, wide) for _ in range(2))
    layer["down"] = weight(rng, count, wide, width, groups=c.model_shards)
    layer["router"] = rows(rng, width, count, jnp.float32) / width**0.5
    for name in ("attn_norm", "attn_post_norm", "moe_norm", "moe_post_norm"):
        layer[name] = scale(rng, width)
    return layer


def sized(**sizes) -> object:
    return dataclasses.replace(TINY, **sizes)


def close(got, want, tolerance=2e-6):
    most = float(abs(np.asarray(want, np.float32)).max())
    got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
    np.testing.assert_allclose(got, want, atol=tolerance * most, rtol=0)


def digest_on_one_cpu(module: str) -> str:
    """What ``digest`` of a module gives in a process that has one processor, so one thread."""
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += f"from {module} import digest; print(digest())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()
