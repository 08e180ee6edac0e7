"""What would run if it were unpickled is refused, and has not run."""

import copyreg
import os
import pickle

import numpy as np
import pytest

from model.checkpoint.pickle_read import UnsafePickle
from schemas.error import SetupError
from tests.model.pickles import INT8, QUANTIZED, array_with, locate, named, text


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def evil_pickles(command: str) -> dict[str, tuple[bytes, str]]:
    """Pickles that run the command, each with what its refusal must name."""
    run = text(command) + b"\x85R"
    return {
        "GLOBAL": (b"cposix\nsystem\n" + run + b".", "posix.system"),
        "GLOBAL os": (b"cos\nsystem\n" + run + b".", "os.system"),
        "STACK_GLOBAL": (b"\x80\x04" + named("posix", "system") + run + b".", "posix.system"),
        "dotted": (
            b"\x80\x04" + named("numpy", "os.system") + run + b".",
            r"numpy.os.system",
        ),
        "dotted below an allowed name": (
            b"\x80\x04" + named("numpy.core.multiarray", "_reconstruct.__class__") + b".",
            "_reconstruct.__class__",
        ),
        "eval": (
            b"\x80\x04"
            + named("builtins", "eval")
            + text(f"__import__('os').system({command!r})")
            + b"\x85R.",
            "builtins.eval",
        ),
        "INST": (b"(" + text(command) + b"iposix\nsystem\n.", "posix.system"),
        "OBJ": (b"(cposix\nsystem\n" + text(command) + b"o.", "posix.system"),
        "NEWOBJ": (
            b"\x80\x04" + named("subprocess", "Popen") + text(command) + b"\x85\x81.",
            "subprocess.Popen",
        ),
        "NEWOBJ_EX": (
            b"\x80\x04" + named("subprocess", "Popen") + text(command) + b"\x85}\x92.",
            "subprocess.Popen",
        ),
        "memo": (
            b"\x80\x04"
            + text("system")
            + b"r\x00\x10\x00\x000"
            + text("posix")
            + b"j\x00\x10\x00\x00\x93"
            + run
            + b".",
            "POP",
        ),
        "memo without POP": (
            b"\x80\x04"
            + text("posix")
            + b"\x94"
            + text("system")
            + b"\x93q\x05"
            + text(command)
            + b"\x85R.",
            "posix.system",
        ),
        "__setstate__": (
            b"\x80\x04"
            + named("__main__", "QuantizedWeight8bit")
            + b")\x81}("
            + text("__setstate__")
            + named("posix", "system")
            + b"ub"
            + text(command)
            + b"b.",
            "posix.system",
        ),
        "EXT1": (b"\x80\x02\x82\xf0" + run + b".", "extension 240"),
        "EXT2": (b"\x80\x02\x83\xf0\x00" + run + b".", "extension 240"),
        "EXT4": (b"\x80\x02\x84\xf0\x00\x00\x00" + run + b".", "extension 240"),
        "object array": (pickle.dumps(np.array([Evil(command)], object), 4), "dtype 'O8'"),
        "in a shape": (array_with(shape=named("posix", "system") + run), "posix.system"),
        "as a dtype": (array_with(dtype=named("posix", "system") + run), "posix.system"),
        "as payload": (array_with(payload=named("posix", "system") + run), "posix.system"),
        "before the array": (
            named("posix", "system") + run + b"0" + array_with(),
            "posix.system",
        ),
        "Evil": (pickle.dumps(Evil(command)), "system"),
        "Evil scales": (
            pickle.dumps({"weight": INT8, "scales": Evil(command)}, 4),
            "posix.system",
        ),
    }


@pytest.mark.parametrize("case", evil_pickles(""))
def test_nothing_runs_and_the_refusal_names_it(case, tmp_path, quantized_class):
    marker = tmp_path / "ran"
    data, names = evil_pickles(f"touch {marker}")[case]
    with pytest.raises(UnsafePickle, match=names) as caught:
        locate(data)
    assert not marker.exists()
    assert isinstance(caught.value, SetupError)
    assert str(caught.value).startswith("tensor00007_000 asks to ")
    assert "nothing in it was run" in str(caught.value)


_HARMLESS_TO_PYTHON = {"NEWOBJ", "NEWOBJ_EX", "dotted", "dotted below an allowed name"}


@pytest.mark.parametrize("case", sorted(set(evil_pickles("")) - _HARMLESS_TO_PYTHON))
def test_these_pickles_are_really_hostile(case, tmp_path, quantized_class):
    """Else the test before would prove nothing."""
    marker = tmp_path / "ran"
    data, _ = evil_pickles(f"touch {marker}")[case]
    copyreg.add_extension("posix", "system", 240)
    try:
        pickle.loads(data)
    except (TypeError, ValueError, pickle.UnpicklingError):
        pass  # after the command has run
    finally:
        copyreg.remove_extension("posix", "system", 240)
        copyreg.clear_extension_cache()
    assert marker.exists()


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"Pevil\n.", "opcode PERSID"),
        (b"\x80\x04" + text("evil") + b"Q.", "opcode BINPERSID"),
        (QUANTIZED + b")R.", "call __main__.QuantizedWeight8bit"),
        (QUANTIZED + b"K\x01\x85\x81.", "make an object of __main__.QuantizedWeight8bit"),
        (QUANTIZED + b")}\x92.", "opcode NEWOBJ_EX"),
        (QUANTIZED + b")\x81}(" + text("__class__") + b"Nub.", "attribute '__class__'"),
        (QUANTIZED + b")\x81" + text("state") + b"b.", "state of a Quantized"),
        (QUANTIZED + b")\x81N}\x86b.", "state of a Quantized"),
        (b"(i__main__\nQuantizedWeight8bit\n.", "opcode INST"),
        (b"(" + QUANTIZED + b"o.", "opcode OBJ"),
        (named("numpy", "ndarray") + b"(K\x01ltR.", "opcode LIST"),
        (named("numpy", "ndarray") + b")\x81.", "make an object of numpy.ndarray"),
        (named("numpy", "ndarray") + b")R.", "call numpy.ndarray"),
        (named("numpy", "dtype") + b"K\x01\x85R.", "call numpy.dtype"),
        (named("numpy", "dtype") + text("O") + b"\x85R.", "dtype 'O'"),
        (named("numpy", "dtype") + text("9999999f8,f8") + b"\x85R.", "dtype '9999999f8,f8'"),
        (named("_codecs", "encode") + text("x") + text("rot13") + b"\x86R.", "call _codecs.encode"),
        (named("_codecs", "decode") + b".", "_codecs.decode"),
        (named("numpy.core.multiarray", "fromfile") + b".", "numpy.core.multiarray.fromfile"),
        (text("x") + b"\x85b.", "something|sense"),
        (b"N)b.", "state of a NoneType"),
        (named("numpy", "dtype") + b"}b.", "state of numpy.dtype"),
        (b"K\x01(" + text("a") + b"Nu.", "set items"),
        (b"}(K\x01Nu.", "set items"),
        (b"\x8f.", "opcode EMPTY_SET"),
        (b"\x97.", "opcode NEXT_BUFFER"),
        (named("evil\n\x1b[31m", "x" * 200) + b".", r"load evil\\n\\x1b\[31m\.xxx"),
    ],
)
def test_refusals_by_name(data, names):
    with pytest.raises(SetupError, match=names) as caught:
        locate(data)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()
