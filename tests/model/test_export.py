import dataclasses
import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from model.checkpoint import gguf_write, huggingface_write
from model.checkpoint import numbers as numbers_module
from model.checkpoint.export import export_checkpoint
from model.checkpoint.numbers import numbers, stored_shape
from model.checkpoint.source import open_checkpoint
from model.checkpoint.synth import synthesize
from model.config import PRESETS
from model.params import declare
from model.tokenizer import Tokenizer
from pipeline.cli import main
from schemas.error import SetupError
from tests.model import reference

SHAPE = dataclasses.replace(
    PRESETS["tiny"], emb_size=64, num_layers=2, num_q_heads=8, num_kv_heads=4, ffn_size=96
)
"""What llama.cpp can run: heads as wide as the model, rows that 32 divides."""


@pytest.fixture(scope="module")
def small(tmp_path_factory, trained) -> str:
    folder = tmp_path_factory.mktemp("small")
    synthesize(str(folder), SHAPE, tokenizer=trained.model)
    return str(folder)


def expected(checkpoint) -> dict[tuple[int | None, str], np.ndarray]:
    """All weights, products' as [..., out, in]."""
    weights = reference.dequantized(checkpoint)
    return {
        (layer, name): value
        if value.ndim == 1 or name == "embedding"
        else np.swapaxes(value, -1, -2)
        for (layer, name), value in weights.items()
    }


# Numbers.


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_numbers_are_the_weights_output_by_output(small, block, monkeypatch):
    monkeypatch.setattr(numbers_module, "_BLOCK_NUMBERS", block)
    checkpoint = open_checkpoint(small)
    weights = expected(checkpoint)
    for tensor, host in checkpoint.stream():
        shape = stored_shape(tensor.param)
        found = np.concatenate([b.reshape(-1) for b in numbers(tensor.param, host)]).reshape(shape)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, weights[tensor.layer, tensor.param.name], rtol=1e-6)
        if len(shape) == 3:
            one = np.concatenate(list(numbers(tensor.param, host, expert=5)))
            np.testing.assert_array_equal(one, found[5])


def test_memory_is_a_block_whatever_the_tensor():
    param = dataclasses.replace(declare(PRESETS["grok-1"])["gate"], shape=(2, 6144, 4096))
    host = numbers_module.HostTensor(
        np.ones(param.shape, np.int8), np.ones(param.scales_shape, ml_dtypes.bfloat16)
    )
    tracemalloc.start()
    count = sum(block.size for block in numbers(param, host))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2 * 6144 * 4096
    assert peak < 100 << 20  # the whole takes 200 MB as float32


# Hugging Face.


def test_a_folder_for_hugging_face_is_the_same_model(tiny, tmp_path, monkeypatch):
    """The very integers, as far as the release has integers."""
    monkeypatch.setattr(huggingface_write, "_FILE_BYTES", 200_000)
    done = []
    written = export_checkpoint(
        tiny, str(tmp_path), "huggingface", progress=lambda *step: done.append(step)
    )
    assert sum(name.endswith(".safetensors") for name in written) > 3
    assert done[-1][0] == done[-1][1] > 0
    ours, release = open_checkpoint(str(tmp_path)), open_checkpoint(tiny)
    ours.verify()
    assert (ours.kind, ours.config) == ("huggingface", release.config)
    for tensor, host in release.stream():
        found, values = ours.read(tensor), host.values
        if tensor.param.name == "embedding":
            values = values.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(found.values, values)
        if host.scales is not None:
            np.testing.assert_array_equal(found.scales, host.scales)


def test_the_formats_own_library_reads_the_shards(small, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_write, "_FILE_BYTES", 500_000)
    export_checkpoint(small, str(tmp_path), "huggingface", dtype="f32")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    loaded, size = {}, 0
    for path in sorted(tmp_path.glob("*.safetensors")):
        assert path.stat().st_size < 600_000
        arrays = safetensors.numpy.load_file(path)
        assert all(index["weight_map"][name] == path.name for name in arrays)
        loaded |= arrays
        size += sum(array.nbytes for array in arrays.values())
    assert set(loaded) == set(index["weight_map"])
    assert size == index["metadata"]["total_size"]
    weights = expected(open_checkpoint(small))
    layer = "model.layers.1"
    for name, key in {
        "model.embed_tokens.weight": (None, "embedding"),
        "lm_head.weight": (None, "embedding"),
        f"{layer}.attn.o_proj.weight": (1, "attn_out"),
        f"{layer}.moe_block.gate.weight": (1, "router"),
        f"{layer}.post_moe_norm.scale": (1, "moe_post_norm"),
    }.items():
        np.testing.assert_allclose(loaded[name], weights[key], rtol=1e-6)
    assert Tokenizer.load(str(tmp_path / "tokenizer.model")).vocab_size == SHAPE.vocab_size
    expert = loaded[f"{layer}.moe_block.experts.7.linear_1.weight"]
    np.testing.assert_allclose(expert, weights[1, "down"][7], rtol=1e-6)


def test_numbers_of_a_port_are_passed_on(small, tmp_path):
    export_checkpoint(small, "memory://port", "huggingface")
    export_checkpoint("memory://port", str(tmp_path), "huggingface")
    first, second = open_checkpoint("memory://port"), open_checkpoint(str(tmp_path))
    for tensor, host in first.as_numbers().stream():
        np.testing.assert_array_equal(second.as_numbers().read(tensor).values, host.values)


# GGUF.


def as_gguf(source, path, **options) -> dict:
    """A GGUF file's tensors as float32, and its fields."""
    gguf = pytest.importorskip("gguf")
    export_checkpoint(source, str(path), "gguf", **options)
    reader = gguf.GGUFReader(path)
    arrays = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return arrays, {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize(
    ("dtype", "near"), [("f32", 1e-6), ("bf16", 2**-8), ("f16", 2**-10), ("q8_0", 0.05)]
)
def test_a_gguf_file_is_the_same_model(small, tmp_path, dtype, near):
    arrays, _ = as_gguf(small, tmp_path / "model.gguf", dtype=dtype)
    weights = expected(open_checkpoint(small))
    assert len(arrays) == len(weights)
    for (layer, name), weight in weights.items():
        start = "" if layer is None else f"blk.{layer}."
        found = arrays[f"{start}{gguf_write._NAMES[name]}.weight"]
        scale = np.abs(weight).max() if dtype == "q8_0" else np.abs(weight)
        assert (np.abs(found - weight) <= near * scale + 1e-7).all(), name
        if weight.ndim == 1 or name == "router":
            np.testing.assert_allclose(found, weight, rtol=1e-6)


def test_a_gguf_file_says_what_llama_cpp_asks_for(small, tmp_path, trained):
    _, fields = as_gguf(small, tmp_path / "model.gguf")
    assert fields["general.architecture"] == "grok"
    for key, value in {
        "block_count": 2,
        "context_length": 256,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 8,
        "attention.head_count_kv": 4,
        "expert_count": 8,
        "expert_used_count": 2,
        "rope.dimension_count": 8,
        "rope.freq_base": 10000.0,
        "vocab_size": 1024,
    }.items():
        assert fields[f"grok.{key}"] == value
    for key, value in {
        "attention.layer_norm_rms_epsilon": SHAPE.rms_norm_eps,
        "attn_logit_softcapping": 30,
        "attention.output_scale": SHAPE.attn_output_multiplier,
        "embedding_scale": SHAPE.embedding_multiplier_scale,
        "logit_scale": SHAPE.output_multiplier_scale,
    }.items():
        assert fields[f"grok.{key}"] == pytest.approx(value)
    assert fields["tokenizer.ggml.tokens"][:4] == ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]
    assert fields["tokenizer.ggml.tokens"][4] == "\n"
    assert len(fields["tokenizer.ggml.scores"]) == trained.vocab_size
    assert fields["tokenizer.ggml.eos_token_id"] == 2
    assert fields["tokenizer.ggml.add_bos_token"] is False


def test_a_model_without_a_tokenizer_is_written(tmp_path):
    synthesize(str(tmp_path / "bare"), SHAPE)
    _, fields = as_gguf(str(tmp_path / "bare"), tmp_path / "model.gguf")
    assert fields["tokenizer.ggml.model"] == "no_vocab"


def test_a_large_model_is_several_files(small, tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf")
    monkeypatch.setattr(gguf_write, "_FILE_BYTES", 300_000)
    written = export_checkpoint(small, str(tmp_path / "model.gguf"), "gguf")
    assert written[0].endswith("model-00001-of-00004.gguf")
    names = [t.name for path in written for t in gguf.GGUFReader(path).tensors]
    assert len(names) == len(set(names)) == len(open_checkpoint(small).tensors())
    with pytest.raises(SetupError, match=r"model-00001-of-00004\.gguf is already there"):
        export_checkpoint(small, str(tmp_path / "model.gguf"), "gguf")


# What goes wrong.


def test_what_llama_cpp_cannot_run_is_refused(tiny, small, tmp_path):
    pytest.importorskip("gguf")
    with pytest.raises(
        SetupError, match=r"num_q_heads \* key_size \(128\) to equal emb_size \(32\)"
    ):
        export_checkpoint(tiny, str(tmp_path / "x.gguf"), "gguf")
    odd = dataclasses.replace(SHAPE, ffn_size=104)
    synthesize(str(tmp_path / "odd"), odd)
    with pytest.raises(SetupError, match=r"ffn_size \(104\) to be a multiple of 32"):
        export_checkpoint(str(tmp_path / "odd"), str(tmp_path / "x.gguf"), "gguf", dtype="q8_0")
    with pytest.raises(SetupError, match="local disk only"):
        export_checkpoint(small, "memory://x.gguf", "gguf")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(("form", "name"), [("gguf", "model.gguf"), ("huggingface", "folder")])
def test_nothing_is_overwritten_unasked(small, tmp_path, form, name):
    if form == "gguf":
        pytest.importorskip("gguf")
    target = str(tmp_path / name)
    first = export_checkpoint(small, target, form)
    with pytest.raises(SetupError, match="already"):
        export_checkpoint(small, target, form)
    assert export_checkpoint(small, target, form, overwrite=True) == first
    assert not list(tmp_path.glob(".export-*"))


def test_the_command(small, tmp_path, capsys):
    pytest.importorskip("gguf")
    target = str(tmp_path / "model.gguf")
    arguments = ["export", "--checkpoint", small, "--to", target]
    assert main([*arguments, "--format", "gguf"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert main([*arguments, "--format", "csv"]) == 2
    assert "a checkpoint cannot be written as csv: use gguf, huggingface" in capsys.readouterr().err
    assert main([*arguments, "--format", "gguf", "--dtype", "int3"]) == 2
    assert "--dtype must be one of bf16, f16, f32, q8_0" in capsys.readouterr().err
