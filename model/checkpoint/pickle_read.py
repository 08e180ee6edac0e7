"""Finds the arrays inside a pickle without running it and without reading their bytes.

A tensor file of the release is a pickle from the internet. Unpickling runs what a file asks for,
so these are never unpickled: a small interpreter follows the opcodes that Python writes for arrays
(protocols 2 to 5, NumPy 1 and 2) over inert stand-ins and refuses everything else by name. What it
yields is where each array's bytes lie.
"""

import pickletools
from collections.abc import Callable
from typing import Any

from model.checkpoint import pickle_allowed as allowed
from model.checkpoint.location import ArrayLocation, TensorLocation
from schemas.error import SetupError

_MAX_OPCODES = 400
"""A quantised tensor takes about 90; this also bounds what a hostile file can nest."""

_MAX_TEXT = 256
_WINDOW = 4096

_OPCODES = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}

_TEXT = {"SHORT_BINUNICODE": 1, "BINUNICODE": 4, "BINUNICODE8": 8}
_BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}
"""Bytes of the length that stands before the payload."""

_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class UnsafePickle(SetupError):
    """A tensor file that asks for something beyond arrays; nothing of it was run."""


def locate_arrays(read: Callable[[int, int], bytes], size: int, where: str) -> TensorLocation:
    """Finds the arrays of a tensor file.

    Args:
      read: gives the file's bytes ``[start, stop)``; called for a few small windows.
      size: of the file, in bytes.
      where: how messages call the file.

    Raises:
      UnsafePickle: the file asks for anything but arrays; the message names what.
      SetupError: it is cut short, has bytes to spare, or is no pickle of an array.
    """
    machine = _Machine(_Cursor(read, size))
    try:
        return machine.run()
    except allowed.Refused as refused:
        raise UnsafePickle(
            f"{where} asks to {refused}, which no tensor file needs; nothing in it was run: "
            "get the file anew, from a source that you trust"
        ) from None
    except allowed.Malformed as fault:
        reason = str(fault)
    except (IndexError, KeyError):  # an empty stack, no mark, nothing under that number
        reason = f"its opcodes make no sense near byte {machine.cursor.at}"
    raise SetupError(f"{where} is not readable as a tensor: {reason}; get the file anew")


class _Cursor:
    """Walks through a file in small windows; payloads are stepped over, unread."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self.at = 0
        self.size = size
        self._read = read
        self._window = b""
        self._window_at = 0

    def take(self, count: int) -> bytes:
        start = self.skip(count).offset
        if not self._window_at <= start <= self.at <= self._window_at + len(self._window):
            self._window_at = start
            self._window = self._read(start, min(self.size, start + max(count, _WINDOW)))
        return self._window[start - self._window_at : self.at - self._window_at]

    def skip(self, count: int) -> allowed.Payload:
        if count > self.size - self.at:
            raise allowed.Malformed(
                f"it ends at byte {self.size}, before the {count} that byte {self.at} announces"
            )
        self.at += count
        return allowed.Payload(self.at - count, count)

    def integer(self, width: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(width), "little", signed=signed)

    def text(self, length: int) -> allowed.Text:
        payload = self.skip(length)
        text = allowed.Text()
        if length <= _MAX_TEXT:
            self.at = payload.offset
            text = allowed.Text(self.take(length), "utf-8", "replace")
        text.payload = payload
        return text

    def line(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            if len(line) > _MAX_TEXT:
                raise allowed.Malformed(f"a name in it has more than {_MAX_TEXT} bytes")
            line += self.take(1)
        return line[:-1].decode(errors="replace")


class _Machine:
    """The pickle machine, less everything that could run."""

    def __init__(self, cursor: _Cursor) -> None:
        self.cursor = cursor
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> TensorLocation:
        for _ in range(_MAX_OPCODES):
            opcode = _OPCODES.get(self.cursor.take(1))
            if opcode is None:
                raise allowed.Malformed(f"byte {self.cursor.at - 1} is no pickle opcode")
            if opcode == "STOP":
                return self._result()
            self._step(opcode)
        raise allowed.Malformed(f"it has more than {_MAX_OPCODES} opcodes")

    def _step(self, opcode: str) -> None:
        cursor, stack, memo = self.cursor, self._stack, self._memo
        match opcode:
            case "PROTO":
                cursor.skip(1)
            case "FRAME":
                cursor.skip(8)
            case "MARK":
                self._marks.append(len(stack))
            case "BININT1" | "BININT2":
                stack.append(cursor.integer(int(opcode[-1])))
            case "BININT":
                stack.append(cursor.integer(4, signed=True))
            case _ if opcode in _CONSTANTS:
                stack.append(_CONSTANTS[opcode])
            case _ if opcode in _TEXT:
                stack.append(cursor.text(cursor.integer(_TEXT[opcode])))
            case _ if opcode in _BYTES:
                stack.append(cursor.skip(cursor.integer(_BYTES[opcode])))
            case _ if opcode in _TUPLES:
                stack.append(tuple(self._pop(_TUPLES[opcode])))
            case "TUPLE":
                stack.append(tuple(self._pop_to_mark()))
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                self._fill(self._pop(2))
            case "SETITEMS":
                self._fill(self._pop_to_mark())
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                memo[cursor.integer(1 if opcode == "BINPUT" else 4)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[cursor.integer(1 if opcode == "BINGET" else 4)])
            case "GLOBAL":
                stack.append(allowed.find(cursor.line(), cursor.line()))
            case "INST":
                found = allowed.find(cursor.line(), cursor.line())
                raise allowed.Refused(f"make an object of {found.value} by opcode INST")
            case "STACK_GLOBAL":
                stack.append(allowed.find(*self._pop(2)))
            case "NEWOBJ":
                stack.append(allowed.new(*self._pop(2)))
            case "REDUCE":
                stack.append(allowed.call(*self._pop(2)))
            case "BUILD":
                target, state = self._pop(2)
                allowed.set_state(target, state)
                stack.append(target)
            case "EXT1" | "EXT2" | "EXT4":
                code = cursor.integer(int(opcode[-1]))
                raise allowed.Refused(f"load extension {code} by opcode {opcode}")
            case _:
                raise allowed.Refused(f"run opcode {opcode}")

    def _result(self) -> TensorLocation:
        if rest := self.cursor.size - self.cursor.at:
            raise allowed.Malformed(f"{rest} bytes follow its end")
        match self._stack:
            case [allowed.Array(location=ArrayLocation() as values)]:
                return TensorLocation(values)
            case [
                allowed.Quantized(
                    weight=allowed.Array(location=ArrayLocation() as values),
                    scales=allowed.Array(location=ArrayLocation() as scales),
                )
            ]:
                return TensorLocation(values, scales)
        raise allowed.Malformed("it ends with something else than one tensor")

    def _pop(self, count: int) -> list[Any]:
        start = len(self._stack) - count
        if start < (self._marks[-1] if self._marks else 0):
            raise IndexError
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        return self._pop(len(self._stack) - self._marks.pop())

    def _fill(self, items: list[Any]) -> None:
        target = self._stack[-1]
        for name, value in zip(items[::2], items[1::2], strict=False):
            if not isinstance(target, dict) or not isinstance(name, str):
                raise allowed.Refused("set items of something else than attributes")
            target[name] = value
