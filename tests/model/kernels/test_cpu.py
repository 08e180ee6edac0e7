"""The CPU kernels beside the plain forms that define them, and each row alone and in company."""

import dataclasses
import hashlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.attention import Queries, attention, rotary, rotate_and_write
from model.config import PRESETS
from model.kernels.cpu import build, products
from model.moe import Routing
from model.moe import mixture as plain_mixture
from model.numerics import MODES
from model.paged_cache import PagedCache, Place
from model.quantization import QuantizedTensor
from model.quantization import matmul as plain_matmul

BF16 = MODES["bf16"]
TINY = PRESETS["tiny"]

pytestmark = pytest.mark.skipif(
    not build.load(), reason="needs a CPU with AVX-512 and a C++ compiler"
)


def rows(rng, count: int, width: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=(count, width)), jnp.bfloat16)


def weight(rng, *shape: int, groups: int = 1) -> QuantizedTensor:
    values = rng.integers(-127, 128, shape)
    scales = rng.uniform(0.5, 1.5, (*shape[:-2], groups, shape[-1])) / (73 * shape[-2] ** 0.5)
    return QuantizedTensor(jnp.asarray(values, jnp.bfloat16), jnp.asarray(scales, jnp.float32))


def packed(*weights: QuantizedTensor) -> list[products.PackedTensor]:
    return [products.pack(w.values, w.scales) for w in weights]


def close(got, want, tolerance=2e-6):
    scale = float(abs(np.asarray(want)).max())
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize(("width", "groups"), [(32, 1), (176, 8), (512, 1), (2736, 8)])
def test_products_are_the_plain_ones_side_by_side(width, groups):
    rng = np.random.default_rng(width)
    x = rows(rng, 29, width)
    weights = [weight(rng, width, columns, groups=groups) for columns in (64, 32, 96)]
    got = jax.jit(products.matmul)(x, *packed(*weights))
    close(got, jnp.concatenate([plain_matmul(x, w, BF16) for w in weights], axis=1))


def test_a_product_of_unscaled_weights_and_a_slice_of_their_columns():
    rng = np.random.default_rng(0)
    x, table = rows(rng, 5, 64), rows(rng, 256, 64)
    want = np.asarray(x, np.float32) @ np.asarray(table, np.float32).T
    head = products.pack(table.T)
    assert len(head) == 256
    close(products.matmul(x, head), want)
    some = jax.jit(lambda start: products.matmul(x, head.columns(start, 64)))
    close(some(jnp.int32(96)), want[:, 96:160])


def test_a_row_of_a_product_does_not_depend_on_the_others():
    rng = np.random.default_rng(1)
    w = packed(weight(rng, 176, 64, groups=8))
    multiply = jax.jit(products.matmul)
    everything = rows(rng, 61, 176)
    alone = np.concatenate([multiply(row[None], *w) for row in everything])
    for count in range(1, 62):
        start = 61 - count
        assert (np.asarray(multiply(everything[start:], *w)) == alone[start:]).all(), count


def experts(rng, width: int, wide: int, count: int = 8, groups: int = 8):
    shapes = ((count, width, wide), (count, width, wide), (count, wide, width))
    gate, up, down = (
        weight(rng, *shape, groups=g) for shape, g in zip(shapes, (1, 1, groups), strict=True)
    )
    layer = {"gate": gate, "up": up, "down": down, "router": jnp.zeros((width, count))}
    return layer, packed(gate, up, down)


def route(rng, tokens: int, count: int = 8):
    chosen = np.argsort(rng.random((tokens, count)))[:, :2]
    gates = rng.uniform(0.1, 0.5, (tokens, 2))
    return jnp.asarray(chosen, jnp.int32), jnp.asarray(gates, jnp.float32)


@pytest.mark.parametrize(("width", "wide", "tokens"), [(32, 176, 70), (128, 688, 200)])
def test_the_mixture_is_the_plain_one(width, wide, tokens):
    rng = np.random.default_rng(width)
    layer, weights = experts(rng, width, wide)
    x, live = rows(rng, tokens, width), jnp.asarray(rng.random(tokens) < 0.8)
    for chosen, gates in (route(rng, tokens), (jnp.full((tokens, 2), 3).at[:, 1].set(5), None)):
        gates = route(rng, tokens)[1] if gates is None else gates
        got = jax.jit(products.mixture)(x, chosen, gates, live, weights)
        want = plain_mixture(x, Routing(chosen, gates), live, layer, 64, BF16)
        # Where a value between the products is rounded to its other neighbour, by one part in 256.
        close(got, want, 1e-3)
        assert not np.asarray(got)[~np.asarray(live)].any()


def test_a_token_of_the_mixture_does_not_depend_on_the_others():
    rng = np.random.default_rng(2)
    _, weights = experts(rng, 32, 176)
    x, (chosen, gates) = rows(rng, 96, 32), route(rng, 96)
    mix = jax.jit(products.mixture)

    def answer(live):
        return np.asarray(mix(x, chosen, gates, jnp.asarray(live), weights))

    alone = np.stack([answer(np.arange(96) == i)[i] for i in range(96)])
    for share in (1.0, 0.9, 0.5, 0.1):
        live = rng.random(96) < share
        assert (answer(live)[live] == alone[live]).all(), share
    crowd = mix(*(jnp.repeat(a[:1], 96, 0) for a in (x, chosen, gates)), live, weights)
    assert (np.asarray(crowd)[live] == alone[0]).all()


def digest() -> str:
    rng = np.random.default_rng(3)
    _, weights = experts(rng, 32, 176)
    x, (chosen, gates) = rows(rng, 96, 32), route(rng, 96)
    result = jax.jit(products.mixture)(x, chosen, gates, jnp.ones(96, bool), weights)
    return hashlib.sha256(np.asarray(result)).hexdigest()


def test_threads_do_not_change_a_bit():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += f"from {__name__} import digest; print(digest())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest()


@dataclasses.dataclass
class Case:
    """Sequences of given lengths in two caches, by the kernels and by the plain form."""

    config: object
    block: int
    lengths: list[int]

    def __post_init__(self):
        c, rng = self.config, np.random.default_rng(self.block)
        self.rng = rng
        self.most = -(-max(self.lengths) // self.block)
        count = len(self.lengths)
        pages = rng.permutation(np.arange(1, 1 + count * self.most)).reshape(count, self.most)
        self.pages = jnp.asarray(pages, jnp.int32)
        shape = (2, 1 + count * self.most, c.num_kv_heads, self.block, c.key_size)
        stale = jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
        bits = jax.lax.bitcast_convert_type(stale, jnp.uint16)
        self.fast = PagedCache(bits, bits, packed=True)
        self.plain = PagedCache(stale, stale)
        whole = np.concatenate([np.arange(length) for length in self.lengths])
        self.run(np.repeat(np.arange(count), self.lengths), whole)

    def run(self, sequences, positions):
        """Stores random heads there; gives the queries, as both forms rotate them."""
        c, layer = self.config, jnp.int32(1)
        widths = [n * c.key_size for n in (c.num_q_heads, c.num_kv_heads, c.num_kv_heads)]
        heads = jnp.asarray(self.rng.normal(size=(len(positions), sum(widths))), jnp.float32)
        where = jnp.asarray(positions, jnp.int32)
        page = self.pages[jnp.asarray(sequences), where // self.block]
        at = Place(page, where % self.block)
        query, key, value = (
            part.reshape(len(positions), -1, c.key_size)
            for part in np.split(heads, np.cumsum(widths)[:-1], axis=1)
        )
        query, key = (rotary(part, where, c.rope_base) for part in (query, key))
        self.plain = jax.jit(PagedCache.write)(self.plain, layer, at, key, value)
        fast, self.fast = jax.jit(rotate_and_write, static_argnums=5)(
            self.fast, layer, at, heads, where, c
        )
        return fast, query.astype(jnp.bfloat16)

    def attend(self, query, cache, rows, positions, sequences):
        pages = self.pages[jnp.asarray(sequences)]
        rows, positions = (jnp.asarray(a, jnp.int32) for a in (rows, positions))
        inverse = np.full(len(query), rows.size)
        inverse[np.asarray(rows)[np.asarray(positions) >= 0]] = np.flatnonzero(positions >= 0)
        blocks = jnp.int32(positions.max() // self.block + 1)
        queries = Queries(rows, jnp.asarray(inverse), positions, pages, blocks)
        run = jax.jit(lambda q, cache, asked: attention(q, cache, 1, asked, self.config, BF16))
        return np.asarray(run(query, cache, queries), np.float32)


@pytest.mark.parametrize(
    ("key_size", "block"),
    [
        (8, 16),
        pytest.param(64, 16, marks=pytest.mark.slow),
        pytest.param(24, 32, marks=pytest.mark.slow),
        pytest.param(128, 8, marks=pytest.mark.slow),
    ],
)
def test_attention_is_the_plain_one(key_size, block):
    config = dataclasses.replace(TINY, key_size=key_size, attn_output_multiplier=key_size**-0.5)
    case = Case(config, block, lengths=[1, 37, 5, 64, 49])
    count = len(case.lengths)
    last = [length - 1 for length in case.lengths]
    fast, plain = case.run(np.arange(count), last)
    close(fast, plain, 1e-2)
    each = np.arange(count)[:, None], np.array(last)[:, None], np.arange(count)
    close(case.attend(fast, case.fast, *each), case.attend(plain, case.plain, *each), 1e-2)
    # A whole block of one prompt and a piece of another, with a row that nobody asks about.
    some = min(block, 20)
    sequences = np.repeat([3, 1, 1], [some, 3, 1])
    positions = np.concatenate([np.arange(some) + 40, [33, 34, 35], [36]])
    fast, plain = case.run(sequences, positions)
    where = np.full((2, some), some + 4), np.full((2, some), -1)
    for block_of, start, stop in ((0, 0, some), (1, some, some + min(3, some))):
        where[0][block_of, : stop - start] = np.arange(start, stop)
        where[1][block_of, : stop - start] = positions[start:stop]
    got = case.attend(fast, case.fast, *where, [3, 1])
    close(got, case.attend(plain, case.plain, *where, [3, 1]), 1e-2)
    assert not got[-1].any()


def test_a_query_does_not_depend_on_those_beside_it():
    case = Case(TINY, 16, lengths=[60, 250, 17])
    fast, _ = case.run(np.repeat([0, 1, 2], 16), np.tile(np.arange(16), 3))
    wide = np.arange(48).reshape(3, 16)
    positions = np.arange(16) + np.array([[44], [200], [0]])
    together = case.attend(fast, case.fast, wide, positions, [0, 1, 2])
    for b, lane in ((0, 0), (0, 15), (1, 7), (2, 3)):
        row = wide[b : b + 1, lane : lane + 1]
        alone = case.attend(fast, case.fast, row, positions[b : b + 1, lane : lane + 1], [b])
        assert (alone[row] == together[row]).all()


def test_sizes_that_the_kernels_do_not_take_are_left_to_the_plain_form():
    assert products.packable(TINY)
    assert products.packable(PRESETS["grok-1"])
    assert not products.packable(dataclasses.replace(TINY, emb_size=40))
    assert not products.packable(dataclasses.replace(TINY, ffn_size=168))


def test_without_a_compiler_there_are_no_kernels(monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.delenv("CXX", raising=False)
    assert "compiler" in build._unfit()
    assert build.load.__wrapped__() is False


def test_on_another_cpu_there_are_no_kernels(monkeypatch):
    monkeypatch.setattr(build, "_cpu_flags", lambda: ["avx512f", "fma"])
    assert build._unfit() == "this CPU lacks avx512bw, avx512dq, avx512vl"
