import dataclasses
import hashlib
import io
import math
import pathlib
import pickle
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import __main__
from model.checkpoint import pickle_write, synth
from model.checkpoint.pickle_write import ArraySource, write_array, write_quantized
from model.checkpoint.source import open_checkpoint
from model.checkpoint.synth import synthesize
from model.checkpoint.synth_tokenizer import synthesize_tokenizer
from model.config import GROK_1, PRESETS, Grok1Config
from model.params import declare
from model.tokenizer import Tokenizer
from schemas.error import SetupError

SMALL = dataclasses.replace(PRESETS["tiny"], num_layers=2)


def written(values, scales=None) -> bytes:
    file = io.BytesIO()
    if scales is None:
        write_array(file, ArraySource.of(values))
    else:
        write_quantized(file, ArraySource.of(values), ArraySource.of(scales))
    return file.getvalue()


def digest(folder) -> str:
    whole = hashlib.sha256()
    for path in sorted(pathlib.Path(folder, "ckpt-0").iterdir()):
        whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()


# The format.


def test_files_of_the_release_come_out_byte_for_byte(tiny):
    checkpoint = open_checkpoint(tiny)
    for tensor, read in checkpoint.stream():
        assert (
            written(read.values, read.scales)
            == pathlib.Path(checkpoint.file_url(tensor)).read_bytes()
        )


@pytest.mark.parametrize("weight", [10, 255, 256, 40_000, 65_300, 65_450, 65_535, 65_536, 200_000])
@pytest.mark.parametrize("scales", [5, 127, 128, 20_000, 32_700, 32_767, 32_768, 50_000])
def test_frames_are_where_python_puts_them(weight, scales, monkeypatch):
    """The sizes around 64 KiB are those at which Python changes frames."""
    cls = type("QuantizedWeight8bit", (), {"__module__": "__main__"})
    monkeypatch.setattr(__main__, "QuantizedWeight8bit", cls, raising=False)
    current = pickle_write._Global("numpy._core.multiarray", "_reconstruct")
    monkeypatch.setattr(pickle_write, "_RECONSTRUCT", current)
    expected = cls()
    expected.weight = np.arange(weight).astype(np.int8)
    expected.scales = np.arange(scales).astype(ml_dtypes.bfloat16)
    assert written(expected.weight, expected.scales) == pickle.dumps(expected, 4)


class _Counter:
    size = 0

    def write(self, data):
        self.size += len(data)


@pytest.mark.parametrize(("name", "size"), [("gate", 1_611_137_347), ("down", 1_611_399_491)])
def test_sizes_are_those_of_the_published_files(name, size):
    def zeros(shape, dtype):
        count, block = math.prod(shape) * np.dtype(dtype).itemsize, bytes(1 << 19)
        assert count % len(block) in (0, 1 << 18)
        chunks = [block] * (count // len(block)) + [block[: count % len(block)]]
        return ArraySource(shape, np.dtype(dtype), lambda: chunks)

    param, file = declare(GROK_1)[name], _Counter()
    write_quantized(
        file, zeros(param.shape, np.int8), zeros(param.scales_shape, ml_dtypes.bfloat16)
    )
    assert file.size == size


# The contents.


def test_what_is_written_is_read_and_verified(tmp_path, trained):
    steps = []
    synthesize(
        str(tmp_path / "new"),
        SMALL,
        seed=3,
        tokenizer=trained.model,
        progress=lambda tensor, size: steps.append((tensor.label, size)),
    )
    checkpoint = open_checkpoint(str(tmp_path / "new"))
    checkpoint.verify()
    assert checkpoint.config == SMALL
    assert Tokenizer.load(checkpoint.tokenizer_url).identity == trained.identity
    assert [label for label, _ in steps] == [t.label for t in checkpoint.tensors()]
    assert sum(size for _, size in steps) == checkpoint.nbytes
    for tensor, read in checkpoint.stream():
        if tensor.param.quantized:
            values, scales = read.values.astype(float), read.scales.astype(float)
            assert (values.min(), values.max()) == (-127, 127)
            assert abs(values.mean()) < 5
            assert values.std() == pytest.approx(127 / math.sqrt(3), rel=0.1)
            fan_in = tensor.param.shape[-2]
            assert scales.mean() * values.std() * math.sqrt(fan_in) == pytest.approx(1.5, rel=0.1)
            assert scales.std() > 0.05 * scales.mean()
        elif "norm" in tensor.param.name:
            assert read.values.std() > 0.05 * read.values.mean() > 0


def test_the_same_seed_gives_the_same_bytes_for_ever(tmp_path):
    synthesize(str(tmp_path / "a"), SMALL, seed=7)
    synthesize(str(tmp_path / "b"), SMALL, seed=8)
    assert digest(tmp_path / "a") != digest(tmp_path / "b")
    assert digest(tmp_path / "a") == (
        "5c988635f079770ef63d73982fbdd85a91357b76bdbeee765dd0838dca6f1a2a"
    )


def test_layers_and_tensors_differ(tmp_path):
    synthesize(str(tmp_path), SMALL)
    heads = {path.read_bytes()[-64:-20] for path in (tmp_path / "ckpt-0").iterdir()}
    assert len(heads) == 26


def test_a_checkpoint_is_not_overwritten_unasked(tmp_path):
    synthesize(str(tmp_path), SMALL, seed=1)
    before = digest(tmp_path)
    with pytest.raises(SetupError, match="already holds tensors"):
        synthesize(str(tmp_path), SMALL, seed=2)
    assert digest(tmp_path) == before
    synthesize(str(tmp_path), dataclasses.replace(SMALL, num_layers=1), seed=2, overwrite=True)
    assert digest(tmp_path) != before
    open_checkpoint(str(tmp_path)).verify()


def test_a_tokenizer_of_another_model_is_refused_before_anything_is_written(tmp_path, trained):
    config = dataclasses.replace(SMALL, vocab_size=2048)
    with pytest.raises(SetupError, match=r"has 1024 pieces, .* 2048"):
        synthesize(str(tmp_path / "new"), config, tokenizer=trained.model)
    assert not (tmp_path / "new").exists()


def test_tensors_are_streamed():
    """At the size of a real tensor, memory must stay at a few chunks."""
    param = dataclasses.replace(declare(GROK_1)["gate"], shape=(8, 6144, 2048))
    random = np.random.SFC64(0)
    tracemalloc.start()
    write_quantized(file := _Counter(), *synth._quantized(param, random))
    embedding = dataclasses.replace(declare(GROK_1)["embedding"], shape=(4096, 6144))
    write_array(file, synth._float32(embedding, random, 0, 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert file.size > 200e6
    assert peak < 10 << 20


def test_own_logits_do_not_drown_the_others():
    """Embeddings are tied: a token whose own logit towers would repeat for ever."""
    for config in (GROK_1, *PRESETS.values()):
        params = declare(config)
        _, reach = synth._spread(params["embedding"], config)
        final, _ = synth._spread(params["final_norm"], config)
        std = reach / math.sqrt(3)
        width = math.sqrt(config.emb_size)
        logits = config.output_multiplier_scale * final * width * std
        assert logits == pytest.approx(2.5)
        hidden = math.sqrt(2 * config.num_layers)
        assert width * config.embedding_multiplier_scale * std / hidden == pytest.approx(1)


# The tokenizer.


def test_the_trained_tokenizer_is_of_the_releases_kind(trained):
    assert (trained.pad_id, trained.bos_id, trained.eos_id, trained.unk_id) == (0, 1, 2, 3)
    decode = trained.decode
    assert decode(range(4), skip_special_tokens=False) == "[PAD][BOS][EOS][UNK]"
    assert [decode([i]) for i in (4, 14, 23, 24, 32, 47, 68)] == [
        "\n", "0", "9", "\t", "  ", "<|separator|>", "<|control20|>",
    ]  # fmt: skip
    assert bytes(b for i in range(69, 325) for b in trained.token_bytes()[i]) == bytes(range(256))
    assert decode([325]) == " "


@pytest.mark.parametrize("vocab_size", [512, 1024, 8192])
def test_training_is_repeatable_and_of_the_size_asked_for(vocab_size):
    model = synthesize_tokenizer(vocab_size)
    assert model == synthesize_tokenizer(vocab_size)
    assert Tokenizer(model).vocab_size == vocab_size


@pytest.mark.parametrize("vocab_size", [1, 511, 8193, 131072])
def test_sizes_that_cannot_be_trained_are_refused(vocab_size):
    with pytest.raises(SetupError, match="512 to 8192 pieces"):
        synthesize_tokenizer(vocab_size)


def test_any_config_can_be_written(tmp_path):
    config = Grok1Config(
        vocab_size=7,
        emb_size=3,
        num_layers=1,
        num_q_heads=1,
        num_kv_heads=1,
        key_size=2,
        ffn_size=5,
        num_experts=3,
        num_selected_experts=1,
        sequence_len=8,
        attn_output_multiplier=1.0,
        embedding_multiplier_scale=1.0,
        model_shards=1,
    )
    synthesize("memory://odd", config)
    open_checkpoint("memory://odd").verify()
    for _, read in open_checkpoint("memory://odd").stream():
        assert np.isfinite(read.values.astype(float)).all()
