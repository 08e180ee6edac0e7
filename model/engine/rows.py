"""Which slots the rows of a decode step run, and which of their drafts turned out to be right."""

import dataclasses

import jax
import jax.numpy as jnp

from model.trees import Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepRows:
    """The B rows of a step: live slots, each followed by its drafts.

    Attributes:
      slots: [B] the slot of each row, S for a row that is not used.
      offsets: [B] 0 for a slot's last token, j for its j-th draft.
      drafts: [B] how many drafts of the row's slot are run.
      tiles: scalar, how many tiles hold rows that are used.
    """

    slots: Leaf
    offsets: Leaf
    drafts: Leaf
    tiles: Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pending:
    """Rows whose tokens have been run and whose next ones have not been drawn.

    Attributes:
      rows: whose, and which of them are drafts.
      tokens: [B] what each row ran.
      positions: [B] where that stands in its sequence, -1 for a row that is not used.
      hidden: [B / devices, D] float32, the residual stream after the last layer.
    """

    rows: StepRows
    tokens: Leaf
    positions: Leaf
    hidden: Leaf


def choose_rows(
    alive: jax.Array, wanted: jax.Array, rows: int, tile_rows: int, devices: int
) -> StepRows:
    """Live slots for the rows of a step, and drafts for rows that would idle beside them.

    Each device samples the rows that it holds of a tile, so slots are dealt to devices in equal
    ranges and each range fills its own rows. Drafts ask for no tile of their own.

    Args:
      alive: [S] bool; S is a multiple of ``devices``.
      wanted: [S] drafts that each slot has.
      rows: B.
      tile_rows: R.
      devices: of the mesh.
    """
    count = len(alive)
    groups = alive.reshape(devices, -1)
    each, per_tile = rows // devices, tile_rows // devices
    order = jnp.argsort(~groups, axis=-1, stable=True)[:, :each].astype(jnp.int32)
    used = jnp.take_along_axis(groups, order, axis=-1)
    tiles = (used.sum(-1).max() + per_tile - 1) // per_tile
    room = tiles * per_tile - used.sum(-1, keepdims=True)
    asked = jnp.where(used, jnp.take_along_axis(wanted.reshape(devices, -1), order, axis=-1), 0)
    given = jnp.clip(room - (jnp.cumsum(asked, -1) - asked), 0, asked)
    ends = jnp.cumsum(used + given, -1, dtype=jnp.int32)
    row = jnp.arange(each, dtype=jnp.int32)
    index = jnp.minimum((ends[:, None, :] <= row[:, None]).sum(-1, dtype=jnp.int32), each - 1)

    def of_row(x):
        return jnp.take_along_axis(x, index, axis=-1)

    live = row < ends[:, -1:]
    slots = of_row(order) + jnp.arange(devices, dtype=jnp.int32)[:, None] * groups.shape[1]
    offsets = row - of_row(ends - used - given)
    dealt = ((slots, count), (offsets, 0), (of_row(given), 0))
    each_row = (_by_tile(jnp.where(live, x, none), tile_rows) for x, none in dealt)
    return StepRows(*each_row, tiles=tiles)  # type: ignore[misc]


def right_rows(
    rows: StepRows,
    live: jax.Array,
    ran: jax.Array,
    drew: jax.Array,
    ended: jax.Array,
    tile_rows: int,
    devices: int,
) -> tuple[jax.Array, jax.Array]:
    """Which rows ran what their sequence holds, and which of those are their slot's last.

    A draft is right if the row before it drew it, was right itself, and ended nothing.

    Args:
      rows: of the step.
      live: [B] bool; the others are not right.
      ran: [B] the token that each row ran.
      drew: [B] the token that it drew.
      ended: [B] bool, whether that ends its sequence.
      tile_rows: R.
      devices: of the mesh.

    Returns:
      Two of [B] bool.
    """
    arrays = (rows.offsets, live, ran, drew, ended)
    offsets, live, ran, drew, ended = (_by_device(x, tile_rows, devices) for x in arrays)
    wrong = (offsets > 0) & ((ran != jnp.roll(drew, 1, -1)) | jnp.roll(ended, 1, -1))
    faults = jnp.cumsum(wrong, axis=-1)
    first = jnp.arange(offsets.shape[-1]) - offsets
    right = live & (faults == jnp.take_along_axis(faults, first, axis=-1))
    goes_on = jnp.pad((right & (offsets > 0))[:, 1:], ((0, 0), (0, 1)))
    return _by_tile(right, tile_rows), _by_tile(right & ~goes_on, tile_rows)


def _by_device(x: jax.Array, tile_rows: int, devices: int) -> jax.Array:
    """[B] rows in the order of a step, tile by tile, as [devices, B / devices]."""
    return x.reshape(-1, devices, tile_rows // devices).swapaxes(0, 1).reshape(devices, -1)


def _by_tile(x: jax.Array, tile_rows: int) -> jax.Array:
    """The reverse of ``_by_device``."""
    devices = len(x)
    return x.reshape(devices, -1, tile_rows // devices).swapaxes(0, 1).reshape(-1)
