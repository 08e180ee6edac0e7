"""What all runners share; needs nothing but Python."""

import contextlib
import importlib.metadata
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Jobs = list[dict[str, Any]]
"""``prompt`` (token ids), ``max_tokens`` and ``n`` of each job."""

_WARM_UP_JOBS = 8


def serve(load: Callable[[str, dict[str, Any]], Callable[[Jobs], int]], packages: Sequence[str]):
    """Loads a model, warms it up, runs the workloads one after another, and writes the result.

    Args:
      load: given a model's path and settings, loads it and returns a function that completes jobs
        and returns how many tokens it generated.
      packages: whose versions the result names, as far as they are installed.
    """
    request = json.loads(pathlib.Path(sys.argv[1]).read_text())
    started = time.perf_counter()
    complete = load(request["model"], request["settings"])
    load_seconds = time.perf_counter() - started
    complete([{**job, "max_tokens": 4} for job in request["workloads"][0]["jobs"][:_WARM_UP_JOBS]])
    runs = []
    for workload in request["workloads"]:
        started = time.perf_counter()
        tokens = complete(workload["jobs"])
        seconds = time.perf_counter() - started
        expected = sum(job["max_tokens"] * job["n"] for job in workload["jobs"])
        if tokens != expected:
            raise RuntimeError(
                f"{workload['name']}: {tokens} tokens came where {expected} were due"
            )
        runs.append({"workload": workload["name"], "seconds": seconds, "output_tokens": tokens})
    result = {
        "versions": dict(_versions(packages)),
        "load_seconds": load_seconds,
        "runs": runs,
    }
    pathlib.Path(sys.argv[2]).write_text(json.dumps(result))


def _versions(packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)
