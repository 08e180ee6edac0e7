"""What the peers came to: a table, a plot, and a file of all that was measured."""

import dataclasses
import datetime
import json
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench import machine, markdown

Round = dict[str, dict[str, Any]]
"""What each peer said in one round, by its name; see ``runners``."""

OURS = "grok1"

_ROOT = pathlib.Path(__file__).parents[1]
_RESULTS = _ROOT / "bench" / "results"
_DOCUMENT = _ROOT / "docs" / "performance.md"


@dataclasses.dataclass(frozen=True)
class Report:
    """The rounds of one comparison.

    Attributes:
      titles: of the peers, by name, in the order of tables.
      rounds: in the order of time.
      rows: of each workload, in the order of tables.
    """

    titles: Mapping[str, str]
    rounds: Sequence[Round]
    rows: Mapping[str, int]

    def rates(self, peer: str, workload: str) -> list[float]:
        """Output tokens a second, round by round; none if the peer did not run it."""
        return [
            run["output_tokens"] / run["seconds"]
            for done in self.rounds
            for run in done[peer]["runs"]
            if run["workload"] == workload
        ]

    def ratio(self, peer: str, workload: str) -> float | None:
        """How many times faster we are: the median over rounds, each compared with itself."""
        if not (rates := self.rates(peer, workload)):
            return None
        pairs = zip(self.rates(OURS, workload), rates, strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    def markdown(self) -> str:
        """Tables of rates and of ratios, and what they were measured on."""
        rates = [
            [title, *(_spread(self.rates(peer, work)) for work in self.rows)]
            for peer, title in self.titles.items()
        ]
        parts = [markdown.table(["output tokens/s: median (least–most)", *self.rows], rates)]
        if OURS in self.titles and len(self.titles) > 1:
            ratios = [
                [title, *(_times(self.ratio(peer, work)) for work in self.rows)]
                for peer, title in self.titles.items()
                if peer != OURS
            ]
            parts.append(markdown.table(["this engine is faster than", *self.rows], ratios))
        rows = ", ".join(f"{work} {count:,}" for work, count in self.rows.items())
        parts.append(
            f"{len(self.rounds)} rounds in turn; rows: {rows}; {machine.describe()}; "
            f"{datetime.date.today().isoformat()}. " + "; ".join(self._versions()) + "."
        )
        return "\n\n".join(parts)

    def record(self) -> list[pathlib.Path]:
        """Writes all that was measured, and table and plot into this kind of CPU's section."""
        name = f"peers-{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H%M}.json"
        _RESULTS.mkdir(exist_ok=True)
        found = {"machine": machine.describe(), "rows": self.rows, "rounds": self.rounds}
        (_RESULTS / name).write_text(json.dumps(found, indent=1) + "\n")
        kind = machine.kind()
        plot = _DOCUMENT.with_name(f"peers-{kind}.svg")
        text = self.markdown() + f"\n\n![the same as bars]({plot.name})"
        markdown.replace(_DOCUMENT, f"peers {kind}", text)
        plot.write_text(self.plot())
        return [_RESULTS / name, _DOCUMENT, plot]

    def plot(self) -> str:
        """The rates as bars, with a line from the least to the most, as SVG."""
        import vl_convert

        rows = [
            {
                "peer": title,
                "workload": work,
                "median": statistics.median(rates),
                "least": min(rates),
                "most": max(rates),
            }
            for peer, title in self.titles.items()
            for work in self.rows
            if (rates := self.rates(peer, work))
        ]
        peer = {"field": "peer", "type": "nominal", "sort": None, "title": None}
        bars = {
            "mark": "bar",
            "encoding": {
                "y": {**peer, "axis": {"labelLimit": 300}},
                "x": {"field": "median", "type": "quantitative", "title": "output tokens/s"},
                "color": {
                    "condition": {
                        "test": f"datum.peer == {self.titles[OURS]!r}",
                        "value": "#0072b2",
                    },
                    "value": "#b0b0b0",
                },
            },
        }
        spread = {
            "mark": {"type": "rule", "strokeWidth": 1.5},
            "encoding": {
                "y": peer,
                "x": {"field": "least", "type": "quantitative"},
                "x2": {"field": "most"},
            },
        }
        return vl_convert.vegalite_to_svg(
            {
                "data": {"values": rows},
                "facet": {"field": "workload", "type": "nominal", "sort": None, "title": None},
                "columns": 2,
                "spec": {"width": 280, "height": {"step": 18}, "layer": [bars, spread]},
                "config": {"background": "white"},
            }
        )

    def _versions(self) -> Iterator[str]:
        seen: dict[str, str] = {}
        for result in self.rounds[0].values():
            seen |= result["versions"]
        yield ", ".join(f"{name} {version}" for name, version in seen.items())


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}×"


def _spread(rates: Sequence[float]) -> str:
    if not rates:
        return "–"
    middle = statistics.median(rates)
    return f"{middle:,.0f} ({min(rates):,.0f}–{max(rates):,.0f})"
