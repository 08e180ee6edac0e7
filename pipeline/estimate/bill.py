"""A plan's hours and money as a table that is as wide as its figures need, or as there is room."""

import itertools
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.estimate.cost import Cost

_LESS_BY_STEPS = ((), ("prompt\ntokens/s", "tokens\nout/s"), ("device-hours\np50–p90",))
"""Columns that a narrow table leaves out, the first first; ``--json`` has them all."""

_ENOUGH = 1000
"""Characters, more than any table needs."""


def print_bill(console: Console, costs: Sequence[Cost]) -> None:
    """Prints the table, without the columns that there is no room for; no figure is ever cut."""
    less: list[str] = []
    roomy = console.options.update(width=_ENOUGH)  # else a measure ends where the terminal does
    for more in _LESS_BY_STEPS:
        less += more
        table = _bill(costs, less)
        width = console.measure(table, options=roomy).maximum
        if width <= console.width:
            break
    # Wider than the terminal if it must be, which then breaks its lines, but loses nothing.
    table.width = width
    console.print(table, crop=False)
    if less:
        names = ", ".join(" ".join(name.split("\n")) for name in less)
        console.print(Text(f"A wider terminal and --json have: {names}.", "dim"))


def _bill(costs: Sequence[Cost], less: Sequence[str]) -> Table:
    rows = [_row(cost) for cost in costs]
    names = [name for name in dict.fromkeys(itertools.chain(*rows)) if name not in less]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in names:
        left = name in ("machine", "weights")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row.get(name, "") for name in names))
    return table


def _row(cost: Cost) -> dict[str, str | Text]:
    """What is told of a machine, by column."""
    if cost.weights is None:
        return {"machine": cost.machine, "weights": Text("none fit", "dim")}
    return {
        "machine": cost.machine,
        "weights": cost.weights + ("*" if cost.convert else ""),
        "slots": f"{cost.slots:,}",
        "prompt\ntokens/s": short(cost.prefill_rate),
        "tokens\nout/s": short(cost.decode_rate),
        "hours\np50–p90": _range(short(cost.hours_p50), short(cost.hours_p90)),
        "device-hours\np50–p90": _range(short(cost.device_hours_p50), short(cost.device_hours_p90)),
        "US$\np50–p90": _range(money(cost.usd_p50), money(cost.usd_p90)),
    }


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low}–{high}"


def short(value: float) -> str:
    """A figure of three digits or four: ``0.125``, ``1,234``, ``12.3k``, ``1.23M``."""
    if value < 0.01:
        return "< 0.01"
    if value >= 999_950:
        return f"{value / 1e6:,.4g}M"
    if value >= 99_950:
        return f"{value / 1e3:.0f}k"
    if value >= 9999.5:
        return f"{value / 1e3:.1f}k"
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def money(value: float) -> str:
    """A price with two decimals: ``0.05``, ``108,904.12``, ``1.23M``."""
    if value < 0.005:
        return "< 0.01"
    return f"{value:,.2f}" if value < 999_999.995 else f"{value / 1e6:,.2f}M"
