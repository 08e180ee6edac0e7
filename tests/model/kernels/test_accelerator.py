"""The kernels of TPUs and GPUs, run without one, against the plain forms that define them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.attention import Queries, attention
from model.config import PRESETS
from model.kernels.accelerator import Kernels
from model.kernels.blocks import group_by_expert
from model.moe import EXPERTS, Routing, mixture
from model.numerics import MODES
from model.paged_cache import PagedCache, quantize_vectors
from model.quantization import QuantizedTensor
from model.stack import OfStack

BF16 = MODES["bf16"]
LAYERS, LAYER = 2, jnp.int32(1)
KERNELS = [Kernels("gpu", interpret=True), Kernels("tpu", interpret=True)]

HEADS, GROUP, SIZE, BLOCK, PAGES = 2, 3, 128, 128, 9
CONFIG = dataclasses.replace(
    PRESETS["tiny"],
    num_q_heads=HEADS * GROUP,
    num_kv_heads=HEADS,
    key_size=SIZE,
    model_shards=2,
    attn_output_multiplier=0.3,
)


@pytest.fixture(params=KERNELS, ids=lambda kernels: kernels.platform)
def kernels(request) -> Kernels:
    return request.param


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cache(quantized: bool) -> PagedCache:
    keys, values = (normal(i, LAYERS, PAGES, HEADS, BLOCK, SIZE) for i in (1, 2))
    if not quantized:
        return PagedCache(jnp.asarray(keys, jnp.bfloat16), jnp.asarray(values, jnp.bfloat16))
    (keys, key_scales), (values, value_scales) = map(quantize_vectors, (keys, values))
    return PagedCache(keys, values, key_scales, value_scales)


def decoding() -> Queries:
    """Rows of four sequences, of which one is not live."""
    positions = np.array([[300], [-1], [0], [127]], np.int32)
    pages = np.array([[3, 1, 8], [0, 0, 0], [2, 0, 0], [7, 0, 0]], np.int32)
    return Queries(np.arange(4)[:, None], np.arange(4), positions, pages, jnp.int32(3))


def prompts() -> Queries:
    """A whole block that begins a prompt, and part of one that goes on."""
    rows = np.full((2, BLOCK), BLOCK + 40, np.int32)
    positions = np.full((2, BLOCK), -1, np.int32)
    rows[0], positions[0] = np.arange(BLOCK), np.arange(BLOCK)
    rows[1, :40], positions[1, :40] = BLOCK + np.arange(40), 2 * BLOCK + np.arange(40)
    pages = np.array([[5, 0, 0], [4, 6, 2]], np.int32)
    return Queries(rows, np.arange(BLOCK + 40), positions, pages, jnp.int32(3))


def attended(query, cache, queries, kernels=None):
    run = jax.jit(lambda q, c, asked: attention(q, c, LAYER, asked, CONFIG, BF16, kernels))
    return np.asarray(run(jnp.asarray(query, jnp.bfloat16), cache, queries))


@pytest.mark.parametrize(
    ("queries", "quantized"),
    [
        (decoding, True),
        (prompts, False),
        pytest.param(decoding, False, marks=pytest.mark.slow),
        pytest.param(prompts, True, marks=pytest.mark.slow),
    ],
)
def test_attention_is_the_plain_form(kernels, queries, quantized):
    asked = queries()
    query = normal(3, len(asked.inverse), HEADS * GROUP, SIZE)
    want = attended(query, cache(quantized), asked)
    found = attended(query, cache(quantized), asked, kernels)
    assert abs(want).max() > 0.5
    np.testing.assert_allclose(found, want, atol=2e-3)


def test_attention_of_a_row_does_not_depend_on_the_others(kernels):
    asked, query = decoding(), normal(3, 4, HEADS * GROUP, SIZE)
    together = attended(query, cache(False), asked, kernels)
    for row in (0, 2, 3):
        positions = np.full((4, 1), -1, np.int32)
        positions[1] = asked.positions[row]
        pages = np.zeros((4, 3), np.int32)
        pages[1] = asked.pages[row]
        moved = np.zeros_like(query)
        moved[1] = query[row]
        alone = attended(
            moved,
            cache(False),
            Queries(asked.rows, asked.inverse, positions, pages, jnp.int32(3)),
            kernels,
        )
        np.testing.assert_array_equal(alone[1], together[row])


def test_attention_leaves_other_sizes_to_the_plain_form(kernels):
    small = PagedCache(jnp.zeros((1, 2, 1, 8, 8)), jnp.zeros((1, 2, 1, 8, 8)))
    query = jnp.zeros((1, 1, 1, 1, 8), jnp.bfloat16)
    where = (jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32))
    assert kernels.attention(query, small, jnp.int32(0), *where, CONFIG) is None


EXPERT_COUNT, WIDTH, INNER = 4, 256, 512


def weight(seed: int, kind: str, rows: int, columns: int, groups: int) -> QuantizedTensor:
    rng, shape = np.random.default_rng(seed), (LAYERS, EXPERT_COUNT, rows, columns)
    if kind == "int8":
        values = jnp.asarray(rng.integers(-127, 128, shape), jnp.int8)
        scales = rng.uniform(0.5, 1.5, (*shape[:2], groups, columns)) / (127 * rows**0.5)
        return QuantizedTensor(values, jnp.asarray(scales, jnp.float32))
    values = jnp.asarray(rng.integers(-7, 8, shape), jnp.int4)
    scales = rng.uniform(0.5, 1.5, (*shape[:2], rows // 64, columns)) / (7 * rows**0.5)
    # As many bits as leave a product with a 4-bit integer exact in bfloat16.
    scales = jax.lax.reduce_precision(jnp.asarray(scales, jnp.float32), 8, 3)
    return QuantizedTensor(values, scales.astype(jnp.bfloat16))


def layer_of(kind: str, groups: int) -> dict:
    sizes = {"gate": (WIDTH, INNER, 1), "up": (WIDTH, INNER, 1), "down": (INNER, WIDTH, groups)}
    stacks = {name: OfStack(weight(i, kind, *sizes[name]), LAYER) for i, name in enumerate(EXPERTS)}
    return {**stacks, "router": jnp.zeros((WIDTH, EXPERT_COUNT))}


def routed(tokens: int, seed: int) -> tuple[jax.Array, Routing, jax.Array]:
    rng = np.random.default_rng(seed)
    experts = np.argsort(rng.random((tokens, EXPERT_COUNT)) ** [1, 2, 3, 4], axis=-1)[:, :2]
    gates = rng.uniform(0.1, 0.9, (tokens, 2)).astype(np.float32)
    x = jnp.asarray(normal(seed, tokens, WIDTH), jnp.bfloat16)
    live = rng.random(tokens) < 0.8
    return x, Routing(experts.astype(np.int32), gates), live


@pytest.mark.parametrize(("kind", "groups"), [("int8", 1), ("int8", 2), ("int4", 1)])
@pytest.mark.parametrize("tokens", [5, 90])
def test_experts_are_the_plain_form(kernels, kind, groups, tokens):
    x, routing, live = routed(tokens, 7)
    run = jax.jit(
        lambda x, routing, live, layer, how: mixture(x, routing, live, layer, 32, BF16, how),
        static_argnums=4,
    )
    want, found = (run(x, routing, live, layer_of(kind, groups), how) for how in (None, kernels))
    assert abs(np.asarray(want)).max() > 0.1
    np.testing.assert_allclose(found, want, atol=5e-3)
    assert not np.asarray(found)[~live].any()


def test_experts_of_a_row_do_not_depend_on_the_others(kernels):
    x, routing, _ = routed(90, 8)
    layer = layer_of("int8", 2)
    run = jax.jit(lambda x, routing, live: mixture(x, routing, live, layer, 32, BF16, kernels))
    together = np.asarray(run(x, routing, np.ones(90, bool)))
    for row in (0, 17, 89):
        alone = run(x, routing, np.arange(90) == row)
        np.testing.assert_array_equal(np.asarray(alone)[row], together[row])
    order = np.random.default_rng(0).permutation(90)
    moved = run(x[order], jax.tree.map(lambda a: a[order], routing), np.ones(90, bool))
    np.testing.assert_array_equal(moved, together[order])


def test_experts_leave_other_weights_to_the_plain_form(kernels):
    x, routing, live = routed(5, 9)
    layer = layer_of("int8", 1)
    taken = {**layer, "up": layer["up"].take()}
    assert kernels.experts(x, routing.experts, live, taken) is None


@pytest.mark.parametrize("rows", [16, 64])
def test_every_pair_has_a_row_of_its_expert(rows):
    rng = np.random.default_rng(rows)
    for tokens in (1, 3, 40, 200):
        chosen = np.argsort(rng.random((tokens, 8)), axis=-1)[:, :2].astype(np.int32)
        live = rng.random(tokens) < 0.7
        blocks = jax.jit(group_by_expert, static_argnums=(2, 3))(chosen, live, 8, rows)
        place = np.asarray(blocks.row)[live]
        assert len(np.unique(place)) == place.size
        assert (np.asarray(blocks.expert)[place // rows] == chosen[live]).all()
        assert (place // rows < blocks.used).all()
        want = np.repeat(np.flatnonzero(live)[:, None], 2, axis=1)
        assert (np.asarray(blocks.token)[place] == want).all()
        others = np.delete(np.asarray(blocks.token), place.reshape(-1))
        assert (others == tokens).all()
        least = sum(-(-np.count_nonzero(chosen[live] == e) // rows) for e in range(8))
        assert blocks.used == least
