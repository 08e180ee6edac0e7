"""The device mesh, which weight axis goes where, and the sums over devices."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from model.config import Grok1Config
from model.params import DATA, MODEL, RULES, Param, indivisible
from schemas.error import SetupError


def weight_spec(param: Param) -> PartitionSpec:
    """How a weight is split over the mesh."""
    return PartitionSpec(*(RULES[axis] for axis in param.axes))


def scales_spec(param: Param) -> PartitionSpec:
    """How a quantised weight's scales are split: groups follow the contracted axis."""
    *lead, contracted, out = (RULES[axis] for axis in param.axes)
    return PartitionSpec(*lead, contracted, out)


def make_mesh(count: int | None, config: Grok1Config, devices: list[jax.Device]) -> Mesh:
    """A mesh of ``count`` devices, by default the most of 8, 4, 2, 1 that are present and divide.

    Raises:
      SetupError: fewer devices are present, or the model cannot be split so.
    """
    fits = [n for n in (8, 4, 2, 1) if n <= len(devices) and not indivisible(config, n)]
    if count is None:
        count = fits[0]
    if count > len(devices):
        raise SetupError(f"--devices {count}: only {len(devices)} are present; give fewer")
    if count not in fits:
        raise SetupError(
            f"--devices {count}: does not divide {indivisible(config, count)}; give fewer"
        )
    return Mesh(np.asarray(devices[:count]), (MODEL,))


def make_grid(
    count: int | None, replicas: int | None, config: Grok1Config, devices: list[jax.Device]
) -> Mesh:
    """Replicas of the model by devices of each, (``DATA``, ``MODEL``).

    Args:
      count: devices of a replica, as for ``make_mesh``.
      replicas: how many; by default as many as the devices hold, or one if ``count`` is given.
      config: the model.
      devices: those that are present.

    Raises:
      SetupError: fewer devices are present, or the model cannot be split so.
    """
    each = make_mesh(count, config, devices).size
    if replicas is None:
        replicas = len(devices) // each if count is None else 1
    if replicas * each > len(devices):
        raise SetupError(
            f"--replicas {replicas} of {each} devices each: only {len(devices)} are present; "
            "give fewer"
        )
    return Mesh(np.asarray(devices[: replicas * each]).reshape(replicas, each), (DATA, MODEL))


def replica_meshes(grid: Mesh) -> list[Mesh]:
    """The mesh of each replica of a grid."""
    return [Mesh(row, (MODEL,)) for row in grid.devices]


@dataclasses.dataclass(frozen=True)
class Collectives:
    """Exchanges between the devices of the mesh, called inside ``shard_map``; no-ops on one device.

    Attributes:
      size: devices of the mesh.
      ordered: whether sums run in rank order. A ring all-reduce adds in an order that depends on a
        row's offset, so that a row's bits would depend on where in the batch it stands.
      wire: dtype of what is sent.
    """

    size: int
    ordered: bool
    wire: jnp.dtype

    def sum_to_own_rows(self, partial: jax.Array) -> jax.Array:
        """[R, D] a summand on each device -> [R / size, D] float32: sums of own rows."""
        if self.size == 1:
            return partial
        partial = partial.astype(self.wire)
        if not self.ordered:
            return lax.psum_scatter(partial, MODEL, tiled=True).astype(jnp.float32)
        parts = partial.reshape(self.size, -1, partial.shape[-1])
        parts = lax.all_to_all(parts, MODEL, split_axis=0, concat_axis=0)
        total = parts[0].astype(jnp.float32)
        for rank in range(1, self.size):
            total = total + parts[rank].astype(jnp.float32)
        return total

    def exact_sum_to_own_rows(self, partial: jax.Array) -> jax.Array:
        """The same where all summands but one are zero, so that any order gives the same bits."""
        return partial if self.size == 1 else lax.psum_scatter(partial, MODEL, tiled=True)

    def gather_rows(self, own: jax.Array) -> jax.Array:
        """[R / size, ...] -> [R, ...]: every device's rows on every device."""
        return own if self.size == 1 else lax.all_gather(own, MODEL, tiled=True)

    def columns_to_rows(self, columns: jax.Array) -> jax.Array:
        """[R, V / size] -> [R / size, V]: from all rows of some columns to some rows, whole."""
        if self.size == 1:
            return columns
        return lax.all_to_all(columns, MODEL, split_axis=0, concat_axis=1, tiled=True)

    def gather_rows_with(self, own: jax.Array, facts: jax.Array) -> tuple[jax.Array, jax.Array]:
        """``gather_rows`` of [R, D] and of float32 [R, X], whose bits travel with it."""
        if self.size == 1:
            return own, facts
        words = lax.bitcast_convert_type(facts, own.dtype)
        both = self.gather_rows(jnp.concatenate([own, words.reshape(len(own), -1)], axis=1))
        words = both[:, own.shape[1] :].reshape(len(both), *words.shape[1:])
        return both[:, : own.shape[1]], lax.bitcast_convert_type(words, jnp.float32)

    def gather_rows_tree(self, own: Any) -> Any:
        """``gather_rows`` of each array of a pytree."""
        return jax.tree.map(self.gather_rows, own)

    def gather_ranks_tree(self, own: Any) -> Any:
        """Each array [...] of a pytree -> [size, ...]: every device's, by rank, on every device."""
        if self.size == 1:
            return jax.tree.map(lambda x: x[None], own)
        return jax.tree.map(lambda x: lax.all_gather(x, MODEL), own)

    def own_rows(self, rows: jax.Array) -> jax.Array:
        """[R, ...] -> [R / size, ...]: this device's part of what all devices hold."""
        if self.size == 1:
            return rows
        each = len(rows) // self.size
        return lax.dynamic_slice_in_dim(rows, self.rank() * each, each)

    def rank(self) -> jax.Array:
        """This device's place in the mesh, scalar int32."""
        return jnp.int32(0) if self.size == 1 else lax.axis_index(MODEL)
