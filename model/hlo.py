"""Reads what a compiled step does from its HLO text."""

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


def collectives(text: str) -> Counter[str]:
    """How often each kind of exchange stands in a program; loops are not multiplied out."""
    return Counter(match[1] for match in _OPERATION.finditer(text))


def layer_collectives(text: str) -> Counter[str]:
    """The exchanges of one layer, in a program that walks through the layers in a loop."""
    found = _OPERATION.finditer(text)
    return Counter(match[1] for match in found if _OF_LAYER.search(match[0]))


def float_arrays(text: str, shape: tuple[int, ...]) -> int:
    """How often floating-point arrays [..., *shape] stand in a program, inside fusions too."""
    end = ",".join(map(str, shape))
    return len(re.findall(rf"\b(?:bf16|f16|f32)\[(?:\d+,)*{end}\]", text))
