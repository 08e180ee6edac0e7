import dataclasses
import functools
import json
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint.convert import convert
from model.checkpoint.huggingface import CONFIG, INDEX
from model.checkpoint.inspect import inspect_checkpoint
from model.checkpoint.ports import HEAD, port_config, weight_map
from model.checkpoint.quantize_int8 import quantize_int8
from model.checkpoint.recode import dequantize, read_as
from model.checkpoint.source import open_checkpoint
from model.config import GROK_1
from model.params import tensors
from model.placement import load_params
from pipeline.cli import main
from schemas.error import SetupError
from tests.model import reference
from tests.model.engine.conftest import truth
from tests.model.engine.test_golden import Forward
from tests.model.ports import HPCAI, KEYFAN, port_arrays, port_values, write_port

PORTS = {"hpcai": HPCAI, "keyfan": KEYFAN}


@pytest.fixture(scope="module", params=PORTS)
def port(request, tiny, tmp_path_factory) -> str:
    """The golden checkpoint as each port has it."""
    folder = tmp_path_factory.mktemp(request.param)
    return write_port(folder, port_arrays(tiny, PORTS[request.param]), port_values(tiny))


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


@pytest.fixture
def copy(port, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(port, tmp_path / "copy"))


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


# Faults.


def refusal(url, use=lambda checkpoint: checkpoint.verify()) -> str:
    with pytest.raises(SetupError) as caught:
        use(open_checkpoint(str(url)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: pathlib.Path, change) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_shard_cut_short_or_not_there(copy):
    shard = copy / "model-00002-of-00003.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    told = refusal(copy)
    assert "model-00002-of-00003.safetensors in" in told
    assert "bytes where its header describes" in told
    shard.unlink()
    assert "misses" in refusal(copy)
    assert "complete the download" in refusal(copy)
    assert not inspect_checkpoint(str(copy)).ok


def test_another_model(copy, tiny):
    edit(copy / INDEX, lambda v: v["weight_map"].update({"model.extra.weight": "a.safetensors"}))
    assert "has 1 more arrays than its config.json asks for: model.extra.weight" in refusal(copy)
    edit(copy / CONFIG, lambda v: v.update(num_hidden_layers=13))
    assert "misses 12 of 158 tensors: layers.12.attn_norm" in refusal(copy)
    edit(copy / CONFIG, lambda v: v.update(num_hidden_layers=12, intermediate_size=352))
    edit(copy / INDEX, lambda v: v["weight_map"].pop("model.extra.weight"))
    assert "asks for bfloat16[352, 32]" in refusal(copy)
    names = {
        f"model.layers.{i}.mlp.gate.weight": "model-00001-of-00003.safetensors" for i in (0, 1)
    }
    names["model.embed_tokens.weight"] = "model-00001-of-00003.safetensors"
    (copy / INDEX).write_text(json.dumps({"weight_map": names}))
    assert "is a checkpoint of another model" in refusal(copy)


def test_an_output_head_of_its_own(tiny, tmp_path):
    arrays = port_arrays(tiny, HPCAI)
    arrays[HEAD][5, 3] += 1
    url = write_port(tmp_path / "port", arrays, port_values(tiny))
    told = refusal(url, lambda checkpoint: checkpoint.read(checkpoint.tensors()[0]))
    assert "lm_head.weight differs from model.embed_tokens.weight" in told


def test_pickles_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    assert "holds PyTorch pickles, which run what they ask for" in refusal(tmp_path)


def test_no_config(copy):
    (copy / CONFIG).unlink()
    assert "has no config.json: complete the download" in refusal(copy)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_size": None}, "emb_size must be an integer"),
        ({"hidden_size": -4}, "emb_size must be"),
        ({"hidden_size": 1 << 40}, "emb_size must be"),
        ({"num_attention_heads": 0}, "num_q_heads must be"),
        ({"num_attention_heads": "16"}, "num_q_heads must be"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps must be"),
        ({"num_hidden_layers": 10**9}, "num_layers must be"),
    ],
)
def test_a_config_that_makes_no_sense(copy, change, told):
    edit(copy / CONFIG, lambda values: values.update(change))
    assert told in refusal(copy)


def test_a_config_that_lacks_a_size(copy):
    edit(copy / CONFIG, lambda values: values.pop("intermediate_size"))
    assert "config: missing intermediate_size" in refusal(copy)


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


@pytest.mark.parametrize(
    "shard",
    ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", "", 7, None,
     "s3://other/x.safetensors", "..\\x.safetensors", "a\n.safetensors", "~/x.safetensors"],
)  # fmt: skip
def test_an_index_reaches_for_no_other_file(copy, shard):
    edit(copy / INDEX, lambda v: v["weight_map"].update({"model.norm.scale": shard}))
    assert "which is no safetensors file beside it" in refusal(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "{}", '{"weight_map": 3}'])
def test_an_index_that_is_none(copy, text):
    (copy / INDEX).write_text(text)
    assert INDEX in refusal(copy)


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)


@given(index=st.dictionaries(st.just("weight_map") | st.text(max_size=9), _ANY))
def test_any_index_is_refused_or_names_files_beside_it(index):
    try:
        found = weight_map(index, INDEX)
    except SetupError as fault:
        assert INDEX in str(fault)
        return
    assert all(pathlib.PurePath(shard).name == shard for shard in found.values())


_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_experts",
    "eos_token_id",
)


@given(values=st.dictionaries(st.sampled_from(_SIZES), _ANY))
def test_any_config_is_refused_or_makes_a_model(values):
    try:
        config = port_config(values)
    except SetupError as fault:
        assert str(fault).startswith("config: ")
        return
    assert dataclasses.is_dataclass(config)
