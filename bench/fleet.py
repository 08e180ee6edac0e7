"""What a fleet loses to preemption and to its own end, by the size of a chunk: a simulation.

    python -m bench.fleet --record            # the tables of docs/reliability.md
    python -m bench.fleet --manifest out/_manifest.parquet --preempted-every 2

A worker holds some chunks at once, in its harness threads. Each thread takes a span, as Beam hands
them out, and does its chunks one after another; a chunk that is done is kept for good. A preempted
worker loses what it has under way, its spans go back to the queue with the chunks not done, and
another worker takes its place after a load. Some workers are slow for a while. Chunk times vary as
those of a real run do: by default with the spread that ``bench/results/chunk-seconds.json`` holds,
or as the parts of the manifest that is named.
"""

import argparse
import dataclasses
import heapq
import itertools
import json
import pathlib
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench import markdown
from pipeline.plan import CHUNK_TOKENS

RESULTS = pathlib.Path(__file__).parent / "results"
_DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "reliability.md"
_FLOORS = _DOCUMENT.with_name("full-size.md")

CHUNKS = (1, 2.5, 5, 10, 20, 60)
"""Minutes of a chunk that are compared."""

SPANS = (1, 16)
"""Most chunks that are handed out together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fleet:
    """What is simulated; times in minutes.

    Attributes:
      workers: hosts.
      threads: chunks that each has under way.
      work: minutes that the job would take without any loss.
      chunk: minutes that a chunk takes on the average.
      span: most chunks that are handed out together.
      spread: chunk times over their mean, drawn from at random.
      commit: minutes of writing and looking for a chunk's part, during which its thread idles.
      preempted_every: mean minutes between two preemptions of one worker; 0 for never.
      load: minutes until a worker that begins can take chunks.
      slow_share: share of workers that are slow at any time.
      slow_factor: how much longer a chunk takes there.
    """

    workers: int = 64
    threads: int = 8
    work: float = 480.0
    chunk: float = 5.0
    span: int = 16
    spread: Sequence[float] = (1.0,)
    commit: float = 0.02
    preempted_every: float = 240.0
    load: float = 4.0
    slow_share: float = 0.03
    slow_factor: float = 1.6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of a simulated job; shares of the threads' time.

    Attributes:
      makespan: minutes until the last chunk is done.
      lost: time spent on chunks that were then lost.
      tail: time that threads had nothing to do in while others worked.
      commit: time spent on parts.
      down: time in which a worker that was preempted has no successor yet.
      redone: chunks begun more than once.
    """

    makespan: float
    lost: float
    tail: float
    commit: float
    down: float
    redone: int


@dataclasses.dataclass(slots=True, eq=False)
class _Thread:
    worker: int
    span: list[int] = dataclasses.field(default_factory=list)
    begun: float = 0.0
    busy: bool = False
    epoch: int = 0


def simulate(fleet: Fleet, seed: int = 0) -> Outcome:
    """One job, from the first chunk to the last."""
    chance = random.Random(seed)
    slots = fleet.workers * fleet.threads
    count = max(1, round(fleet.work * slots / fleet.chunk))
    minutes = [fleet.chunk * chance.choice(fleet.spread) for _ in range(count)]
    queue = [
        list(range(first, min(first + fleet.span, count))) for first in range(0, count, fleet.span)
    ]
    queue.reverse()
    tick = itertools.count()
    events: list[tuple[float, int, str, _Thread | int, int]] = []
    fleet_threads = [
        [_Thread(worker) for _ in range(fleet.threads)] for worker in range(fleet.workers)
    ]
    slow = [chance.random() < fleet.slow_share for _ in range(fleet.workers)]
    down_since: dict[int, float] = {}
    left, lost, committing, down, redone, now = count, 0.0, 0.0, 0.0, 0, 0.0
    waiting_since: dict[_Thread, float] = {}
    idle = 0.0

    def begin(thread: _Thread, at: float) -> None:
        nonlocal idle
        if not thread.span:
            if not queue:
                waiting_since.setdefault(thread, at)
                return
            thread.span = queue.pop()
        idle += at - waiting_since.pop(thread, at)
        thread.begun, thread.busy = at, True
        factor = fleet.slow_factor if slow[thread.worker] else 1.0
        end = at + minutes[thread.span[0]] * factor + fleet.commit
        heapq.heappush(events, (end, next(tick), "done", thread, thread.epoch))

    def next_preemption(worker: int, at: float) -> None:
        if fleet.preempted_every:
            end = at + chance.expovariate(1 / fleet.preempted_every)
            heapq.heappush(events, (end, next(tick), "preempted", worker, 0))

    for worker, threads in enumerate(fleet_threads):
        next_preemption(worker, 0.0)
        for thread in threads:
            begin(thread, 0.0)
    while left:
        now, _, what, subject, epoch = heapq.heappop(events)
        if isinstance(subject, _Thread):
            if epoch != subject.epoch:
                continue
            subject.span.pop(0)
            subject.busy = False
            left -= 1
            committing += fleet.commit
            begin(subject, now)
        elif what == "preempted":
            down_since[subject] = now
            for thread in fleet_threads[subject]:
                thread.epoch += 1
                idle += now - waiting_since.pop(thread, now)
                if thread.busy:
                    lost += now - thread.begun
                    redone += 1
                if thread.span:
                    queue.append(thread.span)
                thread.span, thread.busy = [], False
            heapq.heappush(events, (now + fleet.load, next(tick), "up", subject, 0))
            for thread in list(waiting_since):
                begin(thread, now)
        else:
            down += now - down_since.pop(subject)
            slow[subject] = chance.random() < fleet.slow_share
            next_preemption(subject, now)
            for thread in fleet_threads[subject]:
                begin(thread, now)
    idle += sum(now - since for since in waiting_since.values())
    down += sum(now - since for since in down_since.values())
    total = now * slots
    return Outcome(
        makespan=now,
        lost=lost / total,
        tail=idle / total,
        commit=committing / total,
        down=down * fleet.threads / total,
        redone=redone,
    )


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """The outcomes of chunks and spans of all sizes, JSON-ready.

    Args:
      given: the command line.
    """
    spread = _spread(given.manifest)
    rows = []
    for chunk, span in itertools.product(CHUNKS, SPANS):
        fleet = Fleet(
            workers=given.workers,
            threads=given.threads,
            work=given.hours * 60,
            chunk=chunk,
            span=span,
            spread=spread,
            preempted_every=given.preempted_every * 60,
            load=given.load,
        )
        outcomes = [simulate(fleet, seed) for seed in range(given.trials)]
        medians = {
            name: statistics.median(getattr(outcome, name) for outcome in outcomes)
            for name in ("makespan", "lost", "tail", "commit")
        }
        overhead = medians["makespan"] / fleet.work - 1
        rows.append({"chunk": chunk, "span": span, **medians, "overhead": overhead})
    names = ("workers", "threads", "hours", "preempted_every", "load", "trials")
    return {
        **{name: getattr(given, name) for name in names},
        "slow_share": Fleet.slow_share,
        "spread": statistics.pstdev(spread),
        "rows": rows,
    }


def summary(found: Mapping[str, Any]) -> str:
    """The outcomes as a sentence and a table, and what a chunk's tokens are in minutes."""
    outcomes = markdown.table(
        ["minutes a chunk", "chunks a span", "lost to preemption", "idle", "parts", "all overhead"],
        [
            [
                f"{row['chunk']:g}",
                row["span"],
                *(f"{row[name]:.1%}" for name in ("lost", "tail", "commit", "overhead")),
            ]
            for row in found["rows"]
        ],
    )
    return (
        f"{found['workers']} workers of {found['threads']} chunks at once, {found['hours']:g} h of "
        f"work, each preempted every {found['preempted_every']:g} h, {found['load']:g} min to "
        f"load, {found['slow_share']:.0%} of them slow, chunk times ±{found['spread']:.0%} as in "
        f"a real run; medians of {found['trials']}.\n\n{outcomes}\n\n"
        f"A chunk of {CHUNK_TOKENS:,} tokens in minutes, where {found['threads']} share a machine "
        f"that is as fast as its [floors](full-size.md#floors) allow:\n\n"
        f"{_minutes(found['threads'])}"
    )


def _minutes(threads: int) -> str:
    header, *rows = markdown.rows(_FLOORS, "floors")
    told = []
    for *machine, decode, prefill in rows:
        floors = [float(floor.replace(",", "")) for floor in (decode, prefill)]
        # Of as many prompt tokens as completion tokens, one after the other.
        mixed = 2 / sum(1 / floor for floor in floors)
        minutes = [threads * CHUNK_TOKENS / rate / 60 for rate in (floors[0], mixed)]
        told.append([*machine, decode, prefill, *(f"{value:.1f}" for value in minutes)])
    return markdown.table([*header, "all decoded, min", "half of them, min"], told)


def main() -> None:
    """Simulates, prints, and records if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = Fleet()
    parser.add_argument("--workers", type=int, default=defaults.workers)
    parser.add_argument("--threads", type=int, default=defaults.threads)
    parser.add_argument("--hours", type=float, default=defaults.work / 60, help="of the whole job")
    parser.add_argument("--preempted-every", type=float, default=4.0, help="hours; 0 for never")
    parser.add_argument("--load", type=float, default=defaults.load, help="minutes")
    parser.add_argument("--manifest", help="_manifest.parquet of a run, for its chunks' times")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="keep the figures")
    given = parser.parse_args()
    found = compare(given)
    print(summary(found))
    if given.record:
        (RESULTS / "fleet.json").write_text(json.dumps(found, indent=1) + "\n")
        markdown.replace(_DOCUMENT, "fleet", summary(found))


def _spread(manifest: str | None) -> list[float]:
    """Chunk times over their mean."""
    if manifest is None:
        seconds = json.loads((RESULTS / "chunk-seconds.json").read_text())["seconds"]
    else:
        import pyarrow.parquet as pq

        seconds = pq.read_table(manifest, columns=["seconds"]).column(0).to_pylist()
    mean = statistics.fmean(seconds)
    return [value / mean for value in seconds if value]


if __name__ == "__main__":
    main()
