"""Which files a store has and what lies where in them: it follows from config, weights and shards.

A file for each of a layer's expert weights, one for the rest of a layer, one for the embedding. In
each, all that device 0 of ``shards`` holds comes first, then what device 1 holds, and so on, last
what every device holds: a device reads one range of bytes a file.
"""

import dataclasses
import math
import re

import ml_dtypes
import numpy as np

from model.checkpoint.safetensors_header import write_header
from model.config import Grok1Config
from model.params import WEIGHTS, Param, Tensor, indivisible, tensors
from schemas.error import SetupError

SUFFIX = ".safetensors"
FILE = re.compile(r"(embedding|layer-\d{3,}-(gate|up|down|attention))\.safetensors")
SHARDS = (8, 4, 2, 1)
"""Devices that a mesh may have."""

BLOCK_BYTES = 16 << 20
"""Bytes that one checksum covers, and that one request reads."""

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_STORED = {
    "float32": np.dtype("<f4"),
    "bfloat16": _BFLOAT16,
    "int8": np.dtype("i1"),
    "int4": np.dtype("u1"),  # two to a byte, the lower half first
}


@dataclasses.dataclass(frozen=True)
class Piece:
    """One array of a file: the values or the scales that one device holds of a tensor.

    Attributes:
      name: in the file's header.
      tensor: what it is part of.
      index: the device, or None if all hold it.
      field: ``values`` or ``scales``.
      dtype: as stored.
      shape: as stored; of 4-bit values half as long in its last axis.
    """

    name: str
    tensor: Tensor
    index: int | None
    field: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes stored."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def blocks(self) -> range:
        """Where in it the blocks begin that have a checksum each."""
        return range(0, self.nbytes, BLOCK_BYTES)


@dataclasses.dataclass(frozen=True)
class StoreFile:
    """One file of a store.

    Attributes:
      name: within the folder.
      tensors: what it holds.
      pieces: its arrays, in the order of their bytes.
    """

    name: str
    tensors: tuple[Tensor, ...]
    pieces: tuple[Piece, ...]

    @property
    def header(self) -> bytes:
        """What it begins with."""
        return write_header([(piece.name, piece.dtype, piece.shape) for piece in self.pieces])

    @property
    def nbytes(self) -> int:
        """Its size."""
        return len(self.header) + sum(piece.nbytes for piece in self.pieces)


def plan_files(config: Grok1Config, weights: str, shards: int) -> list[StoreFile]:
    """The files of a store.

    Args:
      config: the model's sizes.
      weights: one of ``params.WEIGHTS``.
      shards: devices that the weights are cut for.

    Raises:
      SetupError: the model cannot be cut or stored so.
    """
    if weights not in WEIGHTS:
        raise SetupError(f"--weights must be one of {', '.join(WEIGHTS)}, got {weights!r:.40}")
    if shards not in SHARDS:
        raise SetupError(f"--shards must be one of {', '.join(map(str, SHARDS))}, got {shards}")
    if unfit := indivisible(config, shards):
        raise SetupError(f"--shards {shards}: does not divide {unfit}; give fewer")
    named: dict[str, list[Tensor]] = {}
    for tensor in tensors(config, weights):
        if tensor.param.stored == "int4" and tensor.param.part(shards).shape[-1] % 2:
            raise SetupError(
                f"--weights int4: {tensor.label} has {tensor.param.shape[-1]} columns, which "
                f"{shards} devices cannot hold two to a byte; keep int8"
            )
        named.setdefault(_file_of(tensor), []).append(tensor)
    return [
        StoreFile(name, tuple(held), _pieces(held, shards)) for name, held in sorted(named.items())
    ]


def default_shards(config: Grok1Config) -> int:
    """The most devices, up to 8, that the model can be split over."""
    return next(count for count in SHARDS if not indivisible(config, count))


def _file_of(tensor: Tensor) -> str:
    if tensor.layer is None:
        return f"embedding{SUFFIX}"
    group = tensor.param.name if "experts" in tensor.param.axes else "attention"
    return f"layer-{tensor.layer:03d}-{group}{SUFFIX}"


def _pieces(held: list[Tensor], shards: int) -> tuple[Piece, ...]:
    split = [tensor for tensor in held if tensor.param.split_axis is not None]
    whole = [tensor for tensor in held if tensor.param.split_axis is None]
    pieces = [p for index in range(shards) for t in split for p in _of_tensor(t, index, shards)]
    return (*pieces, *(p for t in whole for p in _of_tensor(t, None, shards)))


def _of_tensor(tensor: Tensor, index: int | None, shards: int) -> list[Piece]:
    part: Param = tensor.param.part(shards)
    end = "" if index is None else f".{index}"
    *lead, last = part.shape
    shape = (*lead, last // 2) if part.stored == "int4" else part.shape
    dtype = _STORED[part.stored]
    if not part.quantized:
        return [Piece(f"{tensor.label}{end}", tensor, index, "values", dtype, shape)]
    return [
        Piece(f"{tensor.label}.values{end}", tensor, index, "values", dtype, shape),
        Piece(f"{tensor.label}.scales{end}", tensor, index, "scales", _BFLOAT16, part.scales_shape),
    ]
