"""The report's charts, as Vega-Lite specifications: data and encoding, no drawing of our own."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.report.collect import Findings
from pipeline.report.rows import LOGPROB_BINS

_TIME_BINS = 80
_LENGTH_BINS = 40

Spec = dict[str, Any]


def all_charts(found: Findings) -> dict[str, Spec]:
    """Chart id -> specification; charts that would show nothing are left out."""
    rows, totals = found.rows, found.checked["totals"]
    over_time = timeline(found.parts)
    charts = {
        "throughput": over_time and _line(over_time, "tokens_per_second", "completion tokens/s"),
        "occupancy": over_time and _line(over_time, "occupancy", "slots in use", share=True),
        "prompt-length": _lengths(rows.prompt_tokens, "prompt tokens"),
        "completion-length": _lengths(rows.completion_tokens, "completion tokens"),
        "finish-reason": _bars(totals["finish_reasons"], "completions"),
        "logprob": _logprobs(rows.mean_logprob),
        "errors": _bars(totals["errors"], "rows"),
    }
    return {name: spec for name, spec in charts.items() if spec}


def timeline(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Completion tokens a second and slot occupancy, over the wall clock.

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
        tokens += share * part["completion_tokens"]
        asked += share * part["decode_rows"]
        used += share * part["decode_rows_used"]
    width = max(edges[1] - edges[0], 1e-9)
    return [
        {
            "time": round(1000 * (edges[i] + edges[i + 1]) / 2),
            "tokens_per_second": round(tokens[i] / width, 2),
            "occupancy": round(used[i] / asked[i], 4) if asked[i] else None,
        }
        for i in range(_TIME_BINS)
        if tokens[i] > 0 or asked[i] > 0
    ]


def _line(values: list[dict[str, Any]], field: str, title: str, share: bool = False) -> Spec:
    scale: Spec = {"scale": {"domain": [0, 1]}, "axis": {"format": "%"}} if share else {}
    return _chart(
        values,
        mark={"type": "area", "line": True, "interpolate": "monotone", "opacity": 0.25},
        x={
            "field": "time",
            "type": "temporal",
            "title": None,
            "axis": {"format": "%H:%M:%S", "tickCount": 5, "labelOverlap": True},
        },
        y={"field": field, "type": "quantitative", "title": title, **scale},
    )


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


def _logprobs(counts: np.ndarray) -> Spec | None:
    if not counts.sum():
        return None
    edges = LOGPROB_BINS.tolist()
    values = [
        {"start": round(edges[i], 2), "end": round(edges[i + 1], 2), "rows": int(n)}
        for i, n in enumerate(counts)
        if n
    ]
    return _histogram(values, "mean log-probability of a token")


def _histogram(values: list[dict[str, Any]], title: str) -> Spec:
    return _chart(
        values,
        mark={"type": "bar"},  # rounded ends make ranged bars vanish
        x={
            "field": "start",
            "type": "quantitative",
            "bin": "binned",
            "title": title,
            "axis": {"tickCount": 6},
        },
        x2={"field": "end"},
        y={"field": "rows", "type": "quantitative", "title": "rows"},
    )


def _bars(counts: Mapping[str, int], title: str) -> Spec | None:
    if not counts:
        return None
    values = [{"name": name, "rows": number} for name, number in counts.items()]
    return _chart(
        values,
        mark={"type": "bar", "cornerRadiusEnd": 2},
        height={"step": 30},
        x={"field": "rows", "type": "quantitative", "title": title, "axis": {"tickCount": 5}},
        y={"field": "name", "type": "nominal", "title": None, "sort": "-x"},
    )


def _chart(
    values: list[dict[str, Any]], *, mark: Spec, height: Any = 180, **encoding: Spec
) -> Spec:
    return {
        "data": {"values": values},
        "mark": {**mark, "tooltip": True},
        "encoding": encoding,
        "width": "container",
        "height": height,
    }
