"""The head in blocks, against plain definitions in float64."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config import Grok1Config
from model.engine import score
from model.engine.options import EngineOptions
from model.engine.programs import Plan, steps
from model.engine.shapes import Machine, choose_shapes
from model.layout import choose_layout
from model.numerics import MODES
from model.sharding import Collectives, make_mesh
from model.transformer import Network
from schemas.sampling import MAX_LOGPROBS

ROWS = 6


def network(vocab_size, devices=1):
    config = Grok1Config(
        vocab_size=vocab_size,
        emb_size=16,
        num_layers=1,
        num_q_heads=8,
        num_kv_heads=8,
        key_size=2,
        ffn_size=16,
        sequence_len=64,
        attn_output_multiplier=1.0,
        embedding_multiplier_scale=1.0,
    )
    exchange = Collectives(devices, True, jnp.dtype(jnp.float32))
    return Network(config, MODES["float32"], exchange, ROWS, ROWS)


def case(vocab_size, seed=0):
    """A table with equal rows, so that there are ties, and states of small whole numbers."""
    rng = np.random.default_rng(seed)
    table = rng.integers(-2, 3, (vocab_size, 16)).astype(np.float32)
    table[rng.integers(0, vocab_size, vocab_size // 2)] = table[0]
    x = rng.integers(-2, 3, (ROWS, 16)).astype(np.float32)
    targets = rng.integers(0, vocab_size, ROWS).astype(np.int32)
    targets[0] = (x[0] @ table.T).argmax()
    return table, x, targets


def check(scores, net, table, x, targets, wanted):
    logits = x.astype(np.float64) @ table.T.astype(np.float64)
    logits *= float(np.float32(net.config.output_multiplier_scale))
    logprobs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1))[:, None]
    logprobs -= logits.max(-1, keepdims=True)
    chosen = np.take_along_axis(logprobs, targets[:, None], 1)
    np.testing.assert_allclose(scores.logprob, chosen[:, 0], rtol=1e-5, atol=1e-5)
    assert (np.asarray(scores.token) == targets).all()
    assert (np.asarray(scores.likeliest) == logits.argmax(-1)).all()
    for r in np.flatnonzero(np.asarray(wanted) >= 0):
        assert scores.rank[r] == (logits[r] >= logits[r, targets[r]] - 1e-9).sum()
    for r in np.flatnonzero(np.asarray(wanted) > 0):
        order = np.argsort(-logits[r], kind="stable")[:MAX_LOGPROBS]
        assert scores.top_tokens[r].tolist() == order.tolist()
        np.testing.assert_allclose(scores.top_logprobs[r], logprobs[r, order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vocab_size", [9, 64, 100])
def test_blocks_give_what_the_whole_row_gives(monkeypatch, vocab_size):
    monkeypatch.setattr(score, "BLOCK", 32)
    net = network(vocab_size)
    judge = jax.jit(lambda *a: score.judge(net, *a))
    for seed, wanted in enumerate(([3, -1, 0, 20, 0, 1], [0] * ROWS, [-1] * ROWS)):
        table, x, targets = case(vocab_size, seed)
        wanted = np.array(wanted, np.int32)
        check(judge(table, x, targets, wanted), net, table, x, targets, wanted)


def sharded():
    """Run by a process with eight devices: each has its part of the vocabulary."""
    score.BLOCK = 8
    spec = jax.sharding.PartitionSpec
    net = network(96, devices=8)
    mesh = make_mesh(8, net.config, jax.devices())
    judge = jax.shard_map(
        lambda *a: score.judge(net, *a),
        mesh=mesh,
        in_specs=(spec("model"), spec(), spec(), spec()),
        out_specs=spec(),
        check_vma=False,
    )
    for seed in range(3):
        table, x, targets = case(96, seed)
        wanted = np.array([3, -1, 0, 20, 0, 1], np.int32)
        check(jax.jit(judge)(table, x, targets, wanted), net, table, x, targets, wanted)


def test_devices_score_their_part_of_the_vocabulary():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    code = "from tests.model.engine.test_score import sharded; sharded()"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "XLA_FLAGS": flags}, check=True)


def test_a_released_vocabulary_never_meets_a_row_of_float32():
    config = network(131072).config
    numerics = MODES["bf16"]
    machine = Machine(platform="cpu", devices=1, cache_bytes=1 << 20)
    shapes = choose_shapes(config, EngineOptions(prefill_rows=256), machine)
    mesh = make_mesh(1, config, jax.devices())
    plan = Plan(config, numerics, choose_layout("cpu", numerics), shapes, mesh)
    compiled = steps(plan)["score"].lower(mesh).compile()
    shapes = re.findall(r"\w+\[([\d,]+)\]", compiled.as_text())
    assert not [s for s in shapes if s.endswith((",131072", ",131072,1"))]
    one_row_each = 256 * 131072 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < one_row_each / 32
