import dataclasses
import json
import pathlib
import pickle
import shutil

import ml_dtypes
import numpy as np
import pytest

import __main__
from model.checkpoint.pickle_read import UnsafePickle
from model.checkpoint.pickle_write import ArraySource, write_array, write_quantized
from model.checkpoint.release import ReleaseCheckpoint, file_name, file_order
from model.checkpoint.synth import synthesize
from model.config import GROK_1, PRESETS
from model.params import tensors
from schemas.error import SetupError


@pytest.fixture
def copy(tiny, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(tiny, tmp_path / "copy"))


def find(url) -> ReleaseCheckpoint:
    checkpoint = ReleaseCheckpoint.find(str(url))
    assert checkpoint is not None
    return checkpoint


def tensor_named(checkpoint, label):
    return next(t for t in checkpoint.tensors() if t.label == label)


def write(path, values, scales=None):
    with open(path, "wb") as file:
        if scales is None:
            write_array(file, ArraySource.of(values))
        else:
            write_quantized(file, ArraySource.of(values), ArraySource.of(scales))


def test_files_are_numbered_in_text_order(tiny):
    order = file_order(find(tiny).config)
    listed = json.loads(pathlib.Path(tiny, "index.json").read_text())["tensors"]
    assert [t.release_name for t in order] == [entry["name"] for entry in listed]
    assert [t.layer for t in order[2::12]] == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    assert file_name(769) == "tensor00769_000"
    assert len(file_order(GROK_1)) == 770


def test_every_tensor_is_what_python_unpickles(tiny, monkeypatch):
    cls = type("QuantizedWeight8bit", (), {"__module__": "__main__"})
    monkeypatch.setattr(__main__, "QuantizedWeight8bit", cls, raising=False)
    checkpoint = find(tiny)
    seen = []
    for tensor, read in checkpoint.stream():
        expected = pickle.loads(pathlib.Path(checkpoint.file_url(tensor)).read_bytes())
        if tensor.param.quantized:
            np.testing.assert_array_equal(read.scales, expected.scales)
            assert read.scales.dtype == ml_dtypes.bfloat16
            assert read.scales.shape == tensor.param.scales_shape
            expected = expected.weight
        else:
            assert read.scales is None
        np.testing.assert_array_equal(read.values, expected)
        assert read.values.dtype == (np.int8 if tensor.param.quantized else np.float32)
        seen.append(tensor)
    assert seen == checkpoint.tensors()
    assert sorted(t.label for t in seen) == sorted(t.label for t in tensors(checkpoint.config))


def test_arrays_are_aligned(tiny):
    for _, read in find(tiny).stream():
        assert read.values.ctypes.data % 64 == 0
        assert read.scales is None or read.scales.flags.aligned


def test_one_devices_rows_can_be_read_without_the_rest(tiny):
    checkpoint = find(tiny)
    down = tensor_named(checkpoint, "layers.10.down")
    location, whole = checkpoint.locate(down).values, checkpoint.read(down).values
    experts, contracted, _ = location.shape
    share = contracted // 8
    with open(checkpoint.file_url(down), "rb") as file:
        for expert in range(experts):
            row = expert * contracted + 3 * share
            start, stop = location.rows(row, row + share)
            file.seek(start)
            part = np.frombuffer(file.read(stop - start), np.int8).reshape(share, -1)
            np.testing.assert_array_equal(part, whole[expert, 3 * share : 4 * share])


def test_fortran_order_and_old_protocols_are_read_right(copy):
    file = copy / "ckpt-0" / "tensor00013_000"
    expected = find(copy).read(tensor_named(find(copy), "layers.0.router")).values
    for data in (
        pickle.dumps(np.asfortranarray(expected), 4),
        pickle.dumps(np.asfortranarray(expected), 5),
        pickle.dumps(expected, 2),
    ):
        file.write_bytes(data)
        checkpoint = find(copy)
        read = checkpoint.read(tensor_named(checkpoint, "layers.0.router")).values
        np.testing.assert_array_equal(read, expected)


# Faults.


def test_scale_groups_follow_the_files_where_the_config_does_not_say(copy):
    assert "model_shards" not in json.loads((copy / "config.json").read_text())
    assert find(copy).config.model_shards == 8
    file = copy / "ckpt-0" / "tensor00006_000"
    values = find(copy).read(tensor_named(find(copy), "layers.0.attn_out")).values.copy()
    write(file, values, np.ones((4, 32), ml_dtypes.bfloat16))
    checkpoint = find(copy)
    assert checkpoint.config.model_shards == 4
    checkpoint.read(tensor_named(checkpoint, "layers.0.attn_out"))
    with pytest.raises(SetupError, match=r"scales bfloat16\[8, 8, 32\], .* bfloat16\[8, 4, 32\]"):
        checkpoint.read(tensor_named(checkpoint, "layers.0.down"))


def test_scale_groups_of_the_config_are_binding(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_shards": 4}))
    checkpoint = find(copy)
    assert checkpoint.config.model_shards == 4
    with pytest.raises(SetupError, match=r"layers.0.attn_out \(ckpt-0/tensor00006_000\) .* holds"):
        checkpoint.read(tensor_named(checkpoint, "layers.0.attn_out"))


@pytest.mark.parametrize("scales", [(32,), (), (8, 1, 32), (3, 32), (0, 32), (8, 31)])
def test_odd_scales_give_no_odd_config(copy, scales):
    """The file that tells the number of groups may be wrong itself."""
    file = copy / "ckpt-0" / "tensor00006_000"
    write(file, np.zeros((128, 32), np.int8), np.ones(scales, ml_dtypes.bfloat16))
    checkpoint = find(copy)
    assert checkpoint.config.model_shards == 8
    with pytest.raises(SetupError, match=r"layers\.0\.attn_out"):
        checkpoint.read(tensor_named(checkpoint, "layers.0.attn_out"))


@pytest.mark.parametrize(
    ("values", "scales", "found"),
    [
        (np.zeros((32, 128), np.float32), None, r"float32\[32, 128\]"),
        (np.zeros((32, 128), np.int8), None, r"int8\[32, 128\]"),
        (
            np.zeros((128, 32), np.int8),
            np.zeros((1, 128), ml_dtypes.bfloat16),
            r"int8\[128, 32\] with scales bfloat16\[1, 128\]",
        ),
        (
            np.zeros((32, 128), np.int8),
            np.zeros((1, 128), np.float32),
            r"int8\[32, 128\] with scales float32\[1, 128\]",
        ),
        (
            np.zeros((32, 128), np.int8),
            np.zeros((128,), ml_dtypes.bfloat16),
            r"scales bfloat16\[128\]",
        ),
        (np.zeros((32, 128), ml_dtypes.bfloat16), None, r"bfloat16\[32, 128\]"),
    ],
)
def test_a_tensor_unlike_its_declaration_is_told(copy, values, scales, found):
    write(copy / "ckpt-0" / "tensor00007_000", values, scales)
    checkpoint = find(copy)
    expected = r"int8\[32, 128\] with scales bfloat16\[1, 128\]"
    sentence = rf"layers.0.query \(ckpt-0/tensor00007_000\) in .* holds .*{found}, .*{expected}"
    for action in (checkpoint.read, checkpoint.check, checkpoint.locate):
        with pytest.raises(SetupError, match=sentence):
            action(tensor_named(checkpoint, "layers.0.query"))


def test_a_hostile_file_is_refused_and_told(copy):
    marker = copy / "ran"
    command = f"touch {marker}".encode()
    file = copy / "ckpt-0" / "tensor00007_000"
    file.write_bytes(b"cposix\nsystem\n(V" + command + b"\ntR.")
    checkpoint = find(copy)
    with pytest.raises(
        UnsafePickle, match=r"layers.0.query \(.*\) in .* asks to load posix.system"
    ):
        checkpoint.read(tensor_named(checkpoint, "layers.0.query"))
    assert not marker.exists()


def test_missing_tensors_are_named(copy):
    for index in (2, 5, 100, 145):
        (copy / "ckpt-0" / file_name(index)).unlink()
    checkpoint = find(copy)
    assert checkpoint.missing()[:2] == [
        "layers.0.gate (ckpt-0/tensor00002_000)",
        "layers.0.key (ckpt-0/tensor00005_000)",
    ]
    sentence = r"misses 4 of 146 tensors: layers.0.gate \(.*\), layers.0.key .* and 1 more"
    with pytest.raises(SetupError, match=sentence):
        checkpoint.verify()
    with pytest.raises(SetupError, match=r"layers.0.gate .* is missing"):
        checkpoint.read(checkpoint.tensors()[2])


def test_a_missing_config_means_grok_1(copy):
    (copy / "config.json").unlink()
    checkpoint = find(copy)
    assert checkpoint.config == GROK_1
    with pytest.raises(SetupError, match=r"misses 624 of 770 tensors \(there is no config.json"):
        checkpoint.verify()


def test_a_config_of_fewer_layers_is_told(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_layers": 11}))
    with pytest.raises(
        SetupError, match=r"files beyond the 134 tensors .*: tensor00134_000, .* and 9 more"
    ):
        find(copy).verify()


def test_a_config_of_other_sizes_is_told_before_loading(copy):
    """The files are as many, and none is too small, so only what each begins with tells."""
    config = json.loads((copy / "config.json").read_text())
    for key in ("num_experts", "ffn_size"):
        smaller = {**config, key: config[key] // 2}
        (copy / "config.json").write_text(json.dumps(smaller))
        checkpoint = find(copy)
        with pytest.raises(
            SetupError, match=r"layers\.0\.gate .* holds .* but its config asks for"
        ):
            checkpoint.verify()


def test_a_download_cut_short_is_told_from_the_listing(copy):
    file = copy / "ckpt-0" / "tensor00003_000"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(SetupError, match=r"files too small .*: layers.0.down \("):
        find(copy).verify()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not readable as JSON"),
        ("[]", "must be a JSON object"),
        ("[" * 100_000, "not readable as JSON"),
        ('{"vocab_size": 5}', "missing"),
        ('{"surprise": 5}', "unknown key 'surprise'"),
        ("layers", "num_layers must be an integer between 1 and 1024"),
    ],
)
def test_a_wrong_config_is_told(copy, text, reason):
    if text == "layers":
        config = json.loads((copy / "config.json").read_text())
        text = json.dumps({**config, "num_layers": 10_000_000})
    (copy / "config.json").write_text(text)
    with pytest.raises(SetupError, match=f"copy/config.json: config: .*{reason}"):
        find(copy)


def test_groups_may_be_other_than_eight_without_a_config_that_says_so(tmp_path):
    config = dataclasses.replace(
        PRESETS["tiny"],
        num_layers=1,
        num_q_heads=3,
        num_kv_heads=3,
        key_size=2,
        ffn_size=9,
        model_shards=3,
    )
    synthesize(str(tmp_path), config)
    text = json.loads((tmp_path / "config.json").read_text())
    del text["model_shards"]
    (tmp_path / "config.json").write_text(json.dumps(text))
    checkpoint = find(tmp_path)
    checkpoint.verify()
    assert checkpoint.config == config
