"""What becomes of an engine whose devices have not enough memory. Imports no JAX by itself."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from model.engine.options import EngineOptions

if TYPE_CHECKING:
    from model.engine.programs import Plan

_SAME = (
    "tile_rows",
    "expert_rows",
    "prefill_rows",
    "prefill_tile_rows",
    "prefill_expert_rows",
    "score_tile_rows",
    "block_size",
)
"""Shapes that a result's bits may depend on. ``tests/reliability/test_memory.py`` holds that they
depend on no other: with these equal, half the slots give the same bits."""


class OutOfMemory(RuntimeError):
    """The devices' memory does not hold what was to be allocated.

    Attributes:
      slots: of the engine.
      half: half of them, if results are the same with these, bit for bit; None if they may not be.
    """

    def __init__(self, slots: int, half: int | None, reason: str) -> None:
        super().__init__(f"the devices' memory does not hold {slots} slots: {reason}")
        self.slots, self.half = slots, half


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device refused an allocation."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def out_of_memory(error: BaseException, plan: "Plan", options: EngineOptions) -> OutOfMemory:
    """The same error, with what would help."""
    slots = plan.shapes.rows
    reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
    return OutOfMemory(slots, _half(plan, options), reason)


@contextlib.contextmanager
def telling(plan: "Plan", options: EngineOptions) -> Iterator[None]:
    """Raises what a device refuses to allocate as ``OutOfMemory``."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise out_of_memory(error, plan, options) from None
        raise


def _half(plan: "Plan", options: EngineOptions) -> int | None:
    # It imports JAX, and whoever submits a job must know the exception.
    from model.engine.plan import make_plan

    slots = plan.shapes.rows // 2
    if slots < max(1, plan.mesh.size):
        return None
    fewer = dataclasses.replace(options, slots=slots)
    shapes = make_plan(plan.config, fewer, plan.mesh, plan.layout).shapes
    same = all(getattr(shapes, name) == getattr(plan.shapes, name) for name in _SAME)
    return slots if same and shapes.rows == slots else None
