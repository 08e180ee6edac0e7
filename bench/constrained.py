"""Throughput with half of the rows constrained beside none constrained, on one engine, in turn.

Each row draws the same number of tokens in either case: free rows ignore EOS, and no constraint can
be fulfilled sooner. Beside the time that passes, the processors' time is counted, which other work
on the machine disturbs less. With ``--record`` the figures go to bench/results/constrained.json and
to docs/performance.md.
"""

import argparse
import datetime
import json
import pathlib
import platform
import random
import statistics
import tempfile
import time

from bench import markdown, models
from bench.workloads import uniform
from model.checkpoint.synth_tokenizer import synthesize_tokenizer
from model.engine.engine import Engine
from model.engine.options import EngineOptions
from schemas.sampling import SamplingParams

_ROOT = pathlib.Path(__file__).parents[1]
_RESULTS = _ROOT / "bench" / "results" / "constrained.json"
_DOCUMENT = _ROOT / "docs" / "performance.md"

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "kind": {"enum": ["reader", "writer", "editor"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}

CONSTRAINTS = (
    {"json": {"type": "array", "items": _PERSON, "minItems": 500}},
    {"regex": r"([A-Z][a-z]{1,12} [0-9]{1,4}\n){500}"},
    {"grammar": 'start: line{500}\nline: key "=" value "\\n"\nkey: /[a-z]{1,8}/\nvalue: /[0-9]+/'},
    {"json": {"type": "array", "items": {"type": "number"}, "minItems": 500}},
)
"""One after the other; none has an end within the rows' tokens."""


def main() -> None:
    """Measures, prints, and records if asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench.constrained", description=__doc__)
    parser.add_argument("--rows", type=int, default=64, help="prompts of 128 tokens (64)")
    parser.add_argument("--max-tokens", type=int, default=64, help="most for each (64)")
    parser.add_argument("--rounds", type=int, default=5, help="of either kind, in turn (5)")
    parser.add_argument("--record", action="store_true", help="keep the figures")
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = models.checkpoint(pathlib.Path(folder))
        tokenizer = pathlib.Path(folder, "tokenizer.model")
        tokenizer.write_bytes(synthesize_tokenizer(models.BENCH.vocab_size))
        with Engine.from_checkpoint(
            str(checkpoint), tokenizer=str(tokenizer), options=EngineOptions(max_context=256)
        ) as engine:
            found = measure(engine, given.rows, given.max_tokens, given.rounds)
    print(json.dumps(found, indent=1))
    print(summary(found))
    if given.record:
        _RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        markdown.replace(_DOCUMENT, "constrained", summary(found))


def measure(engine: Engine, rows: int, max_tokens: int, rounds: int) -> dict:
    """Tokens a second of each round, and a second of processors, free and half constrained."""
    prompts = [job.prompt for job in uniform(rows)]
    draw = random.Random("constrained")
    lengths = [draw.randint(max_tokens // 4, max_tokens) for _ in range(rows)]
    none = [SamplingParams(max_tokens=length, ignore_eos=True) for length in lengths]
    kinds = [{"structured_outputs": kind} for kind in CONSTRAINTS]
    half = [p.override(kinds[i // 2 % len(kinds)] if i % 2 else {}) for i, p in enumerate(none)]
    passed: dict[str, list[float]] = {"none": [], "half": []}
    worked: dict[str, list[float]] = {"none": [], "half": []}
    for number in range(rounds + 1):
        for name, params in (("none", none), ("half", half)):
            started, busy = time.perf_counter(), time.process_time()
            outputs = engine.generate(prompts, params, run_seed=number)
            seconds, busy = time.perf_counter() - started, time.process_time() - busy
            drawn = [len(output.outputs[0].token_ids) for output in outputs]
            assert drawn == lengths, "a row ended early, so that rounds differ in work"
            if number:  # the first round compiles
                passed[name].append(sum(lengths) / seconds)
                worked[name].append(sum(lengths) / busy)
    return {
        "what": f"{rows} prompts of 128 tokens, {max_tokens // 4} to {max_tokens} new tokens each, "
        "the bench model",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {engine.provenance()['devices']} device(s)",
        "tokens_per_second": _rounded(passed),
        "share": _share(passed),
        "tokens_per_processor_second": _rounded(worked),
        "processor_share": _share(worked),
    }


def _rounded(rates: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [round(rate, 1) for rate in values] for name, values in rates.items()}


def _share(rates: dict[str, list[float]]) -> float:
    """Median of the rounds' ratios, each of two that ran one after the other."""
    pairs = zip(rates["half"], rates["none"], strict=True)
    return round(statistics.median(half / none for half, none in pairs), 3)


def summary(found: dict) -> str:
    """The figures as a table of Markdown."""
    passed, worked = found["tokens_per_second"], found["tokens_per_processor_second"]
    rows = [
        (name, f"{statistics.median(passed[name]):.0f}", f"{statistics.median(worked[name]):.0f}")
        for name in ("none", "half")
    ]
    rows.append(
        ("half / none, median of pairs", f"{found['share']:.0%}", f"{found['processor_share']:.0%}")
    )
    header = ("rows constrained", "tokens a second", "tokens a second of processors")
    return (
        f"{found['what']}; {found['date']}, {found['machine']}.\n\n{markdown.table(header, rows)}"
    )


if __name__ == "__main__":
    main()
