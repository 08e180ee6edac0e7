"""Projection, cache and attention by the CPU's kernels, beside the plain forms that define them."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.attention import Queries, attention, phases, rotary
from model.kernels.cpu import build
from model.kernels.cpu import layer as kernels
from model.paged_cache import PagedCache, Place
from model.quantization import matmul
from model.transformer import rms_norm
from tests.model.kernels.cpu import (
    BF16,
    TINY,
    close,
    digest_on_one_cpu,
    layer_of,
    packed,
    rows,
    sized,
)

pytestmark = pytest.mark.skipif(
    not build.load(), reason="needs a CPU with AVX-512 and a C++ compiler"
)

INDEX = jnp.int32(1)


@dataclasses.dataclass
class Case:
    """Sequences of given lengths in two caches, by the kernels and by the plain form."""

    config: object
    block: int
    lengths: list[int]

    def __post_init__(self):
        c, rng = self.config, np.random.default_rng(self.block)
        self.rng = rng
        self.layer = layer_of(rng, c)
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
        """Stores what a random residual stream gives there; gives both forms' queries."""
        hidden = rows(self.rng, len(positions), self.config.emb_size, jnp.float32)
        where = jnp.asarray(positions, jnp.int32)
        at = Place(self.pages[jnp.asarray(sequences), where // self.block], where % self.block)
        plain, key, value = self.project(hidden, where)
        self.plain = jax.jit(PagedCache.write)(self.plain, INDEX, at, key, value)
        fast, keys, values = self.by_kernels(hidden, where, at, len(positions))
        self.fast = PagedCache(keys, values, packed=True)
        return fast, plain

    def project(self, hidden, positions):
        c, layer = self.config, self.layer
        x = rms_norm(hidden, layer["attn_norm"], c).astype(jnp.bfloat16)
        names = ("query", "key", "value")
        heads = [matmul(x, layer[n], BF16).reshape(len(x), -1, c.key_size) for n in names]
        query, key = (rotary(h, positions, c.rope_base) for h in heads[:2])
        return query.astype(jnp.bfloat16), key, heads[2]

    def by_kernels(self, hidden, positions, at, used):
        c = self.config
        where = (*phases(positions, c.key_size, c.rope_base), at.page, at.offset, INDEX)
        arrays = (hidden, jnp.int32(used), packed(self.layer), *where)
        run = jax.jit(kernels.project, static_argnums=10)
        return run(*arrays, self.fast.keys, self.fast.values, c)

    def attend(self, query, cache, rows, positions, sequences):
        pages = self.pages[jnp.asarray(sequences)]
        rows, positions = (jnp.asarray(a, jnp.int32) for a in (rows, positions))
        if cache.packed:
            run = jax.jit(kernels.attention, static_argnums=7)
            arrays = (cache.keys, cache.values, INDEX, rows, positions, pages)
            return np.asarray(run(query, *arrays, self.config), np.float32)
        inverse = np.full(len(query), rows.size)
        inverse[np.asarray(rows)[np.asarray(positions) >= 0]] = np.flatnonzero(positions >= 0)
        blocks = jnp.int32(positions.max() // self.block + 1)
        asked = Queries(rows, jnp.asarray(inverse), positions, pages, blocks)
        run = jax.jit(lambda q, cache, asked: attention(q, cache, 1, asked, self.config, BF16))
        return np.asarray(run(query, cache, asked), np.float32)


@pytest.mark.parametrize(
    ("key_size", "block"),
    [
        (8, 16),
        pytest.param(64, 16, marks=pytest.mark.slow),
        pytest.param(24, 32, marks=pytest.mark.slow),
        pytest.param(128, 8, marks=pytest.mark.slow),
    ],
)
def test_projection_and_attention_are_the_plain_ones(key_size, block):
    config = sized(key_size=key_size, attn_output_multiplier=key_size**-0.5)
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


def test_a_token_is_projected_alone_as_among_others_and_only_as_many_as_are_used():
    case = Case(TINY, 16, lengths=[90])
    hidden = rows(case.rng, 90, TINY.emb_size, jnp.float32)
    positions = jnp.arange(90, dtype=jnp.int32)
    at = Place(case.pages[0, positions // 16], positions % 16)
    query, keys, values = map(np.asarray, case.by_kernels(hidden, positions, at, 90))
    some, *cached = map(np.asarray, case.by_kernels(hidden, positions, at, 37))
    assert (some[:37] == query[:37]).all()
    full, part, rest = np.asarray(case.pages[0, :2]), int(case.pages[0, 2]), case.pages[0, 3:]
    for stored, whole, stale in zip(
        cached, (keys, values), (case.fast.keys, case.fast.values), strict=True
    ):
        assert (stored[1, full] == whole[1, full]).all()
        assert (stored[1, part] != np.asarray(stale)[1, part]).mean() < 0.4  # 5 of its 16 tokens
        assert (stored[1, rest] == np.asarray(stale)[1, rest]).all()
        assert (stored[0] == np.asarray(stale)[0]).all()
    for i in (0, 41, 89):
        own = slice(i, i + 1)
        one = case.by_kernels(hidden[own], positions[own], Place(at.page[own], at.offset[own]), 1)
        assert (np.asarray(one[0])[0] == query[i]).all()


def digest() -> str:
    """Of one sequence, whose heads threads share, and of many: a thread takes all of one's."""
    digests = hashlib.sha256()
    for lengths in ([60], [30] * 9):
        case, count = Case(TINY, 16, lengths), len(lengths)
        fast, _ = case.run(np.arange(count), np.array(lengths) - 1)
        each = np.arange(count)[:, None], np.array(lengths)[:, None] - 1, np.arange(count)
        for array in (case.fast.keys, case.fast.values, case.attend(fast, case.fast, *each)):
            digests.update(np.asarray(array).tobytes())
    return digests.hexdigest()


def test_threads_do_not_change_a_bit():
    assert digest_on_one_cpu(__name__) == digest()
