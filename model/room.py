"""Room on a machine's devices, by arithmetic: what ``grok1 fit`` finds by compiling. No JAX.

Weights, cache and slots are counted exactly, from the declarations that the engine allocates them
by; only what the compiled steps need beside them is a figure that compilers gave.
"""

import dataclasses
import math

from model.config import Grok1Config
from model.engine.options import EngineOptions
from model.engine.shapes import ACCELERATOR_BLOCK, admitted, cache_bytes_per_token
from model.machines import MachineProfile, find_machine
from model.params import Param, declare
from schemas.sampling import MAX_BAD_WORD_TOKENS, MAX_BIASES, MAX_EARLY_STOPS

MOST_SLOTS = 1024
"""More are not looked for: a step of so many is bound by products on every machine."""

_GIB = 1 << 30

_STATE_BYTES = 78 + 4 * MAX_EARLY_STOPS
"""Of a slot's state on each device: flags, counters and knobs, and ids that end it."""

_MB = 1e6

_STEPS = {
    ("gpu", "bf16"): (1394, 3.15),
    ("gpu", "release"): (5806, 27.2),
    ("gpu", "float32"): (9583, 104.5),
    ("tpu", "bf16"): (1885, 5.63),
    ("tpu", "release"): (9725, 55.1),
    ("tpu", "float32"): (9625, 156.1),
    ("v6e", "bf16"): (2565, 5.63),
}
"""MB over all devices that compiled steps need beside what is kept, by platform and numerics, or
for one generation: those of a step that does not depend on the slots, and those of each slot. They
are the most that compiling all 64 layers for the H100, the v5p and the v6e gave
(``tests/model/test_room.py``): a v6e's compiler takes more where it has room than where not."""

_TPU_INT8_TOKEN = 3820
"""Bytes over all devices that a TPU's steps need for each token of a cache of int8."""

_TPU_CODE = 65 * _MB
"""Of all programs, which stay on a TPU; a GPU's compiler counts none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What is to fit where.

    Attributes:
      machine: a name of ``machines.MACHINES``.
      config: the model.
      weights: one of ``params.WEIGHTS``.
      numerics: the mode.
      kv_cache_dtype: ``auto`` or ``int8``.
      context: tokens of each sequence.
      slots: sequences, each with a whole context of cache; None asks for the most that fit.
    """

    machine: str
    config: Grok1Config
    weights: str = "int8"
    numerics: str = "bf16"
    kv_cache_dtype: str = "auto"
    context: int = 2048
    slots: int | None = None

    @property
    def profile(self) -> MachineProfile:
        """The machine."""
        return find_machine(self.machine)

    def options(self) -> EngineOptions:
        """Options of an engine that decodes so many sequences and can hold all at full length."""
        assert self.slots is not None
        tokens = self.slots * self.padded_context
        return EngineOptions(
            numerics=self.numerics,
            kv_cache_dtype=self.kv_cache_dtype,
            slots=self.slots,
            max_context=self.context,
            block_size=ACCELERATOR_BLOCK,
            # One sequence more than asked for is the least that an engine starts with.
            cache_tokens=max(tokens, self.padded_context + 2 * ACCELERATOR_BLOCK),
        )

    @property
    def padded_context(self) -> int:
        """Tokens of a whole sequence's pages."""
        return -(-self.context // ACCELERATOR_BLOCK) * ACCELERATOR_BLOCK


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """What a question comes to; bytes are those of one device.

    Attributes:
      question: what was asked.
      weights_bytes: the weights.
      limit_bytes: what programs may use.
    """

    question: Question
    weights_bytes: int
    limit_bytes: int

    def cache_bytes(self, slots: int) -> int:
        """Keys and values of so many whole sequences, and the page that nobody owns."""
        q = self.question
        tokens = slots * q.padded_context + ACCELERATOR_BLOCK
        options = EngineOptions(numerics=q.numerics, kv_cache_dtype=q.kv_cache_dtype)
        return tokens * cache_bytes_per_token(q.config, options) // q.profile.devices

    def slots_bytes(self, slots: int) -> int:
        """What else is kept of the slots, spare ones included: state, masks, tables, histories."""
        devices, config = self.question.profile.devices, self.question.config
        held = admitted(slots, devices)
        counts_and_masks = 2 * config.vocab_size + 4 * -(-config.vocab_size // 32)
        tables = counts_and_masks + 8 * MAX_BIASES + 7 * MAX_BAD_WORD_TOKENS
        pages = self.question.padded_context // ACCELERATOR_BLOCK
        history = 4 * self.question.context + 4
        return held // devices * tables + held * (_STATE_BYTES + 4 * pages + history)

    def steps_bytes(self, slots: int) -> int:
        """Temporaries of the hungriest step, and the programs."""
        q = self.question
        platform, generation = q.profile.platform, q.machine.partition("-")[0]
        usual = _STEPS[platform, q.numerics]
        fixed, each = _STEPS.get((generation, q.numerics), usual)
        on_tpu = platform == "tpu"
        if on_tpu and q.kv_cache_dtype == "int8":
            each += _TPU_INT8_TOKEN * q.padded_context / _MB
        temporaries = max(fixed, each * slots) * _MB / q.profile.devices
        return int(temporaries + (_TPU_CODE if on_tpu else 0))

    def peak_bytes(self, slots: int) -> int:
        """All of it."""
        kept = self.weights_bytes + self.cache_bytes(slots) + self.slots_bytes(slots)
        return kept + self.steps_bytes(slots)

    @property
    def max_slots(self) -> int:
        """Most sequences that fit, as many on each device; 0 if the model does not."""
        devices = self.question.profile.devices
        counts = range(MOST_SLOTS // devices * devices, 0, -devices)
        return next((n for n in counts if self.peak_bytes(n) <= self.limit_bytes), 0)

    def told(self, slots: int) -> str:
        """The figures for so many sequences, as ``grok1 fit`` shows them."""
        figures = {
            f"{self.question.weights} weights take": self.weights_bytes,
            f"{slots} sequences of {self.question.context} tokens": self.cache_bytes(slots),
            "the steps": self.slots_bytes(slots) + self.steps_bytes(slots),
        }
        shown = [f"{what} {size / _GIB:.2f}" for what, size in figures.items()]
        return f"of {self.limit_bytes / _GIB:.2f} GiB a device, " + ", ".join(shown)


def room_for(question: Question) -> Room:
    """The room that a machine has for a model."""
    machine = question.profile
    return Room(
        question=question,
        weights_bytes=held_weights_bytes(
            question.config, question.weights, question.numerics, machine.devices
        ),
        limit_bytes=machine.usable_bytes,
    )


def held_weights_bytes(config: Grok1Config, weights: str, numerics: str, devices: int) -> int:
    """Bytes of the weights that one accelerator of ``devices`` holds.

    Args:
      config: the model.
      weights: one of ``params.WEIGHTS``.
      numerics: the mode: it decides what is rounded before it is kept.
      devices: that share them.
    """
    operand = 4 if numerics == "float32" else 2
    declared = declare(config, weights)
    total = 0
    for param in declared.values():
        copies = config.num_layers if param.per_layer else 1
        total += copies * _held(param.part(devices), operand, numerics == "release")
    # The head is the embedding as it enters a product.
    return total + operand * math.prod(declared["embedding"].part(devices).shape)


def _held(part: Param, operand: int, rounds: bool) -> int:
    size = math.prod(part.shape)
    if part.quantized:
        halves, scale = (1, 2) if part.stored == "int4" else (2, 4)
        return size * halves // 2 + scale * math.prod(part.scales_shape)
    narrow = part.stored != "float32" or (part.name == "embedding" and rounds)
    return size * (operand if narrow else 4)
