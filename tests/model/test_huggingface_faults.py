"""What broken and foreign checkpoints of Hugging Face's layout are refused with."""

import dataclasses
import json
import pathlib
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint.huggingface import CONFIG, INDEX
from model.checkpoint.inspect import inspect_checkpoint
from model.checkpoint.ports import HEAD, port_config, weight_map
from model.checkpoint.source import open_checkpoint
from schemas.error import SetupError
from tests.model.ports import HPCAI, port_arrays, port_values, write_port


@pytest.fixture
def copy(port, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(port, tmp_path / "copy"))


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
