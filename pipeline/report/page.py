"""One self-contained HTML file that shows what a run came to; it asks no network for anything."""

import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

from model.checkpoint import files
from model.evaluation import perplexity
from pipeline.report.charts import all_charts
from pipeline.report.collect import Findings
from pipeline.report.completion_rows import CompletionStatistics
from pipeline.report.samples import figure
from schemas.error import SetupError

REPORT = "_report.html"
"""The report's name in the output folder."""

_SLOWEST = 10
_FILES_SHOWN = 20


def render(found: Findings) -> str:
    """The page. Whatever comes from prompts, columns or files is text on it, never markup.

    Raises:
      SetupError: the packages that draw it are not installed.
    """
    try:
        import jinja2
        import vl_convert
    except ImportError:
        raise SetupError(
            "the report needs jinja2 and vl-convert-python; install grok1-batch[report]"
        ) from None
    assets = importlib.resources.files("pipeline.report") / "assets"

    def asset(name: str) -> str:
        return (assets / name).read_text("utf-8")

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "figure": figure, "json": _json}
    return environment.from_string(asset("report.html.jinja")).render(
        style=asset("report.css"),
        script=asset("report.js"),
        library=vl_convert.javascript_bundle(),  # type: ignore[call-arg]  # its stub has no default
        **_view(found),
    )


def _view(found: Findings) -> dict[str, Any]:
    checked, totals = found.checked, found.checked["totals"]
    planned = checked["rows"]
    seconds = sum(part["seconds"] for part in found.parts)
    asked = sum(part["decode_rows"] for part in found.parts)
    engines = sorted({part["engine"] for part in found.parts} - {"{}"})
    return {
        "url": checked["url"],
        "run_id": checked["run_id"],
        "state": checked["state"],
        "faults": checked["faults"],
        "made_at": found.made_at.strftime("%Y-%m-%d %H:%M UTC"),
        "began_at": found.job.get("created_at", ""),
        "checked": checked,
        "totals": totals,
        "planned": planned,
        "missing": None if planned is None else planned - totals["rows_in"],
        "unknown": checked["unknown"],
        "chunk_seconds": seconds,
        "occupancy": sum(p["decode_rows_used"] for p in found.parts) / asked if asked else None,
        "task": found.task,
        "tokens_out": "scored_tokens" if found.task == "score" else "completion_tokens",
        **_figures(found),
        "rows_read": found.rows_read,
        "charts": all_charts(found),
        "errors": found.errors,
        "slowest": sorted(found.parts, key=lambda part: -part["seconds"])[:_SLOWEST],
        "samples": [{**vars(sample), "facts": sample.facts} for sample in found.samples],
        "settings": told_settings(checked["settings"]),
        "engines": [json.loads(engine) for engine in engines],
        "codes": sorted({part["code"] for part in found.parts}),
        "inputs": [files.redact(path) for path in found.job.get("options", {}).get("input", [])],
        "input_files": sorted({part["input"] for part in found.parts}),
        "versions": _versions(found),
        "files_shown": _FILES_SHOWN,
        "checkpoint": files.redact(found.job.get("checkpoint") or ""),
        "tokenizer": files.redact(found.job.get("tokenizer") or ""),
    }


def _versions(found: Findings) -> dict[str, str]:
    """Of this project, by the parts, and of what it stands on, by the manifest."""
    own = sorted({part["version"] for part in found.parts})
    return {**found.versions, **({"grok1": ", ".join(own)} if own else {})}


def _figures(found: Findings) -> dict[str, float | None]:
    """What stands on the tiles of one task alone; None where there is nothing to tell."""
    rows, totals = found.rows, found.checked["totals"]
    if isinstance(rows, CompletionStatistics):
        return {"looping": rows.looping / max(1, int(rows.repetition.sum()))}
    tokens, size = totals["scored_tokens"], totals["text_bytes"]
    scored = totals["rows_out"] - totals["errored"]
    return {
        "perplexity": perplexity(totals["logprob"], tokens) if tokens else None,
        "byte_perplexity": perplexity(totals["text_logprob"], size) if size else None,
        "greedy": totals["greedy"] / scored if scored else None,
    }


def told_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """A job's settings in words, less those that ask for nothing."""
    told = {}
    for name, value in settings.items():
        if value is None or value in ({}, [], ""):
            continue
        label = f"{name} identity" if name in ("checkpoint", "tokenizer") else name
        if isinstance(value, bool):
            told[label] = "yes" if value else "no"
        else:
            told[label] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return told


def _number(value: float, digits: int = 0) -> str:
    return f"{value:,.{digits}f}"


def _json(value: Any) -> Any:
    """JSON for a script element: nothing in it can end the element."""
    import markupsafe

    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return markupsafe.Markup(text)
