import dataclasses
import itertools
import json
import pathlib
import shutil
import zlib

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint import files
from model.checkpoint.convert import convert
from model.checkpoint.inspect import inspect_checkpoint
from model.checkpoint.source import open_checkpoint
from model.checkpoint.store_index import INDEX, StoreIndex, checksum
from model.checkpoint.store_plan import plan_files
from model.checkpoint.synth import synthesize
from model.config import GROK_1, PRESETS
from model.params import tensors
from schemas.error import SetupError


@pytest.fixture(scope="module")
def stores(tiny, tmp_path_factory) -> dict[int, str]:
    """The golden checkpoint as a store, by the devices that it was made for."""
    root = tmp_path_factory.mktemp("stores")
    made = {shards: str(root / str(shards)) for shards in (1, 2, 8)}
    for shards, url in made.items():
        convert(tiny, url, shards=shards)
    return made


@pytest.fixture
def copy(stores, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(stores[8], tmp_path / "copy"))


@pytest.mark.parametrize("size", [0, 1, 15, 4097, 1 << 20])
def test_a_checksum_is_crc32_whoever_computes_it(size):
    block = np.random.default_rng(size).integers(0, 256, size + 3, np.uint8)[3:]
    assert checksum(block) == f"{zlib.crc32(block.tobytes()):08x}"


def tensor_named(checkpoint, label):
    return next(t for t in checkpoint.tensors() if t.label == label)


@pytest.mark.parametrize("shards", [1, 2, 8])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_any_number_of_devices_reads_what_the_release_says(tiny, stores, shards, count):
    release, made = open_checkpoint(tiny), open_checkpoint(stores[shards])
    made.verify()
    assert (made.kind, made.weights, made.config) == ("store", "int8", release.config)
    assert {t.label for t in made.tensors()} == {t.label for t in release.tensors()}
    for tensor in tensors(release.config):
        for ours, theirs in zip(
            made.read_parts(tensor, count), release.read_parts(tensor, count), strict=True
        ):
            np.testing.assert_array_equal(ours.values, theirs.values)
            assert ours.values.dtype == theirs.values.dtype
            assert (ours.scales is None) == (theirs.scales is None)
            if ours.scales is not None:
                np.testing.assert_array_equal(ours.scales, theirs.scales)
                assert ours.scales.dtype == theirs.scales.dtype


def test_a_device_reads_one_range_of_a_file_and_no_other_bytes(tiny, stores, monkeypatch):
    made = open_checkpoint(stores[8])
    asked: dict[str, list[tuple[int, int]]] = {}
    read_into = files.read_into

    def counting(url, start, buffer):
        asked.setdefault(url, []).append((start, start + buffer.size))
        read_into(url, start, buffer)

    monkeypatch.setattr(files, "read_into", counting)
    total = 0
    for tensor in made.tensors():
        if tensor.param.split_axis is not None:
            (part,) = made.read_parts(tensor, 4, [3])
            assert part.values.shape == tensor.param.part(4).shape
            total += part.nbytes
    for ranges in asked.values():
        ranges.sort()
        assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    assert sum(stop - start for ranges in asked.values() for start, stop in ranges) == total


def test_more_devices_than_scale_groups_keep_the_groups(tiny, tmp_path):
    config = dataclasses.replace(open_checkpoint(tiny).config, model_shards=2)
    synthesize(str(tmp_path / "two"), config)
    release = open_checkpoint(str(tmp_path / "two"))
    convert(release.url, str(tmp_path / "store"), shards=8)
    made = open_checkpoint(str(tmp_path / "store"))
    down = next(t for t in tensors(config) if t.label == "layers.3.down")
    for count in (1, 2, 4, 8):
        for ours, theirs in zip(
            made.read_parts(down, count), release.read_parts(down, count), strict=True
        ):
            assert theirs.scales.shape == down.param.part(count).scales_shape
            np.testing.assert_array_equal(ours.scales, theirs.scales)


def test_the_files_are_safetensors(tiny, stores):
    release = open_checkpoint(tiny)
    held = safetensors.numpy.load_file(pathlib.Path(stores[8], "layer-003-down.safetensors"))
    down = release.read(tensor_named(release, "layers.3.down"))
    values = [held[f"layers.3.down.values.{i}"] for i in range(8)]
    scales = [held[f"layers.3.down.scales.{i}"] for i in range(8)]
    np.testing.assert_array_equal(np.concatenate(values, 1), down.values)
    np.testing.assert_array_equal(np.concatenate(scales, 1), down.scales)


def test_the_plan_of_the_full_model():
    planned = plan_files(GROK_1, "int8", 8)
    assert len(planned) == 1 + 4 * 64
    assert sum(file.nbytes for file in planned) == pytest.approx(318e9, rel=2e-3)
    gate = next(file for file in planned if file.name == "layer-063-gate.safetensors")
    assert {p.shape for p in gate.pieces} == {(8, 6144, 4096), (8, 1, 4096)}
    assert len(gate.header) == 4096
    assert plan_files(PRESETS["bench"], "int8", 4)
    with pytest.raises(SetupError, match="--shards 8: does not divide num_kv_heads=4"):
        plan_files(PRESETS["bench"], "int8", 8)
    with pytest.raises(SetupError, match="--shards must be one of 8, 4, 2, 1, got 3"):
        plan_files(PRESETS["tiny"], "int8", 3)
    with pytest.raises(SetupError, match="--weights must be one of int8, int4, bf16, got 'int2'"):
        plan_files(PRESETS["tiny"], "int2", 8)


def test_inspection(stores):
    report = inspect_checkpoint(stores[8])
    assert report.ok
    assert (report.kind, report.weights, report.tensors) == ("store", "int8", 146)
    assert report.identity == open_checkpoint(stores[8]).identity()
    assert report.identity != open_checkpoint(stores[2]).identity()
    assert sum(report.dtypes.values()) - report.dtypes["bfloat16"] == report.parameters
    assert json.loads(json.dumps(report.to_dict()))["scale_groups"]["down"] == 8


# Faults.


def refusal(url, read=None) -> str:
    def use():
        checkpoint = open_checkpoint(str(url))
        if read is None:
            checkpoint.verify()
        else:
            checkpoint.read(tensor_named(checkpoint, read))

    with pytest.raises(SetupError) as caught:
        use()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_flipped_bit_anywhere_in_a_file_is_found(copy):
    path = copy / "layer-005-gate.safetensors"
    data = bytearray(path.read_bytes())
    for at in (4096, 20_000, len(data) - 1):
        data[at] ^= 4
        path.write_bytes(data)
        told = refusal(copy, "layers.5.gate")
        assert "layer-005-gate.safetensors" in told
        assert "is damaged between bytes" in told
        assert "convert again" in told
        data[at] ^= 4
    path.write_bytes(data)
    open_checkpoint(str(copy)).read(tensor_named(open_checkpoint(str(copy)), "layers.5.gate"))


def test_a_file_cut_short(copy):
    path = copy / "layer-005-gate.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "layer-005-gate.safetensors has 51967 bytes instead of 51968" in refusal(copy)
    assert "51967 bytes where its header describes 51968" in refusal(copy, "layers.5.gate")
    assert not inspect_checkpoint(str(copy)).ok


def test_files_that_are_not_there(copy):
    for layer in (3, 4, 5, 6):
        (copy / f"layer-00{layer}-up.safetensors").unlink()
    told = refusal(copy)
    assert "misses 4 of 49 files: layer-003-up.safetensors, " in told
    assert "and 1 more" in told
    assert "layer-003-up.safetensors in" in refusal(copy, "layers.3.up")
    report = inspect_checkpoint(str(copy))
    assert report.missing[0] == "layers.3.up (layer-003-up.safetensors)"
    assert (report.present, report.faults) == (142, [])


def test_a_file_of_another_conversion(copy, stores):
    shutil.copy(pathlib.Path(stores[2], "layer-001-up.safetensors"), copy)
    told = refusal(copy, "layers.1.up")
    assert "holds int8[8, 32, 88] layers.1.up.values.0" in told
    assert "asks for int8[8, 32, 22]" in told
    assert "not of one conversion" in told
    (copy / "layer-012-up.safetensors").write_bytes(b"")
    assert inspect_checkpoint(str(copy)).unexpected == ["layer-012-up.safetensors"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "other"}, "is no index of a store"),
        ({"version": 2}, "is of version 2, not 1"),
        ({"block_bytes": 4096}, "is of version 1, not 1"),
        ({"shards": 4}, "no checksums for what"),
        ({"shards": 16}, "--shards must be one of"),
        ({"shards": True}, "lacks what an index says"),
        ({"weights": "int4"}, "has files of the wrong size: layer-000-down.safetensors has"),
        ({"weights": ["int8"]}, "--weights must be one of"),
        ({"source": {"kind": "release"}}, "lacks what an index says"),
        ({"source": None}, "lacks what an index says"),
        ({"checksums": {}}, "no checksums for what embedding.safetensors"),
        ({"config": {}}, "config: missing"),
        ({"config": 7}, "config: missing"),
    ],
)
def test_an_index_that_does_not_fit(copy, change, told):
    index = json.loads((copy / INDEX).read_text())
    (copy / INDEX).write_text(json.dumps({**index, **change}))
    assert told in refusal(copy)


def test_a_store_made_for_other_shapes(copy):
    index = json.loads((copy / INDEX).read_text())
    index["config"]["ffn_size"] = 88
    (copy / INDEX).write_text(json.dumps(index))
    assert "holds int8[8, 32, 22] layers.0.gate.values.0 where" in refusal(copy, "layers.0.gate")
    index["config"]["num_layers"] = 13
    (copy / INDEX).write_text(json.dumps(index))
    assert "no checksums for what layer-012-attention.safetensors should hold" in refusal(copy)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_an_index_that_is_none(copy, text):
    (copy / INDEX).write_bytes(text)
    assert f"{INDEX} is no" in refusal(copy)


_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)


@given(
    change=st.dictionaries(
        st.sampled_from(["format", "version", "weights", "shards", "source", "config"]),
        _VALUES | st.lists(_VALUES, max_size=2) | st.dictionaries(st.text(max_size=9), _VALUES),
    )
)
def test_any_index_is_refused_or_describes_its_files(stores, change):
    index = json.loads(pathlib.Path(stores[1], INDEX).read_text())
    try:
        read = StoreIndex.from_json(json.dumps({**index, **change}).encode(), INDEX)
    except SetupError as fault:
        assert INDEX in str(fault)
        return
    assert {file.name for file in read.files()} == set(index["checksums"])
