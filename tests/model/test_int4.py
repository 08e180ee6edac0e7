import dataclasses

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint import quantize_int4 as quantizer
from model.checkpoint.base import HostTensor
from model.checkpoint.convert import convert
from model.checkpoint.int4 import pack_int4, unpack_int4
from model.checkpoint.quantize_int4 import quantize_int4
from model.checkpoint.recode import read_as
from model.checkpoint.source import open_checkpoint
from model.config import GROK_1, PRESETS
from model.params import declare, int4_group, tensors
from schemas.error import SetupError
from tests.model.reference import numbers


@given(
    values=st.lists(st.integers(-8, 7), min_size=2, max_size=40).filter(lambda v: len(v) % 2 < 1)
)
def test_two_to_a_byte(values):
    array = np.array([values, values[::-1]], np.int8)
    packed = pack_int4(array)
    assert packed.shape == (2, len(values) // 2)
    np.testing.assert_array_equal(unpack_int4(packed).astype(np.int8), array)


def rounded_to_nearest(weights: np.ndarray, groups: int) -> np.ndarray:
    """The floor: 4-bit weights whose scale makes the largest of a group 7."""
    grouped = weights.reshape(*weights.shape[:-2], groups, -1, weights.shape[-1])
    scale = abs(grouped).max(-2, keepdims=True) / 7
    return (np.rint(grouped / np.where(scale, scale, 1)) * scale).reshape(weights.shape)


def normal(weight: float) -> float:
    """Nothing so small that its squares have no precision left."""
    return weight if abs(weight) > 1e-6 else 0.0


@given(
    weights=st.lists(st.floats(-100, 100, width=32).map(normal), min_size=2, max_size=24),
    size=st.integers(-60, 40),
)
def test_no_scale_near_the_largest_weights_loses_less(weights, size):
    """All scales of five significant bits between 0.76 and 1.19 of an eighth of it."""
    group = np.ldexp(np.array(weights, np.float32), size)[:, None]
    values, scale = quantizer._best(group)
    error = np.square(values * np.float64(scale) - group).sum()
    largest = group[np.abs(group).argmax(), 0] / np.float64(-8)
    exponent = int(np.frexp(largest)[1])
    for other in (np.ldexp(k / 32, exponent + e) for e in (0, 1) for k in range(16, 32)):
        if 0.76 < other / (abs(largest) or np.inf) < 1.19:
            signed = np.copysign(other, largest)
            theirs = np.clip(np.rint(group / signed), -8, 7) * signed
            assert error <= np.square(theirs - group).sum() * (1 + 1e-5)


def test_it_beats_rounding_to_nearest_where_weights_are_as_trained_ones_are():
    rng = np.random.default_rng(0)
    param = declare(GROK_1, "int4")["down"]
    assert param.groups == 512
    weights = rng.normal(size=(2, 1024, 96))
    scales = (abs(weights).max(1, keepdims=True) / 127).astype(ml_dtypes.bfloat16)
    values = np.rint(weights / scales.astype(np.float64)).clip(-127, 127).astype(np.int8)
    whole = HostTensor(values, scales)
    made = quantize_int4(whole, dataclasses.replace(param, shape=weights.shape, groups=16))
    assert made.scales.shape == (2, 16, 96)
    exact = numbers(whole)
    error = np.square(numbers(made) - exact).mean() ** 0.5
    floor = np.square(rounded_to_nearest(exact, 16) - exact).mean() ** 0.5
    assert error < 0.86 * floor
    assert np.abs(error - 0.0905) < 0.002
    assert set(np.unique(made.values.astype(np.int8))) == set(range(-8, 8))


def test_integer_times_scale_is_exact_in_bfloat16(tiny):
    checkpoint = open_checkpoint(tiny)
    read = read_as(checkpoint, "int4")
    for tensor in tensors(checkpoint.config, "int4"):
        if tensor.param.stored == "int4":
            for part in read(tensor, 8):
                product = numbers(part)
                np.testing.assert_array_equal(
                    product.astype(ml_dtypes.bfloat16).astype(np.float64), product
                )


@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_a_store_of_4_bit_experts(tiny, tmp_path, shards):
    """The same weights for any number of devices, whatever it was made for."""
    made = convert(tiny, str(tmp_path / "store"), weights="int4", shards=shards)
    assert made.nbytes < 0.75 * open_checkpoint(tiny).nbytes
    store, release = open_checkpoint(str(tmp_path / "store")), open_checkpoint(tiny)
    assert store.weights == "int4"
    read = read_as(release, "int4")
    for tensor in tensors(store.config, "int4"):
        for count in (1, 2, 8):
            ours, theirs = list(store.read_parts(tensor, count)), list(read(tensor, count))
            assert len(ours) == len(theirs)
            for a, b in zip(ours, theirs, strict=True):
                assert a.values.dtype == b.values.dtype
                assert a.values.shape == tensor.param.part(count).shape
                np.testing.assert_array_equal(a.values, b.values)
                if b.scales is not None:
                    assert a.scales.shape == tensor.param.part(count).scales_shape
                    np.testing.assert_array_equal(a.scales, b.scales)
    with pytest.raises(SetupError, match="holds int4 weights, of which no int8 ones are made"):
        convert(store.url, str(tmp_path / "back"), weights="int8")


def test_groups_divide_what_a_device_holds():
    assert [int4_group(rows) for rows in (6144, 4096, 64, 22, 342, 67)] == [64, 64, 64, 22, 57, 1]
    for config in (GROK_1, *PRESETS.values()):
        for param in declare(config, "int4").values():
            if param.stored == "int4":
                assert param.shape[-2] % param.groups == 0
                assert param.part(4).shape[-2] % param.part(4).groups == 0
