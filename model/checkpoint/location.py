"""Where a tensor's arrays lie in a file, so that a range can be read without the rest."""

import dataclasses
from typing import Literal

import numpy as np

from schemas.error import SetupError


@dataclasses.dataclass(frozen=True, slots=True)
class ArrayLocation:
    """Where an array's bytes lie in a file.

    Attributes:
      offset: of the first byte; any number, so wide types may be unaligned.
      length: bytes stored.
      shape: of the array.
      dtype: little-endian; bfloat16 is ml_dtypes'.
      order: ``C``, or ``F`` for an array stored with its first axis fastest.
      latin1: the bytes are stored as UTF-8 text of as many characters (pickle protocol 2).
    """

    offset: int
    length: int
    shape: tuple[int, ...]
    dtype: np.dtype
    order: Literal["C", "F"] = "C"
    latin1: bool = False

    def __str__(self) -> str:
        return describe(self.dtype.name, self.shape)

    @property
    def sliceable(self) -> bool:
        """Whether rows lie one after another in the file as they do in memory."""
        return self.order == "C" and not self.latin1

    def rows(self, start: int, stop: int) -> tuple[int, int]:
        """The bytes ``[begin, end)`` of the file that hold rows ``[start, stop)``.

        A row is a line along the last axis; the axes before it count as one, so that row
        ``e * K + k`` of a weight ``[E, K, N]`` is row k of expert e.

        Raises:
          SetupError: the rows do not lie one after another.
        """
        if not self.sliceable:
            kind = "as text" if self.latin1 else "in Fortran order"
            raise SetupError(f"an array stored {kind} cannot be read by rows; read it whole")
        row = self.shape[-1] * self.dtype.itemsize
        return self.offset + start * row, self.offset + stop * row


@dataclasses.dataclass(frozen=True, slots=True)
class TensorLocation:
    """One tensor of a file: an array, or quantised values with their scales."""

    values: ArrayLocation
    scales: ArrayLocation | None = None

    def __str__(self) -> str:
        return f"{self.values}" + (f" with scales {self.scales}" if self.scales else "")


def describe(dtype: str, shape: tuple[int, ...]) -> str:
    """A dtype and shape as messages write them: ``int8[8, 32, 176]``."""
    return f"{dtype}{list(shape)}"
