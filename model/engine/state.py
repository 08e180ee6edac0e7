"""What the device keeps of each slot between steps, and how the host changes it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from model.trees import Leaf

STOP_IDS = 16
"""Stop ids that the device looks for, EOS included; the host looks for all, one round later."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotState:
    """S slots, a sequence each.

    Attributes:
      alive: [S] bool; whether the slot's sequence wants more tokens.
      token: [S] the last token, not yet run through the network.
      position: [S] of that token.
      drawn: [S] tokens drawn so far.
      max_tokens: [S] most tokens to draw.
      min_tokens: [S] no stop id may be drawn before this many.
      stop_ids: [S, STOP_IDS] ids that end the sequence, -1 for none.
      key: [S, 2] uint32 of the sample.
      temperature: [S].
      top_k: [S].
      top_p: [S].
      logprobs: [S] top log-probabilities wanted, -1 for none.
      pages: [S, P] the sequence's cache pages in order.
    """

    alive: Leaf
    token: Leaf
    position: Leaf
    drawn: Leaf
    max_tokens: Leaf
    min_tokens: Leaf
    stop_ids: Leaf
    key: Leaf
    temperature: Leaf
    top_k: Leaf
    top_p: Leaf
    logprobs: Leaf
    pages: Leaf


def empty_slots(slots: int, pages: int) -> SlotState:
    """A state, as NumPy arrays, in which no slot is alive; ``pages`` is P."""
    integers = np.zeros(slots, np.int32)
    return SlotState(
        alive=np.zeros(slots, bool),
        token=integers,
        position=integers.copy(),
        drawn=integers.copy(),
        max_tokens=integers.copy(),
        min_tokens=integers.copy(),
        stop_ids=np.full((slots, STOP_IDS), -1, np.int32),
        key=np.zeros((slots, 2), np.uint32),
        temperature=np.zeros(slots, np.float32),
        top_k=integers.copy(),
        top_p=np.ones(slots, np.float32),
        logprobs=np.full(slots, -1, np.int32),
        pages=np.zeros((slots, pages), np.int32),
    )


def edit_slots(state: SlotState, changed: jax.Array, values: SlotState) -> SlotState:
    """The state with the slots where ``changed`` [S] replaced by those of ``values``."""

    def pick(old, new):
        return jnp.where(changed.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return jax.tree.map(pick, state, values)
