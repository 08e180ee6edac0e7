"""What ``grok1 generate`` loses against the engine alone: the same engine and rows, by turns."""

import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.workloads import Job, vary
from model.engine.engine import Engine
from model.engine.request import Request, RequestOutput
from pipeline import GenerateOptions, prepare_job, registry
from pipeline.job import run
from schemas.sampling import SamplingParams


class TimedEngine:
    """An engine as the pipeline sees it, which notes when it is first asked and last answers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asked: list[float] = []
        self._answered: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit_all(self, requests: Sequence[Request]) -> list[Future[RequestOutput]]:
        self._asked.append(time.perf_counter())
        futures = self._engine.submit_all(requests)
        for future in futures:
            future.add_done_callback(lambda _: self._answered.append(time.perf_counter()))
        return futures

    def close(self, **kind: bool) -> None:
        """The engine is not the pipeline's to close."""

    @property
    def seconds(self) -> float:
        """From the first submission to the last result."""
        return max(self._answered) - min(self._asked)


def compare(engine: Engine, model: str, jobs: Sequence[Job], rounds: int) -> dict[str, Any]:
    """Medians of both; the ratio is the engine's time over the pipeline's, by CPU seconds too.

    Args:
      engine: of the model.
      model: the checkpoint's folder.
      jobs: the rows; their prompts and lengths.
      rounds: how often each is done.
    """
    params = SamplingParams(temperature=0.0, max_tokens=jobs[0].max_tokens, ignore_eos=True)
    alone, whole, alone_cpu, whole_cpu = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            prompts = [vary(job.prompt, 2 * turn) for job in jobs]
            requests = [
                Request(prompt_token_ids=prompt, params=params, address=str(i))
                for i, prompt in enumerate(prompts)
            ]
            cpu, timed = time.process_time(), TimedEngine(engine)
            for future in timed.submit_all(requests):
                future.result()
            alone.append(timed.seconds)
            alone_cpu.append(time.process_time() - cpu)
            prompts = pa.table(
                {"prompt_token_ids": [vary(job.prompt, 2 * turn + 1) for job in jobs]}
            )
            pq.write_table(prompts, f"{folder}/{turn}.parquet", row_group_size=256)
            cpu, timed = time.process_time(), TimedEngine(engine)
            registry.factory = lambda _, timed=timed: timed
            options = GenerateOptions(
                checkpoint=model,
                input=(f"{folder}/{turn}.parquet",),
                output=f"{folder}/{turn}",
                sampling=params,
            )
            run(prepare_job(options))
            registry.close_all()
            whole.append(timed.seconds)
            whole_cpu.append(time.process_time() - cpu)
    return {
        "rows": len(jobs),
        "engine_seconds": statistics.median(alone),
        "generate_seconds": statistics.median(whole),
        "engine_cpu_seconds": statistics.median(alone_cpu),
        "generate_cpu_seconds": statistics.median(whole_cpu),
        "ratio": statistics.median(a / w for a, w in zip(alone, whole, strict=True)),
        "cpu_ratio": statistics.median(a / w for a, w in zip(alone_cpu, whole_cpu, strict=True)),
    }
