"""Reads a checkpoint as if its matrices were stored as something else."""

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from model.checkpoint.base import Checkpoint, HostTensor, ReadParts
from model.checkpoint.huggingface import HuggingFaceCheckpoint
from model.checkpoint.quantize_int4 import quantize_int4
from model.params import Param, Tensor, declare
from schemas.error import SetupError

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def read_as(checkpoint: Checkpoint, weights: str) -> ReadParts:
    """A ``read_parts`` for tensors as ``declare(config, weights)`` declares them.

    4-bit weights and numbers are made of 8-bit ones, a port's numbers taken as they are. All that a
    device's part is made of is in the same part of what is read.

    Args:
      checkpoint: what is read.
      weights: one of ``params.WEIGHTS``.

    Raises:
      SetupError: these cannot be made of what it holds.
    """
    declared = declare(checkpoint.config, checkpoint.weights)
    if weights == checkpoint.weights:
        return checkpoint.read_parts
    if weights == "bf16" and isinstance(checkpoint, HuggingFaceCheckpoint):
        return checkpoint.as_numbers().read_parts
    if checkpoint.weights != "int8":
        raise SetupError(
            f"{checkpoint.url} holds {checkpoint.weights} weights, of which no {weights} ones are "
            "made: start from the checkpoint that they were made of"
        )

    def read(tensor: Tensor, count: int) -> Iterator[HostTensor]:
        source, part = declared[tensor.param.name], tensor.param.part(count)
        for host in checkpoint.read_parts(Tensor(source, tensor.layer), count):
            yield host if source == tensor.param else _recode(host, part)

    return read


def _recode(host: HostTensor, param: Param) -> HostTensor:
    if param.stored == "int4":
        return quantize_int4(host, param)
    return HostTensor(dequantize(host))


def dequantize(host: HostTensor) -> np.ndarray:
    """[..., in, out] bfloat16: each integer times its group's scale, rounded once."""
    assert host.scales is not None
    *lead, rows, _ = host.values.shape
    groups = host.scales.shape[-2]
    numbers = np.empty(host.values.shape, _BFLOAT16)
    for index in np.ndindex(*lead, groups):  # group by group, so that no float32 copy is made
        *of, group = index
        at = (*of, slice(group * rows // groups, (group + 1) * rows // groups))
        scale = host.scales[index].astype(np.float32)
        numbers[at] = (host.values[at].astype(np.float32) * scale).astype(_BFLOAT16)
    return numbers
