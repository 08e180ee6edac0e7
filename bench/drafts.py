"""Drafted tokens off and on, in turn: text that repeats itself, and text that does not.

*extraction*: prompts hold a record again and again and begin it once more, drawn greedily. *free*:
prompts have little in common with what follows, drawn at temperature 1. The trained demo model runs
both, with fewer rows than slots, as at the end of a job or where the cache holds few sequences; the
answers must be the same. With ``--record`` the figures go to bench/results/drafts.json and to
docs/performance.md.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time

from bench import markdown, models
from bench.workloads import uniform
from model.engine.engine import Engine
from model.engine.options import DRAFTS, EngineOptions
from model.engine.request import Request, RequestOutput
from schemas.sampling import SamplingParams

_ROOT = pathlib.Path(__file__).parents[1]
_MODEL = str(_ROOT / "examples" / "demo-model")
_RESULTS = _ROOT / "bench" / "results" / "drafts.json"
_DOCUMENT = _ROOT / "docs" / "performance.md"

_SLOTS, _TOKENS = 32, 256

RECORDS = (
    "def load(path):\n    with open(path) as file:\n        return json.load(file)\n\n\n",
    "The name of the man is Peter Brown and he lives in the town of Oxford.\n",
    "name,age,city\nAnna,31,Berlin\nPeter,44,Oxford\nMaria,27,Madrid\n",
    "    assert response.status == 200\n    assert response.json() == {'ok': True}\n",
)
"""What extraction repeats."""


def main() -> None:
    """Measures, prints, and records if asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench.drafts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="of either engine, in turn (7)")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 4, 16], help="(1 4 16)")
    parser.add_argument("--record", action="store_true", help="keep the figures")
    given = parser.parse_args()

    options = [
        EngineOptions(slots=_SLOTS, draft_tokens=drafts, max_context=512) for drafts in (0, DRAFTS)
    ]
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        bench = str(models.checkpoint(pathlib.Path(folder)))
        for model, url, name in (
            ("demo model", _MODEL, "extraction"),
            ("demo model", _MODEL, "free"),
            ("bench model", bench, "free"),
        ):
            off, on = (Engine.from_checkpoint(url, options=each) for each in options)
            with off, on:
                for rows in given.rows:
                    requests = make(on, name, rows)
                    what = {"model": model, "workload": name, "rows": rows}
                    cases.append({**what, **measure(off, on, requests, given.rounds)})
    found = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "rounds": given.rounds,
        "cases": cases,
    }
    print(json.dumps(found, indent=1))
    print(summary(found))
    if given.record:
        _RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        markdown.replace(_DOCUMENT, "drafts", summary(found))


def measure(off: Engine, on: Engine, requests: list[Request], rounds: int) -> dict:
    """Seconds of each round without and with drafts, and what came of these."""
    before = on.stats()
    seconds: dict[str, list[float]] = {"off": [], "on": []}
    for number in range(rounds + 1):
        answers = []
        for which, engine in (("off", off), ("on", on)):
            started = time.perf_counter()
            answers.append([_answer(f.result()) for f in engine.submit_all(requests)])
            if number:  # the first round compiles
                seconds[which].append(round(time.perf_counter() - started, 4))
        assert answers[0] == answers[1], "drafts changed an answer"
    after = on.stats()
    return {
        "seconds": seconds,
        "drafted": after.drafted_tokens - before.drafted_tokens,
        "accepted": after.accepted_tokens - before.accepted_tokens,
        "tokens": after.completion_tokens - before.completion_tokens,
        "faster": round(
            statistics.median(a / b for a, b in zip(seconds["off"], seconds["on"], strict=True)), 3
        ),
    }


def make(engine: Engine, name: str, rows: int) -> list[Request]:
    """The requests of a workload."""
    temperature = 0.0 if name == "extraction" else 1.0
    params = SamplingParams(temperature=temperature, max_tokens=_TOKENS, ignore_eos=True)
    tokenizer = engine.tokenizer
    if tokenizer is None:
        ids = [job.prompt for job in uniform(rows)]
        return [
            Request(prompt_token_ids=p, params=params, address=str(i)) for i, p in enumerate(ids)
        ]
    texts = [RECORDS[i % len(RECORDS)] for i in range(rows)]
    if name == "extraction":
        prompts = [text * 3 + text[: 8 + i] for i, text in enumerate(texts)]
    else:
        prompts = [f"{i}. {text}" for i, text in enumerate(texts)]
    return [
        Request(prompt_token_ids=tuple(tokenizer.encode(p)), params=params, address=p)
        for p in prompts
    ]


def _answer(output: RequestOutput) -> tuple[tuple[int, ...], float]:
    completion = output.outputs[0]
    return completion.token_ids, completion.cumulative_logprob


def summary(found: dict) -> str:
    """The figures as a table of Markdown."""
    rows = []
    for case in found["cases"]:
        rates = [
            f"{case['rows'] * _TOKENS / statistics.median(case['seconds'][which]):,.0f}"
            for which in ("off", "on")
        ]
        share = f"{case['accepted'] / case['drafted']:.0%}" if case["drafted"] else "none"
        drafted = f"{case['drafted'] / case['tokens']:.2f}"
        what = f"{case['workload']}, {case['model']}, {case['rows']} rows"
        rows.append((what, *rates, f"{case['faster']:.2f}×", drafted, share))
    header = ("workload", "tokens/s without", "with", "faster ¹", "drafts a token", "right")
    return (
        f"{markdown.table(header, rows)}\n\n1. Median of the rounds' ratios.\n\n"
        f"{_TOKENS} tokens a row, {_SLOTS} slots, {found['rounds']} rounds in turn; "
        f"{found['date']}, {found['machine']}."
    )


if __name__ == "__main__":
    main()
