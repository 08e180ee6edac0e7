"""What ``grok1 generate`` loses against the engine alone: the same engine and rows, by turns."""

import dataclasses
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.workloads import Job, uniform, vary
from model.engine.engine import Engine
from model.engine.request import Request, RequestOutput
from pipeline import GenerateOptions, prepare_job, registry
from pipeline.job import run
from schemas.sampling import SamplingParams

_MIDDLING, _SHORT = 32, 8
"""Tokens of a row, in and out. What is done for a row, and not for a token, weighs most in short
ones."""


class TimedEngine:
    """An engine as the pipeline sees it, which notes when it is first asked and last answers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asked: list[Took] = []
        self._answered: list[Took] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, request: Request, cached_tokens: int = 0) -> Future[RequestOutput]:
        self._asked.append(_now())
        future = self._engine.submit(request, cached_tokens)
        future.add_done_callback(lambda _: self._answered.append(_now()))
        return future

    def close(self, **kind: bool) -> None:
        """The engine is not the pipeline's to close."""

    @property
    def took(self) -> "Took":
        """From the first submission to the last result."""
        first, last = self._asked[0], self._answered[-1]
        return Took(last.seconds - first.seconds, last.cpu_seconds - first.cpu_seconds)


@dataclasses.dataclass(frozen=True)
class Took:
    """Seconds, and CPU seconds of this process."""

    seconds: float
    cpu_seconds: float


def _now() -> Took:
    return Took(time.perf_counter(), time.process_time())


def compare(engine: Engine, model: str, jobs: Sequence[Job], rounds: int) -> dict[str, Any]:
    """Medians of both; the ratio is the engine's time over the pipeline's, by CPU seconds too.

    Args:
      engine: of the model.
      model: the checkpoint's folder.
      jobs: the rows; their prompts and lengths.
      rounds: how often each is done.
    """
    alone, whole = [], []
    for turn in range(rounds):
        alone.append(_alone(engine, _varied(jobs, 2 * turn)))
        whole.append(_generate(engine, model, _varied(jobs, 2 * turn + 1)))
    return {
        "rows": len(jobs),
        "engine_seconds": statistics.median(a.seconds for a in alone),
        "generate_seconds": statistics.median(w.seconds for w in whole),
        "engine_cpu_seconds": statistics.median(a.cpu_seconds for a in alone),
        "generate_cpu_seconds": statistics.median(w.cpu_seconds for w in whole),
        "ratio": statistics.median(
            a.seconds / w.seconds for a, w in zip(alone, whole, strict=True)
        ),
        "cpu_ratio": statistics.median(
            a.cpu_seconds / w.cpu_seconds for a, w in zip(alone, whole, strict=True)
        ),
    }


def middling(count: int) -> list[Job]:
    """What a comparison runs."""
    return _cut(uniform(count), _MIDDLING)


def growth(engine: Engine, model: str, rows: int) -> dict[str, Any]:
    """What a row takes through ``grok1 generate`` in ten times as many rows: short ones.

    Ten runs of the few go around the one of the many, since a machine's speed changes with time.
    """
    jobs = _cut(uniform(10 * rows), _SHORT)
    few = [_generate(engine, model, _varied(jobs[:rows], turn)) for turn in range(1, 6)]
    before = resident()
    many = _generate(engine, model, jobs)
    after = resident()
    few += [_generate(engine, model, _varied(jobs[:rows], turn)) for turn in range(6, 11)]
    return {
        "rows": rows,
        "more_rows": len(jobs),
        "ratio": many.seconds / sum(f.seconds for f in few),
        "cpu_ratio": many.cpu_seconds / sum(f.cpu_seconds for f in few),
        "rss_bytes": before,
        "more_rss_bytes": after,
    }


def _cut(jobs: Sequence[Job], tokens: int) -> list[Job]:
    return [dataclasses.replace(job, prompt=job.prompt[:tokens], max_tokens=tokens) for job in jobs]


def _varied(jobs: Sequence[Job], turn: int) -> list[Job]:
    return [dataclasses.replace(job, prompt=vary(job.prompt, turn)) for job in jobs]


def _params(jobs: Sequence[Job]) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=jobs[0].max_tokens, ignore_eos=True)


def _alone(engine: Engine, jobs: Sequence[Job]) -> Took:
    requests = [
        Request(prompt_token_ids=job.prompt, params=_params(jobs), address=str(i))
        for i, job in enumerate(jobs)
    ]
    timed = TimedEngine(engine)
    for future in [timed.submit(request) for request in requests]:
        future.result()
    return timed.took


def _generate(engine: Engine, model: str, jobs: Sequence[Job]) -> Took:
    with tempfile.TemporaryDirectory() as folder:
        prompts = pa.table({"prompt_token_ids": [job.prompt for job in jobs]})
        pq.write_table(prompts, f"{folder}/prompts.parquet", row_group_size=256)
        timed = TimedEngine(engine)
        made = registry.factory
        registry.factory = lambda _: timed
        try:
            options = GenerateOptions(
                checkpoint=model,
                input=(f"{folder}/prompts.parquet",),
                output=f"{folder}/completions",
                sampling=_params(jobs),
            )
            run(prepare_job(options))
            registry.close_all()
        finally:
            registry.factory = made
        return timed.took


def resident() -> int:
    """Bytes of this process that are in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
