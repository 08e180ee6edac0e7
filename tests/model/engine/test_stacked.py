"""Weights as accelerators hold them, integers in stacks that a loop walks: the same numbers."""

import numpy as np
import pytest

from model.engine.engine import Engine
from model.engine.options import EngineOptions
from model.layout import choose_layout
from model.numerics import MODES
from tests.model.engine.conftest import GOLDEN, truth
from tests.model.engine.test_golden import scored


def errors(numerics: str) -> np.ndarray:
    """How far each log-probability is from the exact one."""
    options = EngineOptions(numerics=numerics, slots=8, prefill_rows=64)
    layout = choose_layout("tpu", MODES[numerics])
    assert layout.stacked
    assert layout.quantized
    with Engine.from_checkpoint(str(GOLDEN), options=options, layout=layout) as engine:
        logprob, _ = scored(engine)
    return abs(logprob - truth("exact").flat("logprob"))


def test_float32_is_exact():
    assert errors("float32").max() < 1e-4 * (1 + abs(truth("exact").flat("logprob")).max())


@pytest.mark.slow
@pytest.mark.parametrize("numerics", ["bf16", "release"])
def test_rounded_modes_are_no_farther_from_exact_than_the_reference(numerics):
    reference = truth("reference_bf16").flat("logprob")
    theirs = abs(reference - truth("exact").flat("logprob")).mean()
    assert errors(numerics).mean() <= 1.05 * theirs
