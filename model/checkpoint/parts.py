"""A tensor's equal parts along one axis, one for each device, read without the whole in between."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from model.checkpoint import files
from model.checkpoint.location import ArrayLocation

_LEAST_RUN = 1 << 20
"""Shorter runs of bytes are not worth a request of their own."""

_THREADS = 8

ReadInto = Callable[[int, np.ndarray], None]
"""Fills a uint8 array with a file's bytes from an offset on."""


def read_parts(
    read: ReadInto, array: ArrayLocation, axis: int, count: int, wanted: Sequence[int]
) -> Iterator[np.ndarray]:
    """The wanted ones of ``count`` equal parts of an array along an axis, in C order each.

    Where a part lies in long runs, only its own bytes are read, part after part as they are asked
    for. Else all parts are read at once, row block by row block, so that they are in memory
    together, and nothing beside them.

    Args:
      read: reads the array's file.
      array: where it lies; ``sliceable``.
      axis: the axis to cut, of a length that ``count`` divides.
      count: number of parts.
      wanted: which of them, from 0 to ``count - 1``.
    """
    shape = list(array.shape)
    shape[axis] //= count
    axis = 0 if count == 1 else axis
    lines = math.prod(shape[:axis])
    run = math.prod(shape[axis:]) * array.dtype.itemsize

    def view(part: np.ndarray) -> np.ndarray:
        return part.view(array.dtype).reshape(shape)

    if run < _LEAST_RUN and lines > 1:
        parts = _scatter(read, array.offset, lines, run, count, wanted)
        while parts:  # none is kept here once it is handed over
            yield view(parts.pop(0))
        return
    for index in wanted:
        part = files.empty(lines * run)
        starts = [array.offset + (line * count + index) * run for line in range(lines)]
        _fill(read, starts, part.reshape(lines, run))
        yield view(part)


def _fill(read: ReadInto, starts: Sequence[int], runs: np.ndarray) -> None:
    """Reads each row of ``runs`` from its offset, long ones by several requests."""
    cuts = range(0, runs.shape[1], files.RANGE_BYTES)
    jobs = [(line, at) for line in range(len(runs)) for at in cuts]

    def fill(job: tuple[int, int]) -> None:
        line, at = job
        read(starts[line] + at, runs[line, at : at + files.RANGE_BYTES])

    files.in_parallel(fill, jobs, _THREADS)


def _scatter(
    read: ReadInto, offset: int, lines: int, run: int, count: int, wanted: Sequence[int]
) -> list[np.ndarray]:
    """Reads lines that hold a run of each part, and hands the runs out."""
    parts = [files.empty(lines * run) for _ in wanted]
    step = max(1, files.RANGE_BYTES // (run * count))

    def hand_out(first: int) -> None:
        size = min(step, lines - first)
        block = np.empty(size * count * run, np.uint8)
        read(offset + first * count * run, block)
        pieces = block.reshape(size, count, run)
        for part, index in zip(parts, wanted, strict=True):
            part.reshape(lines, run)[first : first + size] = pieces[:, index]

    files.in_parallel(hand_out, range(0, lines, step), _THREADS)
    return parts
