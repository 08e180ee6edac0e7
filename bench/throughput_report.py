"""What ``bench.throughput`` came to, as tables; ``python -m bench.throughput_report`` puts the
newest results of each kind of CPU into the document again."""

import json
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

from bench import markdown

RESULTS = pathlib.Path(__file__).parent / "results"
DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "performance.md"

_COLUMNS: dict[str, tuple[Callable[[dict[str, Any]], float], str]] = {
    "output tok/s": (lambda run: run["output_tokens"] / run["seconds"], ",.0f"),
    "prompt tok/s": (lambda run: run["prompt_tokens"] / run["seconds"], ",.0f"),
    "first result, s": (lambda run: run["first_result_seconds"], ".2f"),
    "slots full ¹": (lambda run: run["occupancy"], ".1%"),
    "cores had ²": (lambda run: run["cpu_seconds"] / run["seconds"], ".2f"),
    "of the limit ³": (lambda run: run["limit_share"], ".0%"),
}


def markdown_of(result: dict[str, Any]) -> str:
    """A table of medians, and a line for each other thing that was measured."""
    runs = result["runs"]
    rows = [
        [name, *(_spread(runs, name, *column) for column in _COLUMNS.values())]
        for name in dict.fromkeys(run["workload"] for run in runs)
    ]
    facts = [
        "1. Of the decode rows, while a row waited for one.",
        "2. CPU seconds over seconds: what this process was given of the machine.",
        "3. Of what the machine could do at best in the CPU seconds that were taken: "
        f"{_limit(result)}.",
    ]
    others = [f"- {text}" for text in _others(result)]
    return "\n\n".join(
        [
            markdown.table(["engine alone", *_COLUMNS], rows),
            "\n".join(facts),
            "\n".join(others),
            _provenance(result),
        ]
    )


def record(result: dict[str, Any]) -> list[pathlib.Path]:
    """Writes all that was measured, and the table into the document."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"throughput-{result['date'][:16].replace(':', '')}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    markdown.replace(DOCUMENT, _section(result), markdown_of(result))
    return [path, DOCUMENT]


def newest() -> list[dict[str, Any]]:
    """The last results that were recorded on each kind of CPU.

    Raises:
      FileNotFoundError: there are none.
    """
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("throughput-*.json"))]
    if not found:
        raise FileNotFoundError(f"no throughput-*.json in {RESULTS}: make bench writes one")
    return list({_section(result): result for result in found}.values())


def _section(result: dict[str, Any]) -> str:
    return f"throughput {result['engine']['kernels']}"


def _spread(
    runs: list[dict[str, Any]], name: str, value: Callable[[dict[str, Any]], float], form: str
) -> str:
    found = [value(run) for run in runs if run["workload"] == name]
    middle = format(statistics.median(found), form)
    if len(found) == 1:
        return middle
    return f"{middle} ({min(found):{form}}–{max(found):{form}})"


def _limit(result: dict[str, Any]) -> str:
    rates = ", ".join(f"{k} {v / 1e9:,.0f}" for k, v in result["limits"]["products"].items())
    read = result["limits"]["read_rate"] / 1e9
    limits = f"{rates} GFLOP/s of bfloat16 products, {read:,.0f} GB/s of memory read"
    if instruction := result["limits"].get("instruction_rate"):
        limits += f"; the multiplying instruction by itself {instruction / 1e9:,.0f} GFLOP/s"
    return limits


def _others(result: dict[str, Any]) -> list[str]:
    lines = []
    for kind, start in result["start"].items():
        lines.append(
            f"{kind} start: {start['first_token_seconds']:.1f} s to the first token "
            f"({start['cpu_seconds']:.1f} CPU seconds), {start['compiled']} programs compiled; "
            f"making the steps took {start['compile_seconds']:.1f} s, and loading, at the same "
            f"time, {start['load_seconds']:.1f} s"
        )
    if found := result.get("end_to_end"):
        lines.append(
            f"`grok1 generate`: {found['ratio']:.3f} of the engine alone by time, "
            f"{found['cpu_ratio']:.3f} by CPU seconds, {found['rows']:,} rows "
            f"({found['generate_seconds']:.1f} s and {found['engine_seconds']:.1f} s)"
        )
    if found := result.get("growth"):
        lines.append(
            f"`grok1 generate` of {found['rows']:,} rows → {found['more_rows']:,}: a row takes "
            f"{found['ratio']:.3f} times the time, {found['cpu_ratio']:.3f} times the CPU seconds; "
            f"memory {found['rss_bytes'] / 1e9:.2f} → {found['more_rss_bytes'] / 1e9:.2f} GB"
        )
    lines.append(f"peak memory: {result['peak_rss_bytes'] / 1e9:.1f} GB")
    return lines


def _provenance(result: dict[str, Any]) -> str:
    engine = result["engine"]
    part = f"the first {result['rows']} rows of each; " if result["rows"] else ""
    return (
        f"{part}{result['machine']}; {result['date'][:10]}; jax {engine['jax']}, "
        f"{engine['numerics']}, {engine['slots']} slots."
    )


if __name__ == "__main__":
    for last in newest():
        markdown.replace(DOCUMENT, _section(last), markdown_of(last))
