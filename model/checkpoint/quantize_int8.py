"""Finds the int8 weights of which a port's numbers were made.

The ports hold integer x scale, rounded to the port's dtype. Where all numbers of a scale group are
integers from -127 to 127 times one bfloat16 scale, so rounded, those integers and that scale are
taken: they give the port's numbers back bit for bit. Else the group's largest number becomes 127,
and the others are rounded.
"""

import dataclasses
import os
import threading

import ml_dtypes
import numpy as np

from model.checkpoint import files

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_LIMIT = 127
_PROBE = 64
"""Numbers of a group that a scale is tried on before it is tried on all: where there is no exact
scale, this decides it at a fraction of the cost."""

_CHUNK = 1 << 20
"""Numbers that a thread works on at once."""


@dataclasses.dataclass
class Recovery:
    """How many scale groups were given back exactly.

    Attributes:
      groups: all.
      exact: those whose integers and scale give the numbers that were read, bit for bit.
    """

    groups: int = 0
    exact: int = 0
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    def add(self, exact: np.ndarray) -> None:
        """Counts groups; called by several threads."""
        with self._lock:
            self.groups += exact.size
            self.exact += int(exact.sum())


def quantize_int8(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers and scales of groups of numbers.

    Args:
      numbers: [groups, R] in bfloat16, float16 or float32.

    Returns:
      int8 [groups, R], bfloat16 scales [groups], and whether each group is exact, bool [groups].
    """
    count, size = numbers.shape
    values = np.empty(numbers.shape, np.int8)
    scales = np.empty(count, _BFLOAT16)
    exact = np.empty(count, bool)
    step = max(1, _CHUNK // size)

    def work(at: int) -> None:
        own = slice(at, at + step)
        values[own], scales[own], exact[own] = _chunk(numbers[own])

    files.in_parallel(work, range(0, count, step), os.cpu_count() or 1)
    return values, scales, exact


def _chunk(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    wide = numbers.astype(np.float32)
    largest = np.abs(wide).max(1)
    scales, exact = _exact_scales(wide, largest, numbers.dtype)
    inexact = ~exact & (largest > 0)
    fitting = _near(largest / _LIMIT)
    fitting = np.where(fitting * _LIMIT < largest, _near(largest / _LIMIT, 1), fitting)
    scales[inexact] = fitting[inexact]
    exact |= largest == 0
    values = np.clip(np.rint(wide / scales[:, None]), -_LIMIT, _LIMIT)
    return values.astype(np.int8), scales.astype(_BFLOAT16), exact


def _exact_scales(
    wide: np.ndarray, largest: np.ndarray, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Scales that give groups back, and for which groups there is one; 1 for the others.

    The largest number of a group is some integer times the scale, mostly 127. That leaves a few
    scales to try for each integer, since the number was rounded.
    """
    scales, exact = np.ones(len(wide), np.float32), np.zeros(len(wide), bool)
    probe = wide[:, :: -(-wide.shape[1] // _PROBE)]
    left = np.flatnonzero(largest > 0)
    tried = ((top, step) for top in range(_LIMIT, _LIMIT // 2, -1) for step in (0, -1, 1))
    for top, step in tried:
        if not left.size:
            break
        scale = _near(largest[left] / top, step)
        likely = np.flatnonzero(_gives_back(probe[left], scale, dtype))
        found = likely[_gives_back(wide[left[likely]], scale[likely], dtype)]
        scales[left[found]], exact[left[found]] = scale[found], True
        left = np.delete(left, found)
    return scales, exact


def _gives_back(wide: np.ndarray, scale: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Which groups [n, R] are integers times these scales [n], rounded to the dtype."""
    integers = np.rint(wide / scale[:, None])
    again = (integers * scale[:, None]).astype(dtype).astype(np.float32)
    return ((again == wide) & (np.abs(integers) <= _LIMIT)).all(1)


def _near(sizes: np.ndarray, step: int = 0) -> np.ndarray:
    """The bfloat16 number nearest to each positive size, or one so many steps above it."""
    nearest = sizes.astype(_BFLOAT16).view(np.uint16).astype(np.int32)
    # The least positive number stands in for zero, which is no scale.
    return np.maximum(nearest + step, 1).astype(np.uint16).view(_BFLOAT16).astype(np.float32)
