"""Makes 4-bit weights of 8-bit ones: for each few rows the scale that loses least.

A group's weights are written as integers from -8 to 7 times one scale. The scale may be negative,
so that whichever sign the largest weight has, it can be -8 times it: of the 16 levels none is lost.
Of all scales with five significant bits about that one, the one with the least squared error is
taken: clipping one weight often costs less than coarser steps for all. Five bits, since such a
scale times such an integer is exact in bfloat16, so that a product may scale the weights first or
last. ``bench/quality.py`` compares this with other ways.
"""

import os
from typing import Any

import ml_dtypes
import numpy as np

from model.checkpoint import files
from model.checkpoint.base import HostTensor
from model.params import Param

_LOW, _HIGH = -8, 7
_SIGNIFICANT_BITS = 5
_OCTAVE = 1 << _SIGNIFICANT_BITS - 1
"""Scales between a power of two and the next."""

_LEAST = 0.75
"""The smallest scale tried, relative to that at which the largest weight is just -8."""

_TRIED = 13
"""Scales tried: up to 1.2 times that at least. Beyond either end none has been seen to win."""

_COLUMNS = 4096
"""Worked on at once: few enough that a group's stay in a core's own memory."""


def quantize_int4(host: HostTensor, param: Param) -> HostTensor:
    """4-bit values and scales of an int8 weight, or of a device's part of one.

    Args:
      host: values [..., in, out] int8, scales [..., G, out].
      param: the declaration of the result: of the same shape, with a multiple of G groups.
    """
    whole, given = host.values, host.scales
    assert given is not None
    old, new = given.shape[-2], param.groups
    *lead, rows, out = whole.shape
    values = np.empty(whole.shape, ml_dtypes.int4)
    scales = np.empty(param.scales_shape, ml_dtypes.bfloat16)

    def work(job: tuple[tuple[int, ...], int, int]) -> None:
        matrix, group, start = job
        columns = slice(start, start + _COLUMNS)
        own = slice(group * rows // new, (group + 1) * rows // new)
        at: tuple[Any, ...] = (*matrix, own, columns)
        of: tuple[Any, ...] = (*matrix, group, columns)
        scale = given[(*matrix, group * old // new, columns)].astype(np.float32)
        values[at], scales[of] = _best(whole[at] * scale)

    starts = range(0, out, _COLUMNS)
    jobs = [
        (m, group, start) for m in np.ndindex(*lead) for group in range(new) for start in starts
    ]
    files.in_parallel(work, jobs, os.cpu_count() or 1)
    return HostTensor(values, scales)


def _best(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The integers [rows, out] and scales [out] of one group's weights, float32 [rows, out]."""
    place = np.abs(weights).argmax(0)
    largest = np.take_along_axis(weights, place[None], 0)[0] / _LOW
    largest[largest == 0] = 1  # a group of zeros has no scale; any will do
    first = _index(np.abs(largest) * np.float32(_LEAST))
    least = np.full(largest.shape, np.inf, np.float32)
    chosen = np.empty_like(largest)
    work = np.empty_like(weights)
    for step in range(_TRIED):
        scale = np.copysign(_scale(first + step), largest)
        _round(weights, scale, work)
        work *= scale
        work -= weights
        work *= work
        error = work.sum(0)
        better = error < least
        least[better], chosen[better] = error[better], scale[better]
    return _round(weights, chosen, work).astype(np.int8), chosen


def _round(weights: np.ndarray, scale: np.ndarray, out: np.ndarray) -> np.ndarray:
    np.multiply(weights, 1 / scale, out=out)
    np.rint(out, out=out)
    return np.clip(out, _LOW, _HIGH, out=out)


def _index(size: np.ndarray) -> np.ndarray:
    """The number, in rising order, of the last scale that is no greater than a positive size."""
    fraction, exponent = np.frexp(size)
    return exponent.astype(np.int32) * _OCTAVE + (fraction * (2 * _OCTAVE)).astype(np.int32)


def _scale(index: np.ndarray) -> np.ndarray:
    """The scale of a number; see ``_index``."""
    exponent, significand = np.divmod(index - _OCTAVE, _OCTAVE)
    return np.ldexp((significand + _OCTAVE).astype(np.float32), exponent - _SIGNIFICANT_BITS)
