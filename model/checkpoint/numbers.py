"""A weight as plain numbers, output by output, as formats of PyTorch's kind store it."""

from collections.abc import Iterator

import numpy as np

from model.checkpoint.base import HostTensor
from model.params import Param

_BLOCK_NUMBERS = 4 << 20
"""Numbers of one block of rows; of float32, 16 MiB."""


def stored_shape(param: Param) -> tuple[int, ...]:
    """[..., out, in] of a product's weight, and the shape itself of the embedding and norms."""
    if _transposed(param):
        return (*param.shape[:-2], param.shape[-1], param.shape[-2])
    return param.shape


def numbers(param: Param, host: HostTensor, expert: int | None = None) -> Iterator[np.ndarray]:
    """The numbers of a tensor in ``stored_shape``'s order, a block of whole rows at a time.

    Integers are multiplied by their scales. What is held in memory is one block.

    Args:
      param: the tensor's declaration.
      host: its values.
      expert: only this one's; by default all, one after another.

    Yields:
      [rows, in] float32; for norms [D].
    """
    values, scales = host.values, host.scales
    if values.ndim == 3 and expert is None:
        for each in range(len(values)):
            yield from numbers(param, host, each)
        return
    if expert is not None:
        values, scales = values[expert], None if scales is None else scales[expert]
    if not _transposed(param):
        if values.ndim == 1:
            yield values.astype(np.float32)
            return
        for block in _blocks(*values.shape):
            yield values[block].astype(np.float32)
        return
    inputs, outputs = values.shape
    for block in _blocks(outputs, inputs):
        columns = values[:, block].astype(np.float32)
        if scales is not None:
            groups = columns.reshape(len(scales), -1, columns.shape[1])
            columns = (groups * scales[:, None, block].astype(np.float32)).reshape(columns.shape)
        yield np.ascontiguousarray(columns.T)


def _transposed(param: Param) -> bool:
    """The embedding is stored [V, D] by all: it is looked up by row."""
    return len(param.shape) > 1 and param.name != "embedding"


def _blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK_NUMBERS // width)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
