"""Keys and values of all sequences, in pages; as computed, or as int8 with a scale for each vector.

A scale belongs to one token and one head, so what is stored of a token depends on nothing else.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from model.trees import Leaf

_INT8_MAX = 127


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Place:
    """Where T tokens stand in the cache.

    Attributes:
      page: [T] physical page.
      offset: [T] row of the page.
    """

    page: Leaf
    offset: Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Page:
    """One page for each of B sequences.

    Attributes:
      keys: [B, K, C, N].
      values: the same.
      key_scales: [B, K, C] float32 factors of int8 keys; None for others.
      value_scales: the same for values.
    """

    keys: jax.Array
    values: jax.Array
    key_scales: jax.Array | None
    value_scales: jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PagedCache:
    """Pages of C tokens; page 0 belongs to no sequence; writes of unused rows end there.

    Attributes:
      keys: [L, pages, K, C, N]: what one head keeps of a page lies together. On a CPU bfloat16 is
        kept as its bits, uint16: a compiler for one that lacks it would widen the whole cache, and
        round it again, to write a row.
      values: the same.
      key_scales: [L, pages, K, C] float32 factors of int8 keys; None for others.
      value_scales: the same for values.
      packed: whether a page's insides are in the order of the CPU kernels, which alone know it.
    """

    keys: Leaf
    values: Leaf
    key_scales: Leaf = None
    value_scales: Leaf = None
    packed: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def block_size(self) -> int:
        """C."""
        return self.keys.shape[3]

    def write(
        self, layer: jax.Array, at: Place, keys: jax.Array, values: jax.Array
    ) -> "PagedCache":
        """The cache with [T, K, N] keys and values stored at ``at``."""
        # An index for each head too: else a TPU's compiler turns the whole cache around for it.
        heads = jnp.arange(keys.shape[1])
        where = (layer, at.page[:, None], heads, at.offset[:, None])
        if self.key_scales is None:
            return PagedCache(
                self.keys.at[where].set(_stored(keys, self.keys.dtype)),
                self.values.at[where].set(_stored(values, self.values.dtype)),
            )
        whole_keys, key_scales = quantize_vectors(keys)
        whole_values, value_scales = quantize_vectors(values)
        return PagedCache(
            self.keys.at[where].set(whole_keys),
            self.values.at[where].set(whole_values),
            self.key_scales.at[where].set(key_scales),
            self.value_scales.at[where].set(value_scales),
        )

    def read(self, layer: jax.Array, pages: jax.Array) -> Page:
        """The page of each of B sequences."""
        scaled = self.key_scales is not None
        return Page(
            _loaded(self.keys[layer, pages]),
            _loaded(self.values[layer, pages]),
            self.key_scales[layer, pages] if scaled else None,
            self.value_scales[layer, pages] if scaled else None,
        )


def _stored(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    if dtype == jnp.uint16:
        return lax.bitcast_convert_type(x.astype(jnp.bfloat16), dtype)
    return x.astype(dtype)


def _loaded(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def find_places(pages: jax.Array, positions: jax.Array, block_size: int) -> Place:
    """Where T rows write: their pages in order [T, P] and positions [T], negative for page 0."""
    block = jnp.maximum(positions, 0) // block_size
    page = jnp.take_along_axis(pages, block[:, None], axis=1)[:, 0]
    return Place(jnp.where(positions < 0, 0, page), jnp.maximum(positions, 0) % block_size)


def quantize_vectors(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x [..., N] as int8 and its factors [...] float32: the largest of a vector becomes 127."""
    x = x.astype(jnp.float32)
    scales = jnp.max(jnp.abs(x), axis=-1) / _INT8_MAX
    # A vector of zeros keeps factor zero, and divides by one.
    whole = jnp.round(x / jnp.where(scales > 0, scales, 1.0)[..., None])
    return jnp.clip(whole, -_INT8_MAX, _INT8_MAX).astype(jnp.int8), scales


def copy_pages(cache: PagedCache, source: jax.Array, target: jax.Array) -> PagedCache:
    """Copies whole pages [X] -> [X] in all layers; from page 0 on there are none.

    One after the other, in place: all at once they would stand in memory twice. A page is written
    in the turn after it was read, since one operation that reads what it writes would copy the
    whole cache each time.
    """
    # The first turn writes page 0 with itself, and the last reads in vain.
    source, target = jnp.append(source, 0), jnp.insert(target, 0, 0)

    def turn(i, held):
        cache, page = held
        cache = jax.tree.map(
            lambda a, x: lax.dynamic_update_slice_in_dim(a, x, target[i], axis=1), cache, page
        )
        return cache, jax.tree.map(
            lambda a: lax.dynamic_slice_in_dim(a, source[i], 1, axis=1), cache
        )

    first = jax.tree.map(lambda a: a[:, :1], cache)
    return lax.fori_loop(0, (target > 0).sum() + 1, turn, (cache, first))[0]
