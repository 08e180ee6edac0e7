"""Runs of mixed rows in one process, watched for what grows: ``python -m bench.soak``.

Rows differ in length and in sampling, some are bad and some equal; the demo model, unless another
is named, completes them through the whole pipeline, and again with another seed until the time is
up. Meanwhile memory, threads, open files and compiled programs are read off every few seconds.
With ``--record`` the figures go to bench/results/soak.json and to docs/reliability.md.
"""

import argparse
import collections
import contextlib
import dataclasses
import datetime
import gc
import json
import os
import pathlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from bench import machine, markdown, soak_rows
from bench.end_to_end import resident
from model.config import Grok1Config
from model.engine.options import EngineOptions
from pipeline import GenerateOptions, prepare_job, read_completions, registry
from pipeline.commit import tally
from pipeline.finalize import read_manifest
from pipeline.job import run
from schemas.sampling import SamplingParams

_ROOT = pathlib.Path(__file__).parents[1]
_MODEL = _ROOT / "examples" / "demo-model"
_RESULTS = _ROOT / "bench" / "results" / "soak.json"
_DOCUMENT = _ROOT / "docs" / "reliability.md"

_MIB = 1 << 20
_SHARES = (0.25, 0.5, 0.75)

_FEW_MORE = 1.1
"""Threads come and go as spans are handed out, and so do the pipes between them."""

_TELL_SECONDS = 60.0

_WARM = 0.25
"""Share of the run after which nothing should grow any more: caches are full by then."""

_FLAT = 0.05
"""Share of its memory by which the process may have grown from then on to the end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What the process holds at one moment.

    Attributes:
      seconds: since the run began.
      rows: input rows committed.
      rss_bytes: memory of the process.
      threads: of the process, the interpreter's and others.
      open_files: descriptors, sockets among them.
      compiled: programs that were compiled since the process began.
    """

    seconds: float
    rows: int
    rss_bytes: int
    threads: int
    open_files: int
    compiled: int


class Watch:
    """Reads off what the process holds, every so many seconds, from a thread of its own."""

    def __init__(self, every: float) -> None:
        self.readings: list[Reading] = []
        self._every = every
        self._compiled = 0
        self._began = time.monotonic()
        self._rows_before = tally.total().rows_in
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def read(self) -> Reading:
        """What the process holds now."""
        return Reading(
            seconds=time.monotonic() - self._began,
            rows=tally.total().rows_in - self._rows_before,
            rss_bytes=resident(),
            threads=len(os.listdir("/proc/self/task")),
            open_files=len(os.listdir("/proc/self/fd")),
            compiled=self._compiled,
        )

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While the run is under way."""
        ended = threading.Event()

        def look() -> None:
            told = 0.0
            while not ended.wait(self._every):
                self.readings.append(self.read())
                if self.readings[-1].seconds - told >= _TELL_SECONDS:
                    told = self.readings[-1].seconds
                    print(dataclasses.asdict(self.readings[-1]), flush=True)

        thread = threading.Thread(target=look, name="soak-watch")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _count(self, event: str, *_: Any, **__: Any) -> None:
        self._compiled += event == "/jax/core/compile/backend_compile_duration"


def main() -> None:
    """Runs, prints what was read off, and fails if rows are lost or anything grows."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=200_000, help="of each run (200,000)")
    parser.add_argument("--minutes", type=float, default=30.0, help="at least (30)")
    parser.add_argument("--checkpoint", default=str(_MODEL), help="the demo's by default")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between readings (5)")
    parser.add_argument("--record", action="store_true", help="keep the figures")
    given = parser.parse_args()
    found = soak(given.checkpoint, given.rows, given.minutes, given.every)
    print(summary(found))
    if given.record:
        _RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        markdown.replace(_DOCUMENT, "soak", summary(found))
    sys.exit("; ".join(faults(found)) or None)


def soak(checkpoint: str, rows: int, minutes: float, every: float) -> dict[str, Any]:
    """Runs of so many rows until so many minutes have passed; what was read off of them.

    Args:
      checkpoint: a folder; its vocabulary is the demo model's.
      rows: of each run.
      minutes: after which no run begins.
      every: seconds between two readings.
    """
    totals: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        bad = soak_rows.write(f"{folder}/in", rows)
        options = GenerateOptions(
            checkpoint=checkpoint,
            input=(f"{folder}/in",),
            output=f"{folder}/out",
            sampling=SamplingParams(max_tokens=12, top_p=0.95),
            engine=EngineOptions(max_context=soak_rows.CONTEXT),
        )
        # What is loaded once and kept, Beam and JAX among it, is there before the first reading.
        run(prepare_job(dataclasses.replace(options, limit=200)))
        registry.close_all()
        watch = Watch(every)
        before = watch.read()
        with watch.watching():
            while not totals or watch.read().seconds < 60 * minutes:
                seeded = dataclasses.replace(options, run_seed=totals["runs"], overwrite=True)
                totals += _run(seeded)
        registry.close_all()
        gc.collect()
        after = watch.read()
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine.describe(),
        "parameters": Grok1Config.from_json(
            pathlib.Path(checkpoint, "config.json").read_bytes()
        ).num_params,
        "rows": rows * totals["runs"],
        "bad_rows": bad * totals["runs"],
        "totals": totals,
        "before": dataclasses.asdict(before),
        "readings": [dataclasses.asdict(reading) for reading in watch.readings],
        "after": dataclasses.asdict(after),
    }


def _run(options: GenerateOptions) -> collections.Counter[str]:
    """One run; what its manifest says, and the rows that a reader finds."""
    job = prepare_job(options)
    run(job)
    manifest = read_manifest(job.folder)
    assert manifest is not None
    read = read_completions(options.output, columns=["status"]).num_rows
    names = ("rows_in", "succeeded", "errored", "rows_out", "duplicates", "parts")
    tokens = ("prompt_tokens", "completion_tokens")
    counted = {name: manifest[name] for name in (*names, *tokens)}
    return collections.Counter({"runs": 1, "read_back": read, **counted})


def summary(found: dict[str, Any]) -> str:
    """The figures in sentences, with a table of what was held."""
    totals, readings = found["totals"], _warm(found)
    slope = _slope(found)
    hours = (readings[-1]["seconds"] - readings[0]["seconds"]) / 3600
    header = ["", "before", *(f"{share:.0%}" for share in _SHARES), "after"]
    chosen = [found["before"], *(_at(found, share) for share in _SHARES), found["after"]]
    names = {
        "memory, MiB": lambda held: f"{held['rss_bytes'] / _MIB:,.0f}",
        "threads": lambda held: held["threads"],
        "open files": lambda held: held["open_files"],
        "programs compiled": lambda held: held["compiled"] - found["before"]["compiled"],
    }
    table = markdown.table(
        header, [[name, *(tell(held) for held in chosen)] for name, tell in names.items()]
    )
    return (
        f"{found['rows']:,} rows in {found['readings'][-1]['seconds'] / 60:.0f} minutes "
        f"({totals['runs']} runs) through a model of {found['parameters']:,} parameters, "
        f"{totals['prompt_tokens']:,} tokens in and {totals['completion_tokens']:,} out; "
        f"{found['date']}, {found['machine']}, shared with other work.\n\n{table}\n\n"
        f"Over the last {1 - _WARM:.0%} of it memory went by {slope * 3600 / _MIB:+.1f} MiB an "
        f"hour, {slope * 3600 * hours / readings[0]['rss_bytes']:+.2%} of what it was. "
        f"{totals['rows_in']:,} in = {totals['succeeded']:,} succeeded + "
        f"{totals['errored']:,} errored ({found['bad_rows']:,} were bad); "
        f"{totals['rows_out']:,} out, {totals['read_back']:,} read back; "
        f"{totals['duplicates']:,} were answered as equals of another."
    )


def faults(found: dict[str, Any]) -> list[str]:
    """What should not be: rows that are not accounted for, and what grew; a sentence each."""
    totals, before, after = found["totals"], found["before"], found["after"]
    first, last = _warm(found)[0], _warm(found)[-1]
    said = []
    if not found["rows"] == totals["rows_in"] == totals["succeeded"] + totals["errored"]:
        said.append(f"{found['rows']} rows went in, but the manifests have {totals}")
    if totals["errored"] != found["bad_rows"]:
        said.append(f"{found['bad_rows']} rows were bad, but {totals['errored']} errored")
    if totals["read_back"] != totals["rows_out"]:
        said.append(f"{totals['rows_out']} rows were written, but {totals['read_back']} read")
    growth = _slope(found) * (last["seconds"] - first["seconds"])
    if growth > _FLAT * first["rss_bytes"]:
        said.append(f"memory grew by {growth / _MIB:.0f} MiB")
    for name in ("threads", "open_files"):
        if last[name] > _FEW_MORE * first[name] or after[name] > before[name]:
            said.append(f"{name} grew: {before[name]}, {first[name]}, {last[name]}, {after[name]}")
    if last["compiled"] > first["compiled"]:
        said.append(f"{last['compiled'] - first['compiled']} programs were compiled in mid-run")
    return said


def _warm(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Readings once caches are full, while there are rows to come."""
    rows = [reading for reading in found["readings"] if reading["rows"] < found["rows"]]
    return rows[int(_WARM * len(rows)) :]


def _at(found: dict[str, Any], share: float) -> dict[str, Any]:
    """The first reading with so many of the rows done."""
    readings = found["readings"]
    return next((r for r in readings if r["rows"] >= share * found["rows"]), readings[-1])


def _slope(found: dict[str, Any]) -> float:
    """Bytes of memory a second, by least squares over the warm readings."""
    warm = _warm(found)
    return statistics.linear_regression(
        [reading["seconds"] for reading in warm], [reading["rss_bytes"] for reading in warm]
    ).slope


if __name__ == "__main__":
    main()
