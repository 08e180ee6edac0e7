"""What a tensor file may ask for: the names, calls and states that NumPy pickles an array with.

Everything here is a stand-in. Nothing that a file names is imported, nothing that it calls is
called; whatever is not listed is refused by name.

Values from a file are never printed, hashed or compared before their type is known: nested tuples
that share their parts would make each of these take for ever.
"""

import dataclasses
import enum
import math
from typing import Any, Literal

import ml_dtypes
import numpy as np

from model.checkpoint.location import ArrayLocation

_MAX_RANK = 8


class Refused(Exception):
    """The file asks for something beyond arrays; says what."""


class Malformed(Exception):
    """The file is no pickle of an array; says why."""


class Global(enum.Enum):
    """A name that a file may mention."""

    NDARRAY = "numpy.ndarray"
    DTYPE = "numpy.dtype"
    RECONSTRUCT = "numpy.core.multiarray._reconstruct"
    FROM_BUFFER = "numpy.core.numeric._frombuffer"
    ENCODE = "_codecs.encode"
    BFLOAT16 = "ml_dtypes.bfloat16"
    QUANTIZED = "__main__.QuantizedWeight8bit"


_SPELLINGS = {known.value: known for known in Global} | {
    "numpy._core.multiarray._reconstruct": Global.RECONSTRUCT,
    "numpy._core.numeric._frombuffer": Global.FROM_BUFFER,
    "jax.numpy.bfloat16": Global.BFLOAT16,
    "jax._src.numpy.lax_numpy.bfloat16": Global.BFLOAT16,
    "jaxlib.xla_extension.bfloat16": Global.BFLOAT16,
    "model.QuantizedWeight8bit": Global.QUANTIZED,
}

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_DTYPES = {np.dtype(c).str[1:]: np.dtype(c) for c in "?bhilqBHILQefd"}
"""Types other than int8 and float32 only so that a message can say what was found."""

_OF_OBJECTS = 0b11
"""Flags of a dtype whose numbers are pointers."""


@dataclasses.dataclass(frozen=True, slots=True)
class Payload:
    """Bytes of the file, not read; ``latin1`` if they are text that stands for bytes."""

    offset: int
    length: int
    latin1: bool = False


class Text(str):
    """A short text, or an empty one in place of a long one not read; and where it lies."""

    payload: Payload


@dataclasses.dataclass(slots=True, eq=False)
class Array:
    """An array; its location follows with its state."""

    location: ArrayLocation | None = None


@dataclasses.dataclass(slots=True, eq=False)
class Quantized:
    """A ``QuantizedWeight8bit``; its attributes follow with its state."""

    weight: Array | None = None
    scales: Array | None = None


def find(module: Any, name: Any) -> Global:
    """The name that a file mentions."""
    if not (isinstance(module, str) and isinstance(name, str)):
        raise Malformed("a name in it is no text")
    known = _SPELLINGS.get(f"{module}.{name}")
    if known is None:
        raise Refused(f"load {_printable(f'{module}.{name}')}")
    return known


def new(cls: Any, args: Any) -> Quantized:
    """An object of a class, as opcode NEWOBJ asks for it."""
    if cls is not Global.QUANTIZED or not isinstance(args, tuple) or args:
        raise Refused(f"make an object of {_name(cls)}")
    return Quantized()


def call(function: Any, args: Any) -> Any:
    """What a call would have given, as opcode REDUCE asks for it."""
    match function, args:
        case Global.RECONSTRUCT, (Global.NDARRAY, (0,), Payload()):
            return Array()
        case Global.FROM_BUFFER, (
            Payload() as data,
            np.dtype() as dtype,
            shape,
            "C" | "F" as order,
        ):
            return Array(_locate(data, dtype, shape, order))
        case Global.DTYPE, (Global.BFLOAT16, *_):
            return _BFLOAT16
        case Global.DTYPE, (Text(name), *_):
            if name not in _DTYPES:
                raise Refused(f"make an array of dtype '{_printable(name)}'")
            return _DTYPES[name]
        case Global.ENCODE, (Text() as text, "latin1"):
            return dataclasses.replace(text.payload, latin1=True)
        case Global.FROM_BUFFER, (Payload(), np.dtype(), _, Text(order), *_):
            raise Refused(f"store an array in order '{_printable(order)}'")
    raise Refused(f"call {_name(function)} in a way of its own")


def set_state(target: Any, state: Any) -> None:
    """Gives an object its state, as opcode BUILD asks for it."""
    match target, state:
        case np.dtype(), (int(), "<" | "|" | "=", None, None, None, int(), int(), int(flags)):
            if flags & _OF_OBJECTS:
                raise Refused("make an array of Python objects")
        case np.dtype(), (int(), Text(order), *_):
            raise Malformed(f"its numbers are stored in byte order '{_printable(order)}', not '<'")
        case Array(), (int(), shape, np.dtype() as dtype, bool(fortran), Payload() as data):
            target.location = _locate(data, dtype, shape, "F" if fortran else "C")
        case Quantized(), dict():
            for name, value in state.items():
                if name not in ("weight", "scales") or not isinstance(value, Array):
                    raise Refused(f"set attribute '{_printable(name)}' of a tensor")
                setattr(target, name, value)
        case _:
            raise Refused(f"set the state of {_name(target)} in a way of its own")


def _locate(data: Payload, dtype: np.dtype, shape: Any, order: Literal["C", "F"]) -> ArrayLocation:
    if not isinstance(shape, tuple) or len(shape) > _MAX_RANK:
        raise Malformed("an array in it has no proper shape")
    if any(type(n) is not int or n < 0 for n in shape):
        raise Malformed("an array in it has no proper shape")
    need = math.prod(shape) * dtype.itemsize
    # As text, a byte takes one or two.
    if not need <= data.length <= (2 * need if data.latin1 else need):
        raise Malformed(f"{dtype}{list(shape)} takes {need} bytes, it stores {data.length}")
    return ArrayLocation(data.offset, data.length, shape, dtype, order, data.latin1)


def _printable(text: str) -> str:
    return ascii(text)[1:-1][:120]


def _name(value: Any) -> str:
    return value.value if isinstance(value, Global) else f"a {type(value).__name__}"
