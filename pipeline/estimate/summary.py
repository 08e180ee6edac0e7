"""A plan's findings: as JSON for a machine, as tables for a person."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from model.checkpoint.source import open_checkpoint
from pipeline.estimate.bill import print_bill
from pipeline.estimate.census import BLOCK_SIZE, Census
from pipeline.estimate.cost import Cost, Load, Rate, all_costs
from pipeline.estimate.forecast import Pilot
from pipeline.plan import Chunk
from pipeline.prepare import Job

_BARS = 8
_JSON_BARS = 64
_BAR_WIDTH = 36


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a plan tells.

    Attributes:
      job: the job.
      census: its rows, counted.
      chunks: parts that it will write.
      pilot: the trial, or None.
      tokens_out: completion tokens: fewest, forecast at p50 and p90 (the most, without a trial),
        most.
      costs: the bill on each machine.
      seconds: the reading took.
    """

    job: Job
    census: Census
    chunks: int
    pilot: Pilot | None
    tokens_out: tuple[int, int, int, int]
    costs: list[Cost]
    seconds: float

    @classmethod
    def of(
        cls,
        job: Job,
        chunks: Sequence[Chunk],
        census: Census,
        pilot: Pilot | None,
        rates: Mapping[str, Rate],
        seconds: float,
    ) -> "Estimate":
        """Puts the findings together."""
        most = census.tokens_out_most
        middle, late = (most, most)
        if pilot is not None:
            # A share of few rows may promise less, or more, than all rows' own parameters allow.
            bounds = (census.tokens_out_least, most)
            middle, late = (round(np.clip(share * most, *bounds)) for share in pilot.share[1:])
        checkpoint = open_checkpoint(job.options.checkpoint)
        load = Load(
            weights=checkpoint.weights,
            engine=job.engine,
            prompt_tokens=census.tokens_in - census.shared_tokens,
            tokens_out_p50=middle,
            tokens_out_p90=late,
            prompt_length=census.tokens_in / max(1, census.good),
            samples=census.samples,
            output_length=middle / max(1, census.samples),
        )
        return cls(
            job=job,
            census=census,
            chunks=len(chunks),
            pilot=pilot,
            tokens_out=(census.tokens_out_least, middle, late, most),
            costs=all_costs(checkpoint.config, load, rates) if census.good else [],
            seconds=seconds,
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-ready types."""
        c = self.census
        least, middle, late, most = self.tokens_out
        return {
            "files": self.job.files,
            "rows": c.rows,
            "good": c.good,
            "errors": dict(sorted(c.errors.items())),
            "error_examples": {
                code: [{"file": path, "row": row, "message": text} for path, row, text in some]
                for code, some in sorted(c.examples.items())
            },
            "over_context": c.over_context,
            "duplicates": c.duplicates,
            "prompt_tokens": c.tokens_in,
            "shared_prompt_tokens": c.shared_tokens,
            "prompt_length": _percentiles(c.prompt_tokens),
            "prompt_length_histogram": [
                {"from": first, "to": last, "rows": rows}
                for first, last, rows in histogram(c.prompt_tokens, _JSON_BARS)
            ],
            "samples": c.samples,
            "completion_tokens": {
                "least": least,
                "most": most,
                "p50": middle if self.pilot else None,
                "p90": late if self.pilot else None,
            },
            "pilot": None if self.pilot is None else dataclasses.asdict(self.pilot),
            "chunks": self.chunks,
            "parts": self.chunks,
            "machines": [
                {k: _finite(v) for k, v in dataclasses.asdict(cost).items()} for cost in self.costs
            ],
            "seconds": round(self.seconds, 3),
        }


def print_estimate(found: Estimate) -> None:
    """Prints the tables."""
    console, census = Console(), found.census
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    for name, fact in _facts(found):
        table.add_row(name, fact)
    title = Text(f"plan for {found.job.options.shown_input}")
    console.print(Panel(table, title=title, box=box.ROUNDED, expand=False))
    if census.prompt_tokens:
        p = _percentiles(census.prompt_tokens)
        told = f"{p['p50']:,} at the median, {p['p90']:,} at p90, {p['max']:,} at most"
        console.print(Text(f"prompt tokens: {told}", "dim"))
        console.print(_histogram(census.prompt_tokens), Text())
    for code, some in sorted(census.examples.items()):
        for path, row, text in some[:1]:
            console.print(Text(f"{code}: row {row:,} of {path}: {text}", "red"))
    if found.costs:
        print_bill(console, found.costs)
        for note in _notes(found):
            console.print(Text(note, "dim"))


def _facts(found: Estimate) -> list[tuple[str, str | Text]]:
    c = found.census
    least, middle, late, most = found.tokens_out
    rate = c.rows / max(found.seconds, 1e-9)
    facts: list[tuple[str, str | Text]] = [
        (
            "rows",
            f"{c.rows:,} in {_number(found.job.files, 'file')}: {c.good:,} good, "
            f"{c.errors.total():,} errored",
        ),
    ]
    if c.errors:
        most_first = sorted(c.errors.items(), key=lambda error: (-error[1], error[0]))
        told = " · ".join(f"{code} {number:,}" for code, number in most_first)
        facts.append(("errors", Text(told, "red")))
    if c.over_context:
        facts.append(
            ("over context", f"{_number(c.over_context, 'row')} ({found.job.options.over_length})")
        )
    shared = f"{c.shared_tokens:,} ({c.shared_tokens / max(1, c.tokens_in):.0%})"
    facts += [
        ("duplicates", f"{c.duplicates:,} rows with the prompt and parameters of an earlier one"),
        ("tokens in", f"{c.tokens_in:,}, of which {shared} in shared blocks of {BLOCK_SIZE}"),
        ("tokens out", f"{least:,} to {most:,} in {c.samples:,} completions"),
    ]
    if found.pilot:
        p = found.pilot
        gave = f"gave {p.tokens_out:,} tokens, {p.tokens_per_second:,.0f} a second here"
        facts += [
            ("forecast", f"{middle:,} (p50), {late:,} (p90)"),
            (
                "pilot",
                f"{_number(p.rows, 'row')} {gave}",
            ),
        ]
    facts += [
        ("output", f"{_number(found.chunks, 'chunk')}, a part file each"),
        ("read in", f"{found.seconds:,.1f} s, {rate:,.0f} rows/s"),
    ]
    return facts


def histogram(lengths: Mapping[int, int], bars: int) -> list[tuple[int, int, int]]:
    """Lengths from, to, and the rows that have them, in at most so many equal steps."""
    if not lengths:
        return []
    step = -(-(max(lengths) + 1) // bars)
    rows = [0] * (max(lengths) // step + 1)
    for length, count in lengths.items():
        rows[length // step] += count
    return [(i * step, (i + 1) * step - 1, count) for i, count in enumerate(rows)]


def _histogram(lengths: Mapping[int, int]) -> Table:
    bars = histogram(lengths, _BARS)
    table = Table(box=None, show_header=False)
    most = max(rows for _, _, rows in bars)
    for first, last, rows in bars:
        bar = "█" * math.ceil(_BAR_WIDTH * rows / most)
        table.add_row(f"{first:,}–{last:,}", Text(bar, "cyan"), f"{rows:,}")
    table.columns[0].justify = table.columns[2].justify = "right"
    return table


def _notes(found: Estimate) -> list[str]:
    """What the bill rests on."""
    priced = [cost for cost in found.costs if cost.weights is not None]
    notes = [
        "One host of each kind, its start included; more share all but that. List prices.",
        "p50–p90: what is enough in half, and in 9 of 10, of such jobs.",
    ]
    if found.pilot is None:
        notes.append("Without --pilot K every completion counts with its max_tokens: the most.")
    else:
        notes.append("Tokens out at p50 and p90 are forecasts from the pilot.")
    if assumed := [cost.machine for cost in priced if not cost.measured]:
        notes.append(
            f"Rates at p50 are a share of each machine's own floor (grok1 fit). Share, loading and "
            f"compiling are assumed, not measured, for {', '.join(assumed)}: --rates FILE."
        )
    if any(cost.convert for cost in priced):
        notes.append("* grok1 convert --weights int4 first: as stored the weights do not fit.")
    return notes


def _percentiles(lengths: Mapping[int, int]) -> dict[str, int]:
    total, seen = sum(lengths.values()), 0
    marks = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    found: dict[str, int] = {}
    for length in sorted(lengths):
        seen += lengths[length]
        for name, share in marks.items():
            if name not in found and seen >= share * total:
                found[name] = length
    return found


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
