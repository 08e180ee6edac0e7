"""4-bit weights as files hold them."""

import ml_dtypes
import numpy as np

from model.checkpoint import files


def pack_int4(values: np.ndarray) -> np.ndarray:
    """[..., n] integers from -8 to 7 as [..., n / 2] bytes, the first of a pair in the low half."""
    nibbles = values.astype(np.int8).view(np.uint8) & 0xF
    return nibbles[..., 0::2] | nibbles[..., 1::2] << 4


def unpack_int4(packed: np.ndarray) -> np.ndarray:
    """[..., n / 2] bytes as [..., n] 4-bit integers; see ``pack_int4``."""
    *lead, half = packed.shape
    values = files.empty(2 * packed.size).view(np.int8).reshape(*lead, half, 2)
    np.right_shift((packed << 4).view(np.int8), 4, out=values[..., 0])
    np.right_shift(packed.view(np.int8), 4, out=values[..., 1])
    return values.reshape(*lead, 2 * half).view(ml_dtypes.int4)
