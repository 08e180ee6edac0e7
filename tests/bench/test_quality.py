import numpy as np
import pytest

from bench.int4_schemes import SCHEMES
from bench.quality import Truth, _Requantized
from model.checkpoint.source import open_checkpoint
from model.params import Tensor, declare
from tests.model.engine.conftest import truth


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, 64, 48))


@pytest.mark.parametrize("name", SCHEMES)
def test_each_scheme_has_at_most_16_levels_a_group(weights, name):
    scheme, _ = SCHEMES[name]
    made = scheme(weights)
    assert made.shape == weights.shape
    for group in range(4):
        for column in range(48):
            assert len(np.unique(made[group, :, column].round(12))) <= 16
    zeros = scheme(np.zeros((1, 8, 2)))
    np.testing.assert_array_equal(zeros, 0)


def test_what_conversion_does_loses_less_than_rounding_to_nearest(weights):
    lost = {
        name: np.square(scheme(weights) - weights).mean() for name, (scheme, _) in SCHEMES.items()
    }
    ours, floor = lost["signed scale of least error"], lost["round to nearest"]
    assert ours < 0.75 * floor
    assert lost["the same with a zero point"] < floor
    assert lost["NF4"] < floor


def test_truth_agrees_with_itself(tiny):
    sequence = truth("exact").sequences[1]
    exact = Truth(open_checkpoint(tiny), [sequence])
    np.testing.assert_allclose(exact.logits, truth("exact").full[1], rtol=1e-9, atol=1e-9)
    error, agreed, perplexity = exact.row(exact.logits)
    assert (error, agreed) == ("0.00%", "100.00%")
    mean = truth("exact").logprob[1][1:].mean()
    assert float(perplexity) == pytest.approx(np.exp(-mean), rel=1e-3)
    worse = exact.logits + np.random.default_rng(0).normal(size=exact.logits.shape) * exact.spread
    assert float(exact.row(worse)[0].rstrip("%")) == pytest.approx(100, abs=1)


def test_bits_a_weight_are_of_the_groups_that_each_matrix_has(tiny):
    """22 rows share a scale of ``down``; of the 32 of ``gate`` and ``up`` only 16 can."""
    checkpoint = open_checkpoint(tiny)
    reader = _Requantized(checkpoint, SCHEMES["round to nearest"][0], 22)
    for param in declare(checkpoint.config).values():
        if "experts" in param.axes:
            list(reader(Tensor(param, 0), 1))
    assert reader.scales == pytest.approx((2 / 16 + 1 / 22) / 3)
