"""How fast the engine is, alone and through ``grok1 generate``, beside what the machine could do.

    python -m bench.throughput --record        # all of it, into bench/results/ and the document
    python -m bench.throughput --quick         # a look, in a minute or two

The model is Grok-1's architecture at a size that a small machine holds (``grok1 synth --preset
bench``). Wall time is what a user waits for; on a machine that others use as well, CPU seconds say
more, and the share of the machine's limit is one of CPU seconds.
"""

import argparse
import dataclasses
import datetime
import json
import logging
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import as_completed
from typing import Any

from bench import end_to_end, limits, machine, throughput_report, workloads
from bench.limits import Limits
from bench.workloads import Workload
from model.checkpoint.synth import synthesize
from model.config import PRESETS
from model.engine.engine import Engine
from model.engine.options import EngineOptions, EngineStats
from model.engine.request import Request
from model.engine.scoring import ScoreRequest
from schemas.sampling import SamplingParams

MODEL = pathlib.Path(tempfile.gettempdir()) / "grok1-bench-model"

_QUICK_ROWS = 16
_SLOTS = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One workload, run once.

    Attributes:
      workload: its name.
      seconds: from the first submission to the last result.
      cpu_seconds: of this process meanwhile.
      first_result_seconds: until the first row was answered.
      output_tokens: drawn.
      prompt_tokens: asked for.
      computed_tokens: prompt tokens that were run; the others were shared.
      occupancy: share of decode rows in use, while a row waited for one.
      limit_seconds: what the machine could do it in at best, by all of its cores.
      limit_share: share of that limit, by the CPU seconds that were taken.
    """

    workload: str
    seconds: float
    cpu_seconds: float
    first_result_seconds: float
    output_tokens: int
    prompt_tokens: int
    computed_tokens: int
    occupancy: float
    limit_seconds: float
    limit_share: float


def run_workload(engine: Engine, workload: Workload, limit: Limits) -> Run:
    """Asks for all rows at once and waits for them."""
    before, used = engine.stats(), time.process_time()
    started = time.perf_counter()
    futures = submit(engine, workload)
    done = (time.perf_counter() for _ in as_completed(futures))
    first = next(done) - started
    seconds = max((at - started for at in done), default=first)
    used = time.process_time() - used
    for future in futures:
        assert future.result().error is None, future.result().error
    gain = gained(before, engine.stats())
    computed = gain.prefilled_tokens
    work = limits.work_of(engine.config, workload, computed, engine.capacity)
    limit_seconds = limit.seconds(work)
    return Run(
        workload=workload.name,
        seconds=seconds,
        cpu_seconds=used,
        first_result_seconds=first,
        output_tokens=gain.completion_tokens,
        prompt_tokens=workload.prompt_tokens,
        computed_tokens=computed,
        occupancy=gain.occupancy_while_waiting,
        limit_seconds=limit_seconds,
        limit_share=limit_seconds * machine.cores() / used,
    )


def submit(engine: Engine, workload: Workload) -> list[Any]:
    """Futures of all rows; those of several samples are sampled, the others greedy."""
    if workload.output_tokens == 0:
        return engine.submit_scores(
            [
                ScoreRequest(context_token_ids=job.prompt[:1], continuations=(job.prompt[1:],))
                for job in workload.jobs
            ]
        )
    return engine.submit_all(
        [
            Request(
                prompt_token_ids=job.prompt,
                params=SamplingParams(
                    n=job.n,
                    temperature=0.0 if job.n == 1 else 1.0,
                    max_tokens=job.max_tokens,
                    ignore_eos=True,
                ),
                address=f"{workload.name}/{i}",
            )
            for i, job in enumerate(workload.jobs)
        ]
    )


def gained(before: EngineStats, after: EngineStats) -> EngineStats:
    """What counters gained."""
    return EngineStats(
        **{
            field.name: getattr(after, field.name) - getattr(before, field.name)
            for field in dataclasses.fields(EngineStats)
        }
    )


def measure_start(model: str, cache: str) -> dict[str, float]:
    """Starts an engine in a process of its own, with its compiled steps kept in ``cache``."""
    command = [sys.executable, "-m", "bench.start", model, cache]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints the tables, and on request records them."""
    logging.basicConfig(level=logging.ERROR)  # as the command does: Beam warns of what is no matter
    parser = argparse.ArgumentParser(
        prog="python -m bench.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    names = list(workloads.WORKLOADS)
    add("--checkpoint", metavar="DIR", help=f"another model (the bench model, in {MODEL})")
    add("--workloads", nargs="+", choices=names, default=names, metavar="WORK", help=str(names))
    add("--rounds", type=int, default=2, metavar="N", help="times that each is run (2)")
    add("--rows", type=int, metavar="N", help="only the first N rows of each")
    add("--slots", type=int, default=_SLOTS, metavar="N", help="decoded at once (%(default)s)")
    add("--end-to-end-rows", type=int, default=2000, metavar="N", help="(2000; 0 for none)")
    add("--growth-rows", type=int, default=1000, metavar="N", help="and ten times (1000; 0: none)")
    add("--quick", action="store_true", help=f"one round of {_QUICK_ROWS} rows")
    add("--record", action="store_true", help="write the results and the table into the project")
    given = parser.parse_args(arguments)
    if given.quick:
        given.rounds, given.rows = 1, given.rows or _QUICK_ROWS
        given.end_to_end_rows = min(given.end_to_end_rows, given.rows)
        given.growth_rows = min(given.growth_rows, given.rows // 4)
    result = measure(given, given.checkpoint or make_model())
    print("\n" + throughput_report.markdown_of(result))
    if given.record:
        print("\nwritten: " + ", ".join(map(str, throughput_report.record(result))))


def measure(given: argparse.Namespace, model: str) -> dict[str, Any]:
    """All that was asked for, as it is recorded."""
    date = datetime.datetime.now(datetime.UTC).isoformat("T", "minutes")
    result: dict[str, Any] = {"date": date, "machine": machine.describe(), "rows": given.rows}
    with tempfile.TemporaryDirectory() as cache:
        result["start"] = {kind: measure_start(model, cache) for kind in ("cold", "warm")}
    limit = limits.measure()
    result["limits"] = dataclasses.asdict(limit)
    runs: list[Run] = []
    with Engine.from_checkpoint(model, options=EngineOptions(slots=given.slots)) as engine:
        result["engine"] = engine.provenance()
        run_workload(engine, workloads.make("uniform-128").first(8), limit)
        for turn in range(given.rounds):
            for name in given.workloads:
                workload = workloads.make(name).varied(turn)
                workload = workload.first(given.rows) if given.rows else workload
                runs.append(run_workload(engine, workload, limit))
                print(f"round {turn + 1}, {name}: {runs[-1].seconds:.1f} s", flush=True)
        result["runs"] = [dataclasses.asdict(run) for run in runs]
        result["peak_rss_bytes"] = peak_rss()
        if given.end_to_end_rows:
            rows = end_to_end.middling(given.end_to_end_rows)
            result["end_to_end"] = end_to_end.compare(engine, model, rows, given.rounds)
        if given.growth_rows:
            result["growth"] = end_to_end.growth(engine, model, given.growth_rows)
    return result


def make_model() -> str:
    """The bench model's folder, made if it is not there."""
    if not (MODEL / "config.json").exists():
        print(f"making the bench model in {MODEL}", flush=True)
        synthesize(str(MODEL), PRESETS["bench"])
    return str(MODEL)


def peak_rss() -> int:
    """The most memory in bytes that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
