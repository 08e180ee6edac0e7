"""Reads what a compiled step does from its HLO text."""

import math
import re
from collections import Counter

LAYER = "layer"
"""The scope whose name the compiler keeps with all that a layer of a loop does."""

_KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
"""Operations that exchange between devices. An asynchronous one is counted where it starts."""

_OPERATION = re.compile(rf"= .*? ({'|'.join(_KINDS)})(?:-start)?\(.*")
_OF_LAYER = re.compile(rf'op_name="[^"]*/{LAYER}/')


_FLOATS = re.compile(r"\b(?:bf16|f16|f32)\[([\d,]+)\]")
_FUSION = re.compile(r" fusion\(.* calls=%([\w.\-]+)")
_KERNEL = re.compile(
    r"custom_call_target=\"(?:tpu_custom_call|__gpu\$xla\.gpu\.triton)\", "
    r"operand_layout_constraints=\{(.*?)\}, [a-z_]+="
)


def collectives(text: str) -> Counter[str]:
    """How often each kind of exchange stands in a program; loops are not multiplied out."""
    return Counter(match[1] for match in _OPERATION.finditer(text))


def layer_collectives(text: str) -> Counter[str]:
    """The exchanges of one layer, in a program that walks through the layers in a loop."""
    found = _OPERATION.finditer(text)
    return Counter(match[1] for match in found if _OF_LAYER.search(match[0]))


def float_matrices(text: str, shape: tuple[int, ...], groups: int = 1) -> int:
    """How often floating-point arrays that hold a whole matrix stand in a program.

    Whatever other axes they have, and in whichever order: its two axes, or their product, or one or
    both of them times the matrices that lie together, or its scale groups.

    Args:
      text: of the program, or of the part of it that ``held`` gives.
      shape: [..., in, out] of the matrices that lie together.
      groups: of the contracted axis.
    """
    *lead, rows, out = shape
    many = math.prod(lead)
    forms = {
        (rows, out),
        (rows * out,),
        (many * rows, out),
        (rows, many * out),
        (math.prod(shape),),
    }
    wanted = [Counter(form) for form in forms]
    grouped = f",{groups},{rows // groups},{out}"
    found = [match[1] for match in _FLOATS.finditer(text)]
    return sum(
        f",{axes}".endswith(grouped)
        or any(form <= Counter(map(int, axes.split(","))) for form in wanted)
        for axes in found
    )


def held(text: str) -> str:
    """A program without what its fusions do inside, where no array need be in memory."""
    fused = set(_FUSION.findall(text))
    parts = re.split(r"\n(?=(?:ENTRY )?%)", text)
    return "\n".join(p for p in parts if p.partition(" ")[0].lstrip("%") not in fused)


def kernels_on(text: str, shape: tuple[int, ...]) -> int:
    """How often a kernel of our own is called with an array of this shape."""
    operand = f"[{','.join(map(str, shape))}]"
    return sum(operand in match[1] for match in _KERNEL.finditer(text))
