"""What a template may make by filters, methods and operators: told before it is made."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pipeline.template_values import MAX_BITS, MAX_SIZE, NotPure, size_of

SPEC = re.compile(r"(.*)", re.DOTALL)
"""Of ``str.format``: all of a specification."""

_PERCENT = re.compile(r"%(?:\([^)]*\))?([-#0 +]*[\d*]*(?:\.[\d*]*)?)")

_MAX_WIDTH = 1000
_WIDENS = frozenset(
    [
        "center",
        "indent",
        "ljust",
        "rjust",
        "zfill",
        "expandtabs",
        "to_bytes",
        "batch",
        "slice",
        "tojson",
    ]
)


def check_room(name: str, args: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Refuses what would be too large to be made, before it is.

    Args:
      name: of the filter, the method or the operator.
      args: what it gets; first the value itself.
      options: by name.

    Raises:
      NotPure: it would be.
    """
    if name in _WIDENS:
        numbers = (len(arg) if isinstance(arg, str) else arg for arg in args[1:])
        for width in (*numbers, *options.values()):
            if isinstance(width, int) and abs(width) > _MAX_WIDTH:
                raise NotPure(f"{name} is given {width}; the most is {_MAX_WIDTH}")
    if name == "**":
        _check_power(*args)
    elif name in _SIZES and _SIZES[name](args, list(options.values())) > MAX_SIZE:
        raise NotPure(f"what {name} makes is too large")


def check_widths(text: str, pattern: "re.Pattern[str]") -> None:
    """Refuses widths and precisions above what a text has use for."""
    for found in pattern.finditer(text):
        for width in re.findall(r"\*|\d+", found.group(1)):
            if width == "*" or int(width) > _MAX_WIDTH:
                raise NotPure(f"a width of {width} is more than {_MAX_WIDTH}")


def _check_power(base: Any, power: Any) -> None:
    both = isinstance(base, int) and isinstance(power, int)
    if both and abs(base) > 1 and base.bit_length() * power > MAX_BITS:
        raise NotPure("a power is too long to be written")


def _product(args: Sequence[Any], _: Sequence[Any]) -> int:
    left, right = args if isinstance(args[1], int) else (args[1], args[0])
    return len(left) * right if _sized(left) and isinstance(right, int) else 0


def _joined(args: Sequence[Any], options: Sequence[Any]) -> int:
    size = len(args[0]) * len(args[1]) if len(args) > 1 and all(map(_sized, args[:2])) else 0
    return max(size, *map(len, _texts(options)), 0)


def _replaced(args: Sequence[Any], _: Sequence[Any]) -> int:
    if len(args) < 3 or not all(isinstance(arg, str) for arg in args[:3]):
        return 0
    return args[0].count(args[1]) * len(args[2])


def _spread(at: str) -> Callable[[Sequence[Any], Sequence[Any]], int]:
    """Of what puts spaces wherever ``at`` stands."""

    def size(args: Sequence[Any], options: Sequence[Any]) -> int:
        if not args:
            return 0
        numbers = (arg for arg in (*args[1:], *options) if isinstance(arg, int))
        return (str(args[0]).count(at) + 1) * max(numbers, default=8)

    return size


def _formatted(args: Sequence[Any], options: Sequence[Any]) -> int:
    if not args or not isinstance(args[0], str):
        return 0
    check_widths(args[0], _PERCENT)
    return args[0].count("%") * size_of([*args[1:], *options])


def _wrapped(args: Sequence[Any], options: Sequence[Any]) -> int:
    return len(args[0]) * max(map(len, _texts((*args[1:], *options))), default=1)


_SIZES: dict[str, Callable[[Sequence[Any], Sequence[Any]], int]] = {
    "*": _product,
    "%": _formatted,
    "format": _formatted,
    "join": _joined,
    "replace": _replaced,
    "indent": _spread("\n"),
    "expandtabs": _spread("\t"),
    "wordwrap": _wrapped,
}
"""What is made of a value by a name -> at most how large that is, by its arguments and options."""


def _texts(values: Iterable[Any]) -> list[str]:
    return [value for value in values if isinstance(value, str)]


def _sized(value: Any) -> bool:
    return hasattr(value, "__len__")
