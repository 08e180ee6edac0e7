"""From a few rows run on the model to all rows: how many tokens will come out."""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from model.engine.request import Request, RequestOutput
from pipeline import registry
from pipeline.estimate.census import Census
from pipeline.prepare import Job

_RESAMPLES = 2000
_QUANTILES = (0.1, 0.5, 0.9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pilot:
    """A trial of some rows.

    Attributes:
      rows: how many were run.
      tokens_out: what came out of them.
      share: tokens out as a share of the ``max_tokens`` asked for; at its 10th, 50th and 90th
        percentile over resamplings of the rows.
      seconds: it took, loading and compiling apart.
      tokens_per_second: out of this machine.
    """

    rows: int
    tokens_out: int
    share: tuple[float, float, float]
    seconds: float
    tokens_per_second: float


def run_pilot(job: Job, census: Census) -> Pilot:
    """Runs the requests that the census kept on this machine's devices."""
    held = registry.acquire(registry.engine_settings(job))
    requests = [request for _, request in census.pilot]
    started = time.monotonic()
    outputs = [future.result() for future in held.engine.submit_all(requests)]
    seconds = time.monotonic() - started
    drawn, asked = lengths(requests, outputs)
    return Pilot(
        rows=len(requests),
        tokens_out=int(drawn.sum()),
        share=share_of_most(drawn, asked),
        seconds=seconds,
        tokens_per_second=drawn.sum() / max(seconds, 1e-9),
    )


def lengths(
    requests: Sequence[Request], outputs: Sequence[RequestOutput]
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens drawn, and the most that were asked for, of each request that was completed."""
    pairs = [
        (
            sum(len(o.token_ids) for o in output.outputs),
            request.params.n * request.params.max_tokens,
        )
        for request, output in zip(requests, outputs, strict=True)
        if output.error is None
    ]
    drawn, asked = np.array(pairs, np.int64).reshape(-1, 2).T
    return drawn, asked


def share_of_most(drawn: np.ndarray, asked: np.ndarray) -> tuple[float, float, float]:
    """Percentiles 10, 50 and 90 of sum(drawn) / sum(asked), by resampling rows.

    A ratio, since rows may ask for different ``max_tokens``. The draw is seeded: the same rows give
    the same forecast.
    """
    if not len(drawn):
        return (1.0, 1.0, 1.0)
    random = np.random.default_rng(0)
    rows = random.integers(len(drawn), size=(_RESAMPLES, len(drawn)))
    ratios = drawn[rows].sum(1) / asked[rows].sum(1)
    low, middle, high = np.quantile(ratios, _QUANTILES).tolist()
    return low, middle, high
