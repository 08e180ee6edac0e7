import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest

from model.engine.engine import Engine
from model.engine.options import EngineOptions
from schemas.sampling import SamplingParams

GOLDEN = Path(__file__).parents[2] / "data" / "grok1-tiny"


@dataclasses.dataclass(frozen=True)
class Truth:
    """What golden data says of its sequences, position by position."""

    sequences: list[list[int]]
    top1: list[np.ndarray]
    gap: list[np.ndarray]
    logprob: list[np.ndarray]
    full: list[np.ndarray]
    last: np.ndarray

    def flat(self, name: str) -> np.ndarray:
        return np.concatenate(getattr(self, name))


@functools.cache
def truth(name: str) -> Truth:
    data = np.load(GOLDEN / f"{name}.npz")
    cuts = np.cumsum(data["lens"])[:-1]
    split = {key: np.split(data[key], cuts) for key in ("tokens", "top1", "gap", "logprob")}
    return Truth(
        sequences=[s.tolist() for s in split["tokens"]],
        top1=split["top1"],
        gap=split["gap"],
        logprob=split["logprob"],
        full=[data["full0"], data["full1"]],
        last=data["last_logits"],
    )


def greedy(name: str) -> list[dict]:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def one(engine: Engine, prompt, **params):
    """The answer to one prompt, which is no error."""
    [output] = engine.generate([prompt], SamplingParams(**params))
    assert output.error is None
    return output


@pytest.fixture(scope="session")
def engines():
    """Engines on the golden model, or another folder, by options, made once."""
    made: dict[tuple[str, EngineOptions], Engine] = {}

    def get(folder: str = str(GOLDEN), **options) -> Engine:
        key = folder, EngineOptions(**{"slots": 8, "prefill_rows": 64, **options})
        if key not in made:
            made[key] = Engine.from_checkpoint(folder, options=key[1])
        return made[key]

    yield get
    for engine in made.values():
        engine.close()


@pytest.fixture(scope="module")
def engine(engines, talking) -> Engine:
    """The golden model that speaks, rounding nothing."""
    return engines(talking, numerics="float32")
