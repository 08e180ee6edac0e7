"""What the device keeps of each slot between steps, and how the host changes it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from model.engine.rules import Rules
from model.engine.sampler import Knobs
from model.trees import Leaf
from schemas.sampling import MAX_EARLY_STOPS, SamplingParams

STOP_IDS = MAX_EARLY_STOPS
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
      min_tokens: [S] none of ``stop_ids`` may be drawn before this many.
      masked_draws: [S] how many draws, from the first, the mask of allowed tokens holds for.
      stop_ids: [S, STOP_IDS] ids that end the sequence, -1 for none.
      endless: [S] how many of them, from the first, end nothing after all: 1 where EOS is ignored,
        which may not come too early even so.
      knobs: [S, ...] how the sequence is sampled.
      pages: [S, P] the sequence's cache pages in order.
    """

    alive: Leaf
    token: Leaf
    position: Leaf
    drawn: Leaf
    max_tokens: Leaf
    min_tokens: Leaf
    masked_draws: Leaf
    stop_ids: Leaf
    endless: Leaf
    knobs: Knobs
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
        masked_draws=integers.copy(),
        stop_ids=np.full((slots, STOP_IDS), -1, np.int32),
        endless=integers.copy(),
        knobs=empty_knobs(slots),
        pages=np.zeros((slots, pages), np.int32),
    )


def empty_knobs(rows: int) -> Knobs:
    """Knobs, as NumPy arrays, that change nothing and take the likeliest token."""
    integers, zeros = np.zeros(rows, np.int32), np.zeros(rows, np.float32)
    return Knobs(
        key=np.zeros((rows, 2), np.uint32),
        temperature=zeros,
        top_k=integers,
        top_p=zeros + 1,
        min_p=zeros.copy(),
        repetition=zeros + 1,
        presence=zeros.copy(),
        frequency=zeros.copy(),
        masked=np.zeros(rows, bool),
        biases=integers.copy(),
        bad_tokens=integers.copy(),
        logprobs=integers - 1,
    )


def set_knobs(
    knobs: Knobs, row: int, key: tuple[int, int], params: SamplingParams, rules: Rules
) -> None:
    """Writes how a sample is drawn into a row of NumPy arrays that ``empty_knobs`` made."""
    knobs.key[row] = key
    knobs.temperature[row] = params.temperature
    knobs.top_k[row] = min(max(params.top_k, 0), np.iinfo(np.int32).max)
    knobs.top_p[row] = params.top_p
    knobs.min_p[row] = params.min_p
    knobs.repetition[row] = params.repetition_penalty
    knobs.presence[row] = params.presence_penalty
    knobs.frequency[row] = params.frequency_penalty
    knobs.masked[row] = rules.first_mask is not None
    knobs.biases[row] = len(params.logit_bias)
    knobs.bad_tokens[row] = sum(map(len, rules.bad_words))
    knobs.logprobs[row] = -1 if params.logprobs is None else params.logprobs


def edit_slots(state: SlotState, changed: jax.Array, values: SlotState) -> SlotState:
    """The state with the slots where ``changed`` [S] replaced by those of ``values``."""

    def pick(old, new):
        return jnp.where(changed.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return jax.tree.map(pick, state, values)
