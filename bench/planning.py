"""How many rows a second ``grok1 plan`` counts, beside what sentencepiece alone does, in turn.

The prompts are pieces of the standard library's source, the tokenizer is the demo model's. Both
have all cores: the plan its processes, sentencepiece its threads. The plan also reads Parquet,
validates, hashes for duplicates and compares beginnings. With ``--record`` the figures go to
bench/results/planning.json and to docs/performance.md.
"""

import argparse
import datetime
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import sentencepiece

from bench import machine, markdown
from examples.training.text import read_documents
from pipeline.estimate.census import take_census
from pipeline.options import GenerateOptions
from pipeline.prepare import check_job
from schemas.sampling import SamplingParams

_ROOT = pathlib.Path(__file__).parents[1]
_MODEL = _ROOT / "examples" / "demo-model"
_RESULTS = _ROOT / "bench" / "results" / "planning.json"
_DOCUMENT = _ROOT / "docs" / "performance.md"

_FILES = 8
_MILLION = 1_000_000


def main() -> None:
    """Measures, prints, and records if asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench.planning", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="prompts (200,000)")
    parser.add_argument("--characters", type=int, default=240, help="of each (240)")
    parser.add_argument("--rounds", type=int, default=3, help="of either, in turn (3)")
    parser.add_argument("--record", action="store_true", help="keep the figures")
    given = parser.parse_args()

    found = measure(prompts(given.rows, given.characters), given.rounds)
    print(summary(found))
    if given.record:
        _RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        markdown.replace(_DOCUMENT, "planning", summary(found))


def prompts(rows: int, characters: int) -> list[str]:
    """Pieces of source text, from its beginning, and from there again until there are enough."""
    text = "\n".join(read_documents()[0])
    last = len(text) - characters
    # A prime step: no two pieces begin alike until all places have been one's beginning.
    return [text[(at := i * 104_729 % last) : at + characters] for i in range(rows)]


def measure(texts: Sequence[str], rounds: int) -> dict:
    """Seconds of each round of either, and what else the figures depend on."""
    tokens, plan, alone = 0, [], []
    processor = sentencepiece.SentencePieceProcessor(model_file=str(_MODEL / "tokenizer.model"))
    with tempfile.TemporaryDirectory() as folder:
        share = -(-len(texts) // _FILES)
        for at in range(_FILES):
            some = pa.table({"prompt": texts[at * share : (at + 1) * share]})
            pq.write_table(some, f"{folder}/{at}.parquet")
        options = GenerateOptions(
            checkpoint=str(_MODEL), input=(folder,), output=f"{folder}/none",
            sampling=SamplingParams(max_tokens=64), over_length="truncate_left",
        )  # fmt: skip
        for _ in range(rounds):
            started = time.perf_counter()
            job, _, chunks = check_job(options)
            census = take_census(job, chunks)
            plan.append(time.perf_counter() - started)
            assert census.rows == len(texts)
            started = time.perf_counter()
            ids = processor.encode(list(texts), num_threads=machine.cores())
            alone.append(time.perf_counter() - started)
            tokens = sum(map(len, ids))
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine.describe(),
        "rows": len(texts),
        "tokens": tokens,
        "plan_seconds": plan,
        "sentencepiece_seconds": alone,
    }


def summary(found: dict) -> str:
    """The figures as a table, with what they say of a million rows."""
    rows, tokens = found["rows"], found["tokens"]
    seconds = {name: statistics.median(found[f"{name}_seconds"]) for name in _NAMES}
    lines = [
        [title, f"{rows / s:,.0f}", f"{tokens / s:,.0f}", f"{_MILLION * s / rows:,.0f}"]
        for title, s in ((_NAMES[name], s) for name, s in seconds.items())
    ]
    header = ["", "rows a second", "tokens a second", "seconds for a million rows"]
    ratio = seconds["sentencepiece"] / seconds["plan"]
    return (
        f"{rows:,} prompts of {tokens / rows:.0f} tokens; {found['date']}, {found['machine']}; "
        f"medians of {len(found['plan_seconds'])} rounds, start of processes included.\n\n"
        f"{markdown.table(header, lines)}\n\n"
        f"The plan runs at {ratio:.0%} of sentencepiece's own rate."
    )


_NAMES = {"plan": "`grok1 plan`", "sentencepiece": "sentencepiece alone"}


if __name__ == "__main__":
    main()
