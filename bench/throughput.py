"""How fast the engine is, alone and through ``grok1 generate``, beside what the machine could do.

    python -m bench.throughput                 # all workloads; writes bench/results/throughput.json
    python -m bench.throughput --quick         # a look, in about a minute

The model is Grok-1's architecture at a size that a small machine holds (``grok1 synth --preset
bench``). Wall time is what a user waits for; on a machine that others use as well, CPU seconds say
more, and the share of the machine's limit is one of CPU seconds.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import as_completed
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import end_to_end, limits, workloads
from bench.limits import Limits
from bench.workloads import Workload
from model.checkpoint.synth import synthesize
from model.config import PRESETS
from model.engine.engine import Engine
from model.engine.options import EngineOptions, EngineStats
from model.engine.request import Request
from model.engine.scoring import ScoreRequest
from schemas.sampling import SamplingParams

RESULTS = pathlib.Path(__file__).parent / "results" / "throughput.json"
MODEL = pathlib.Path(tempfile.gettempdir()) / "grok1-bench-model"
CONFIG = PRESETS["bench"]

_QUICK_ROWS = 64


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
      limit_seconds: what the machine could do it in at best.
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

    @property
    def limit_share(self) -> float:
        """Share of the machine's limit, by the CPU seconds that were taken."""
        return self.limit_seconds * limits.cores() / self.cpu_seconds


def run_workload(engine: Engine, workload: Workload, machine: Limits, rows: int) -> Run:
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
    work = limits.work_of(CONFIG, workload, computed, rows)
    return Run(
        workload=workload.name,
        seconds=seconds,
        cpu_seconds=used,
        first_result_seconds=first,
        output_tokens=gain.completion_tokens,
        prompt_tokens=workload.prompt_tokens,
        computed_tokens=computed,
        occupancy=gain.occupancy_while_waiting,
        limit_seconds=machine.seconds(work),
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", metavar="DIR", help=f"the bench model (made in {MODEL} if not given)")
    add("--workloads", nargs="+", choices=workloads.WORKLOADS, default=list(workloads.WORKLOADS))
    add("--rounds", type=int, default=2, metavar="N", help="times that each is run (2)")
    add("--rows", type=int, metavar="N", help="only the first N rows of each")
    add("--slots", type=int, metavar="N", help="sequences decoded at once")
    add("--end-to-end-rows", type=int, default=2000, metavar="N", help="(2000; 0 for none)")
    add("--quick", action="store_true", help=f"one round of {_QUICK_ROWS} rows, nothing written")
    add("--output", type=pathlib.Path, default=RESULTS, metavar="FILE", help="(%(default)s)")
    given = parser.parse_args(arguments)
    if given.quick:
        given.rounds, given.end_to_end_rows = 1, min(given.end_to_end_rows, 2 * _QUICK_ROWS)
        given.rows = given.rows or _QUICK_ROWS
    console = Console(highlight=False)
    model = given.checkpoint or make_model(console)

    result: dict[str, Any] = {"date": datetime.datetime.now(datetime.UTC).isoformat("T", "minutes")}
    with tempfile.TemporaryDirectory() as cache:
        result["start"] = {kind: measure_start(model, cache) for kind in ("cold", "warm")}
    machine = limits.measure()
    result["limits"] = dataclasses.asdict(machine)
    runs: list[Run] = []
    with Engine.from_checkpoint(model, options=EngineOptions(slots=given.slots)) as engine:
        result["engine"] = engine.provenance()
        rows = int(result["engine"]["slots"])
        run_workload(engine, workloads.make("uniform-128").first(8), machine, rows)
        for turn in range(given.rounds):
            for name in given.workloads:
                workload = workloads.make(name).varied(turn)
                workload = workload.first(given.rows) if given.rows else workload
                runs.append(run_workload(engine, workload, machine, rows))
                console.print(f"  {name}: {runs[-1].seconds:.1f} s", style="dim")
        if given.end_to_end_rows:
            result["end_to_end"] = end_to_end.compare(
                engine, model, workloads.uniform(given.end_to_end_rows), given.rounds
            )
    result["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result["runs"] = [{**dataclasses.asdict(r), "limit_share": r.limit_share} for r in runs]
    show(console, result, runs)
    if not given.quick:
        given.output.parent.mkdir(exist_ok=True)
        given.output.write_text(json.dumps(result, indent=1) + "\n")
        console.print(f"written to {given.output}")


def make_model(console: Console) -> str:
    """The bench model's folder, made if it is not there."""
    if not (MODEL / "config.json").exists():
        console.print(f"making the bench model in {MODEL}")
        synthesize(str(MODEL), CONFIG)
    return str(MODEL)


def show(console: Console, result: dict[str, Any], runs: list[Run]) -> None:
    """Prints medians as tables."""
    table = Table(title="engine alone, medians", title_justify="left")
    table.add_column("workload")
    for name in (
        "output tok/s",
        "prompt tok/s",
        "first result",
        "slots full*",
        "cores had",
        "of the limit",
    ):
        table.add_column(name, justify="right")
    for name in dict.fromkeys(run.workload for run in runs):
        some = [run for run in runs if run.workload == name]

        def median(value, some=some):
            return statistics.median(map(value, some))

        table.add_row(
            name,
            f"{median(lambda r: r.output_tokens / r.seconds):,.0f}",
            f"{median(lambda r: r.prompt_tokens / r.seconds):,.0f}",
            f"{median(lambda r: r.first_result_seconds):.2f} s",
            f"{median(lambda r: r.occupancy):.1%}",
            f"{median(lambda r: r.cpu_seconds / r.seconds):.2f}",
            f"{median(lambda r: r.limit_share):.0%}",
        )
    console.print(table)
    console.print("* of the decode rows, while a row waited for one\n", style="dim")
    facts = Table.grid(padding=(0, 2))
    rates = ", ".join(f"{k} {v / 1e9:,.0f}" for k, v in result["limits"]["products"].items())
    facts.add_row("limit", f"{rates} GFLOP/s of bfloat16 products by {limits.cores()} cores;")
    facts.add_row("", f"{result['limits']['read_rate'] / 1e9:.0f} GB/s of memory read")
    for kind, start in result["start"].items():
        facts.add_row(
            f"{kind} start",
            f"{start['first_token_seconds']:.1f} s to the first token, "
            f"{start['compile_seconds']:.1f} s of it compiling, {start['load_seconds']:.1f} s "
            "loading at the same time",
        )
    if found := result.get("end_to_end"):
        facts.add_row(
            "grok1 generate",
            f"{found['ratio']:.3f} of the engine alone, {found['rows']:,} rows "
            f"({found['generate_seconds']:.1f} s, {found['engine_seconds']:.1f} s)",
        )
    facts.add_row("peak memory", f"{result['peak_rss_bytes'] / 1e9:.1f} GB")
    console.print(facts)


if __name__ == "__main__":
    main()
