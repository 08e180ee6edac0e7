import functools
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint.convert import convert
from model.checkpoint.huggingface import CONFIG
from model.checkpoint.inspect import inspect_checkpoint
from model.checkpoint.ports import port_config
from model.checkpoint.quantize_int8 import quantize_int8
from model.checkpoint.recode import dequantize, read_as
from model.checkpoint.source import open_checkpoint
from model.config import GROK_1
from model.params import tensors
from model.placement import load_params
from pipeline.cli import main
from tests.model import reference
from tests.model.engine.conftest import truth
from tests.model.engine.test_golden import Forward
from tests.model.ports import KEYFAN, port_arrays, port_values, write_port


@functools.cache
def compiled() -> Forward:
    return Forward()


def forward_pass(checkpoint) -> Forward:
    """The network in float32, compiled once, with a checkpoint's weights."""
    forward = compiled()
    plan = forward.plan
    forward.params = load_params(
        checkpoint.read_parts, plan.config, plan.mesh, plan.numerics, plan.layout
    )
    return forward


def test_the_released_integers_and_scales_are_found_again(tiny, port):
    """All of them; what the release has as float32 is as near as bfloat16 comes."""
    ours, release = open_checkpoint(port), open_checkpoint(tiny)
    ours.verify()
    assert (ours.kind, ours.weights) == ("huggingface", "int8")
    assert ours.config == release.config
    for tensor in tensors(release.config):
        found, expected = ours.read(tensor), release.read(tensor)
        assert found.values.dtype == expected.values.dtype
        if expected.scales is None:
            rounded = expected.values.astype(ml_dtypes.bfloat16).astype(np.float32)
            np.testing.assert_array_equal(found.values, rounded)
        else:
            np.testing.assert_array_equal(found.values, expected.values)
            np.testing.assert_array_equal(found.scales, expected.scales)
    assert ours.recovery.exact == ours.recovery.groups > 40_000


@pytest.mark.parametrize("count", [2, 8])
def test_devices_read_parts_of_the_whole(port, count):
    checkpoint = open_checkpoint(port)
    for tensor in checkpoint.tensors()[:16]:
        whole, axis = checkpoint.read(tensor), tensor.param.split_axis
        parts = list(checkpoint.read_parts(tensor, count))
        joined = np.concatenate([part.values for part in parts], axis or 0)
        np.testing.assert_array_equal(joined, whole.values)
        if whole.scales is not None:
            joined = np.concatenate([part.scales for part in parts], axis)
            np.testing.assert_array_equal(joined, whole.scales)
        if axis is not None:
            (last,) = checkpoint.read_parts(tensor, count, [count - 1])
            np.testing.assert_array_equal(last.values, parts[-1].values)


def test_the_forward_pass(port, tiny):
    """Logits are those of the port's own numbers; the release's but for what bfloat16 rounds."""
    ours, release = open_checkpoint(port), open_checkpoint(tiny)
    tokens = truth("exact").sequences[1]
    weights = reference.dequantized(ours)
    want = reference.logits(ours.config, weights, tokens)
    found = forward_pass(ours).error(tokens, want)
    assert found < 1e-4
    # Embedding, router and norms, rounded to eight bits, move logits by about a hundredth.
    released = reference.logits(release.config, reference.dequantized(release), tokens)
    assert np.linalg.norm(want - released) < 0.03 * np.linalg.norm(released)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_other_dtypes(tiny, tmp_path, dtype):
    url = write_port(tmp_path / "port", port_arrays(tiny, KEYFAN, dtype), port_values(tiny))
    ours, release = open_checkpoint(url), open_checkpoint(tiny)
    for tensor in tensors(release.config)[:16]:
        found, expected = ours.read(tensor), release.read(tensor)
        if expected.scales is not None or dtype == np.float32:
            np.testing.assert_array_equal(found.values, expected.values)
    assert ours.recovery.exact == ours.recovery.groups


def test_one_file_without_an_index(tiny, tmp_path):
    arrays = port_arrays(tiny, KEYFAN)
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / CONFIG).write_text(json.dumps(port_values(tiny)))
    checkpoint = open_checkpoint(str(tmp_path))
    checkpoint.verify()
    assert {t.label for t in checkpoint.tensors()} == {t.label for t in tensors(checkpoint.config)}


def test_conversion(port, tiny, tmp_path, capsys):
    """To the release's own int8, to 4 bits as from the release, and to the numbers as they are."""
    release = open_checkpoint(tiny)
    for weights in ("int8", "int4"):
        target = str(tmp_path / weights)
        assert main(["convert", "--from", port, "--to", target, "--weights", weights]) == 0
        *_, said = capsys.readouterr().out.splitlines()
        found, _, groups, *rest = said.split()
        assert (found, rest[0]) == (groups, "scale")
        made, read = open_checkpoint(target), read_as(release, weights)
        for tensor in tensors(release.config, weights)[:30]:
            if tensor.param.quantized:
                (expected,) = read(tensor, 1)
                np.testing.assert_array_equal(made.read(tensor).values, expected.values)
    done = convert(port, str(tmp_path / "bf16"), weights="bf16")
    assert done.groups == 0
    made = open_checkpoint(str(tmp_path / "bf16"))
    for tensor in tensors(release.config, "bf16")[:30]:
        if tensor.param.stored == "bfloat16":
            as_int8 = next(t for t in release.tensors() if t.label == tensor.label)
            np.testing.assert_array_equal(
                made.read(tensor).values, dequantize(release.read(as_int8))
            )


def test_inspection(port):
    report = inspect_checkpoint(port)
    assert report.ok
    assert (report.kind, report.tensors, report.present) == ("huggingface", 146, 146)
    assert report.dtypes == {"bfloat16": report.parameters}


def test_the_released_size_has_the_released_constants():
    values = {
        "vocab_size": 131072,
        "hidden_size": 6144,
        "intermediate_size": 32768,
        "num_hidden_layers": 64,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
        "rope_theta": 1e5,
    }
    assert port_config(values) == GROK_1
    other = port_config(values | {"num_hidden_layers": 2, "attn_output_multiplier": 0.1} | {
        "embedding_multiplier_scale": 1.0, "num_local_experts": 4,
    })  # fmt: skip
    assert (other.key_size, other.sequence_len, other.num_experts) == (128, 4096, 4)


# Finding the integers again.


@given(
    data=st.data(),
    dtype=st.sampled_from([ml_dtypes.bfloat16, np.float16, np.float32]),
    size=st.integers(-6, 3),
)
def test_numbers_made_of_integers_come_back_bit_for_bit(data, dtype, size):
    count, rows = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 70))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    integers = rng.integers(-127, 128, (count, rows))
    integers[:, 0] = rng.choice([-127, 127, 100, 64], count)
    scales = np.ldexp(rng.uniform(0.5, 1, count), size).astype(ml_dtypes.bfloat16)
    numbers = (integers * scales.astype(np.float32)[:, None]).astype(dtype)
    values, found, exact = quantize_int8(numbers)
    again = (values * found.astype(np.float32)[:, None]).astype(dtype)
    np.testing.assert_array_equal(again[exact], numbers[exact])
    assert exact.all()


def test_numbers_made_of_none_are_rounded():
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(50, 300)).astype(ml_dtypes.bfloat16)
    numbers[7] = 0
    values, scales, exact = quantize_int8(numbers)
    assert exact.tolist() == [group == 7 for group in range(50)]
    error = values * scales.astype(np.float32)[:, None] - numbers.astype(np.float32)
    assert (abs(error) <= scales.astype(np.float32)[:, None] * 0.5001).all()
    assert (abs(values).max(1)[exact == 0] >= 126).all()
