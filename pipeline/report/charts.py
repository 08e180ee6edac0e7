"""The report's charts, as Vega-Lite specifications: data and encoding, no drawing of our own."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.report.collect import Findings
from pipeline.report.completion_rows import LOGPROB_BINS, CompletionStatistics
from pipeline.report.score_rows import (
    BYTE_PERPLEXITY_BINS,
    PERPLEXITY_BINS,
    ScoreStatistics,
)

_TIME_BINS = 80
_LENGTH_BINS = 40

Spec = dict[str, Any]


def all_charts(found: Findings) -> dict[str, Spec]:
    """Chart id -> specification; charts that would show nothing are left out."""
    rows, totals = found.rows, found.checked["totals"]
    if isinstance(rows, ScoreStatistics):
        charts = _of_scores(rows, found.parts)
    else:
        charts = _of_completions(rows, totals, found.parts)
    charts["errors"] = _bars(totals["errors"], "rows")
    return {name: spec for name, spec in charts.items() if spec}


def _of_completions(
    rows: CompletionStatistics, totals: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]
) -> dict[str, Spec | None]:
    over_time = timeline(parts)
    return {
        "throughput": _line(over_time, "tokens_per_second", "completion tokens/s"),
        "occupancy": _line(over_time, "occupancy", "slots in use", share=True),
        "prompt-length": _lengths(rows.prompt_tokens, "prompt tokens"),
        "completion-length": _lengths(rows.completion_tokens, "completion tokens"),
        "finish-reason": _bars(totals["finish_reasons"], "completions"),
        "logprob": _binned(rows.mean_logprob, LOGPROB_BINS, "mean log-probability of a token"),
    }


def _of_scores(rows: ScoreStatistics, parts: Sequence[Mapping[str, Any]]) -> dict[str, Spec | None]:
    over_time = timeline(parts, "scored_tokens")
    greedy = {"greedy": rows.greedy, "another": rows.scores - rows.greedy}
    return {
        "throughput": _line(over_time, "tokens_per_second", "scored tokens/s"),
        "logprob": _binned(rows.mean_logprob, LOGPROB_BINS, "mean log-probability of a token"),
        "perplexity": _binned(rows.perplexity, PERPLEXITY_BINS, "perplexity", log=True),
        "byte-perplexity": _binned(
            rows.byte_perplexity, BYTE_PERPLEXITY_BINS, "perplexity of a byte", log=True
        ),
        "greedy": _bars(greedy if rows.scores else {}, "continuations"),
        "prompt-length": _lengths(rows.context_tokens, "context tokens"),
        "completion-length": _lengths(rows.continuation_tokens, "scored tokens"),
    }


def timeline(
    parts: Sequence[Mapping[str, Any]], counted: str = "completion_tokens"
) -> list[dict[str, Any]]:
    """Tokens a second, of those that ``counted`` names, and slot occupancy, over the wall clock.

    Each is of the milliseconds from ``time`` to ``end``.

    A part says when it was committed and how long its chunk took; its tokens are spread evenly over
    that time. Times at which nothing ran, between a run and its resumption, are left out.
    """
    ends = [datetime.datetime.fromisoformat(part["committed_at"]).timestamp() for part in parts]
    spans = [
        (end - part["seconds"], end, part)
        for end, part in zip(ends, parts, strict=True)
        if part["seconds"] > 0
    ]
    if not spans:
        return []
    first, last = min(begin for begin, _, _ in spans), max(end for _, end, _ in spans)
    edges = np.linspace(first, last, _TIME_BINS + 1)
    tokens, asked, used = np.zeros((3, _TIME_BINS))
    for begin, end, part in spans:
        inside = np.clip(np.minimum(end, edges[1:]) - np.maximum(begin, edges[:-1]), 0, None)
        share = inside / max(inside.sum(), 1e-9)
        tokens += share * part[counted]
        asked += share * part["decode_rows"]
        used += share * part["decode_rows_used"]
    width = max(edges[1] - edges[0], 1e-9)
    return [
        {
            "time": round(1000 * edges[i]),
            "end": round(1000 * edges[i + 1]),
            "tokens_per_second": round(tokens[i] / width, 2),
            "occupancy": round(used[i] / asked[i], 4) if asked[i] else None,
        }
        for i in range(_TIME_BINS)
        if tokens[i] > 0 or asked[i] > 0
    ]


def _line(values: list[dict[str, Any]], field: str, title: str, share: bool = False) -> Spec | None:
    points = _steps(values, field)
    if not points:
        return None
    scale: Spec = {"scale": {"domain": [0, 1]}, "axis": {"format": "%"}} if share else {}
    return _chart(
        points,
        # All that is known of a span is its average: a curve would show more.
        mark={"type": "area", "line": True, "interpolate": "step-after", "opacity": 0.25},
        x={
            "field": "time",
            "type": "temporal",
            "title": None,
            "axis": {"format": "%H:%M:%S", "tickCount": 5, "labelOverlap": True},
        },
        # What ``detail`` tells apart would be stacked, and drawn at zero wherever it is not.
        y={"field": field, "type": "quantitative", "title": title, "stack": None, **scale},
        detail={"field": "stretch", "type": "nominal"},
    )


def _steps(values: list[dict[str, Any]], field: str) -> list[dict[str, Any]]:
    """Points to draw steps through, numbered by the stretches of time between which nothing is."""
    points: list[dict[str, Any]] = []
    stretch, end = 0, None
    for value in values:
        if value[field] is None:
            continue
        if end is not None and value["time"] > end:
            points.append({**points[-1], "time": end})
            stretch += 1
        end = value["end"]
        points.append({"time": value["time"], field: value[field], "stretch": stretch})
    return [*points, {**points[-1], "time": end}] if points else []


def _lengths(counts: Mapping[int, int], title: str) -> Spec | None:
    if not counts:
        return None
    lengths = np.array(sorted(counts))
    rows = np.array([counts[length] for length in lengths.tolist()])
    step = max(1, -(-int(lengths[-1] + 1) // _LENGTH_BINS))
    bins = np.bincount(lengths // step, rows)
    values = [
        {"start": i * step, "end": (i + 1) * step, "rows": int(n)} for i, n in enumerate(bins) if n
    ]
    return _histogram(values, title)


def _binned(counts: np.ndarray, edges: np.ndarray, title: str, log: bool = False) -> Spec | None:
    if not counts.sum():
        return None
    places = [float(f"{edge:.4g}") for edge in edges]
    values = [
        {"start": places[i], "end": places[i + 1], "rows": int(n)}
        for i, n in enumerate(counts)
        if n
    ]
    return _histogram(values, title, log)


def _histogram(values: list[dict[str, Any]], title: str, log: bool = False) -> Spec:
    scale: Spec = {"scale": {"type": "log", "nice": False}} if log else {}
    return _chart(
        values,
        mark={"type": "bar"},  # rounded ends make ranged bars vanish
        x={
            "field": "start",
            "type": "quantitative",
            "bin": "binned",
            "title": title,
            "axis": {"tickCount": 6, "labelOverlap": True},
            **scale,
        },
        x2={"field": "end"},
        y={"field": "rows", "type": "quantitative", "title": "rows", "axis": {"tickMinStep": 1}},
    )


def _bars(counts: Mapping[str, int], title: str) -> Spec | None:
    if not counts:
        return None
    values = [{"name": name, "rows": number} for name, number in counts.items()]
    axis = {"tickCount": 5, "tickMinStep": 1}
    return _chart(
        values,
        mark={"type": "bar", "cornerRadiusEnd": 2},
        height=30 * len(values),  # in pixels: steps do not go with a width that fits the page
        x={"field": "rows", "type": "quantitative", "title": title, "axis": axis},
        y={"field": "name", "type": "nominal", "title": None, "sort": "-x"},
    )


def _chart(
    values: list[dict[str, Any]], *, mark: Spec, height: int = 180, **encoding: Spec
) -> Spec:
    return {
        "data": {"values": values},
        "mark": {**mark, "tooltip": True},
        "encoding": encoding,
        "width": "container",
        "height": height,
    }
