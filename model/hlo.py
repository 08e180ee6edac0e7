"""Reads what a compiled step does from its HLO text."""

import re
from collections import Counter

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

_OPERATION = re.compile(rf"= .*? ({'|'.join(_KINDS)})(?:-start)?\(")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_BODY = re.compile(r" while\(.*body=%?([\w.\-]+)")


def collectives(text: str) -> Counter[str]:
    """How often each kind of exchange stands in a program; loops are not multiplied out."""
    return Counter(match[1] for match in _OPERATION.finditer(text))


def layer_collectives(text: str) -> Counter[str]:
    """The exchanges of one layer: those in the innermost loop that has any; empty if none has."""
    computations = _computations(text)
    bodies = {name for lines in computations.values() for name in _BODY.findall("\n".join(lines))}
    inside = {name: _reached(name, computations) for name in bodies}
    found = {
        name: collectives("\n".join(line for part in parts for line in computations[part]))
        for name, parts in inside.items()
    }
    innermost = [
        count
        for name, count in found.items()
        if count and not any(found[other] for other in inside[name] & bodies - {name})
    ]
    return max(innermost, key=lambda count: count.total(), default=Counter())


def _computations(text: str) -> dict[str, list[str]]:
    """Each computation's lines, by its name."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = found[match[1]] = []
        else:
            lines.append(line)
    return found


def _reached(name: str, computations: dict[str, list[str]]) -> set[str]:
    """A computation and all that it calls."""
    reached: set[str] = set()
    waiting = [name]
    while waiting:
        here = waiting.pop()
        if here in reached or here not in computations:
            continue
        reached.add(here)
        for line in computations[here]:
            waiting += _CALLED.findall(line)
            for names in _BRANCHES.findall(line):
                waiting += [part.strip().lstrip("%") for part in names.split(",")]
    return reached
