import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.attention import Queries, attention
from model.config import PRESETS
from model.numerics import MODES
from model.paged_cache import PagedCache, Place, copy_pages, quantize_vectors

LAYERS, PAGES, HEADS, BLOCK, SIZE = 2, 6, 3, 4, 8
SHAPE = (LAYERS, PAGES, HEADS, BLOCK)


def empty(quantized: bool, dtype=jnp.float32) -> PagedCache:
    if not quantized:
        return PagedCache(jnp.zeros((*SHAPE, SIZE), dtype), jnp.zeros((*SHAPE, SIZE), dtype))
    vectors = jnp.zeros((*SHAPE, SIZE), jnp.int8)
    return PagedCache(vectors, vectors, jnp.zeros(SHAPE), jnp.zeros(SHAPE))


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape[0]).normal(size=shape).astype(np.float32)


def test_a_vector_is_off_by_half_a_step_at_most():
    x = normal(50, SIZE) * np.exp(normal(50, 1) * 5)
    whole, scales = quantize_vectors(x)
    assert whole.dtype == jnp.int8
    np.testing.assert_allclose(abs(np.asarray(whole)).max(-1), 127)
    off = abs(np.asarray(whole) * np.asarray(scales)[:, None] - x)
    assert (off <= np.asarray(scales)[:, None] * 0.5001).all()


def test_a_vector_of_zeros_stays_zero():
    whole, scales = quantize_vectors(jnp.zeros((2, SIZE)))
    assert not whole.any()
    assert not scales.any()


@pytest.mark.parametrize("quantized", [False, True])
def test_what_is_written_is_read(quantized):
    keys, values = normal(3, HEADS, SIZE), normal(5, HEADS, SIZE)[:3]
    at = Place(np.array([2, 2, 5]), np.array([0, 3, 1]))
    cache = empty(quantized).write(1, at, keys, values)
    page = cache.read(1, np.array([5, 2, 4]))
    want = np.zeros((2, 3, HEADS, BLOCK, SIZE), np.float32)
    for i, (page_of, row) in enumerate([(1, 0), (1, 3), (0, 1)]):
        want[0, page_of, :, row], want[1, page_of, :, row] = keys[i], values[i]
    found = np.array([page.keys, page.values], np.float32)
    if quantized:
        found *= np.array([page.key_scales, page.value_scales])[..., None]
    np.testing.assert_allclose(found, want, atol=0.02 if quantized else 0)
    assert not cache.read(0, np.arange(PAGES)).keys.any()


def test_bfloat16_may_be_kept_as_its_bits():
    heads = normal(3, HEADS, SIZE)
    at, pages = Place(np.array([2, 2, 5]), np.array([0, 3, 1])), np.array([5, 2, 4])
    kept, bits = (
        empty(False, dtype).write(1, at, heads, heads) for dtype in (jnp.bfloat16, jnp.uint16)
    )
    assert bits.keys.dtype == jnp.uint16
    for want, found in zip(
        *(c.read(1, pages).__dict__.values() for c in (kept, bits)), strict=True
    ):
        if want is not None:
            assert found.dtype == jnp.bfloat16
            np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("quantized", [False, True])
def test_pages_are_copied_in_all_layers_and_no_others(quantized):
    def random(leaf):
        return jnp.asarray(normal(*leaf.shape) * 9, leaf.dtype)

    cache = jax.tree.map(random, empty(quantized))
    copied = jax.jit(copy_pages)(cache, np.array([1, 4, 0, 3]), np.array([2, 5, 0, 0]))
    for before, after in zip(jax.tree.leaves(cache), jax.tree.leaves(copied), strict=True):
        want = np.array(before)
        want[:, 2], want[:, 5] = want[:, 1], want[:, 4]
        np.testing.assert_array_equal(after, want)


@pytest.mark.parametrize("numerics", ["release", "bf16", "float32"])
def test_attention_over_int8_is_attention_over_what_it_stands_for(numerics):
    """The same sums with scales inside the products or outside, up to rounding of operands."""
    mode, config = MODES[numerics], PRESETS["tiny"]
    heads, rows = 2 * HEADS, 2 * BLOCK
    at = Place(np.repeat([3, 1], BLOCK), np.tile(np.arange(BLOCK), 2))
    cache = empty(True).write(0, at, normal(rows, HEADS, SIZE), normal(rows + 1, HEADS, SIZE)[1:])
    plain = PagedCache(
        cache.keys * cache.key_scales[..., None], cache.values * cache.value_scales[..., None]
    )
    queries = Queries(
        rows=np.arange(2)[:, None],
        inverse=np.arange(2),
        positions=np.array([[6], [2]]),
        pages=np.array([[3, 1], [1, 0]]),
        blocks=2,
    )
    query = jnp.asarray(normal(2, heads, SIZE), mode.operand)
    attend = jax.jit(lambda cache, queries: attention(query, cache, 0, queries, config, mode))
    found, want = attend(cache, queries), attend(plain, queries)
    np.testing.assert_allclose(found, want, atol=1e-6 if numerics == "float32" else 0.02)
