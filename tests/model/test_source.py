import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import tracemalloc

import fsspec
import numpy as np
import pytest

from model.checkpoint import files
from model.checkpoint.source import open_checkpoint
from model.checkpoint.synth import synthesize
from model.config import PRESETS
from schemas.error import SetupError


@pytest.fixture(scope="module")
def in_memory(tiny):
    """The same checkpoint in a store that is not local."""
    fs = fsspec.filesystem("memory")
    for path in pathlib.Path(tiny).rglob("*"):
        if path.is_file() and path.suffix != ".npz":
            fs.pipe_file(f"/source/{path.relative_to(tiny)}", path.read_bytes())
    return "memory://source"


def test_a_checkpoint_may_be_given_in_many_ways(tiny, in_memory, monkeypatch):
    monkeypatch.chdir(os.path.dirname(tiny))
    ways = [tiny, tiny + "/", f"file://{tiny}", "grok1-tiny", "./grok1-tiny/ckpt-0", in_memory]
    ways += [f"{tiny}/ckpt-0/", f"{in_memory}/ckpt-0", f"simplecache::{in_memory}"]
    opened = [open_checkpoint(way) for way in ways]
    for checkpoint in opened:
        checkpoint.verify()
        assert checkpoint.kind == "release"
        assert checkpoint.nbytes == opened[0].nbytes
        assert checkpoint.tokenizer_url is None
    monkeypatch.chdir(os.path.join(tiny, "ckpt-0"))
    opened.append(open_checkpoint("."))
    assert len({checkpoint.identity() for checkpoint in opened}) == 1
    assert len({checkpoint.config for checkpoint in opened}) == 1


def test_config_and_tokenizer_may_lie_beside_the_tensors(tiny, tmp_path):
    flat = tmp_path / "flat"
    shutil.copytree(pathlib.Path(tiny, "ckpt-0"), flat)
    shutil.copy(pathlib.Path(tiny, "config.json"), flat)
    (flat / "tokenizer.model").write_bytes(b"x")
    checkpoint = open_checkpoint(str(flat))
    checkpoint.verify()
    assert checkpoint.tokenizer_url == str(flat / "tokenizer.model")


def test_remote_tensors_equal_local_ones(tiny, in_memory):
    for (a, near), (b, far) in zip(
        open_checkpoint(tiny).stream(), open_checkpoint(in_memory).stream(), strict=True
    ):
        assert a == b
        np.testing.assert_array_equal(near.values, far.values)
        assert near.values.dtype == far.values.dtype
        assert (near.scales is None) == (far.scales is None)
        if near.scales is not None:
            np.testing.assert_array_equal(near.scales, far.scales)


def test_checkpoints_of_links_are_read(tiny, tmp_path):
    """Download caches keep files elsewhere, under their hashes."""
    (tmp_path / "ckpt-0").mkdir()
    for path in pathlib.Path(tiny, "ckpt-0").iterdir():
        (tmp_path / "ckpt-0" / path.name).symlink_to(path)
    (tmp_path / "config.json").symlink_to(pathlib.Path(tiny, "config.json"))
    checkpoint = open_checkpoint(str(tmp_path))
    checkpoint.verify()
    assert checkpoint.identity() == open_checkpoint(tiny).identity()


def test_nothing_there(tmp_path):
    with pytest.raises(SetupError, match="does not exist: give the folder that holds ckpt-0"):
        open_checkpoint(str(tmp_path / "absent"))
    (tmp_path / "ckpt-0").mkdir()
    (tmp_path / "ckpt-0" / "notes.txt").write_text("none")
    with pytest.raises(SetupError, match="holds no checkpoint"):
        open_checkpoint(str(tmp_path))
    with pytest.raises(SetupError, match="holds no checkpoint"):
        open_checkpoint(str(tmp_path / "ckpt-0" / "notes.txt"))


def test_identity_sees_what_may_change(tiny, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(tiny, root)
    embedding = root / "ckpt-0" / "tensor00000_000"
    original, data = open_checkpoint(str(root)).identity(), embedding.read_bytes()
    seen = {original}
    for at in (200, len(data) - 200):
        embedding.write_bytes(data[:at] + b"\x7f" + data[at + 1 :])
        seen.add(open_checkpoint(str(root)).identity())
    embedding.write_bytes(data + b"x")
    seen.add(open_checkpoint(str(root)).identity())
    embedding.write_bytes(data)
    config = (root / "config.json").read_text()
    (root / "config.json").write_text(config.replace("1e-05", "1e-06"))
    seen.add(open_checkpoint(str(root)).identity())
    (root / "config.json").write_text(config)
    assert len(seen) == 5
    (root / "tokenizer.model").write_bytes(b"not part of it")
    (root / "ckpt-0" / "notes.txt").write_bytes(b"not part of it")
    assert open_checkpoint(str(root)).identity() == original


def test_identity_reads_only_the_ends_of_files(monkeypatch):
    config = dataclasses.replace(PRESETS["tiny"], num_layers=1, ffn_size=4096)
    synthesize("memory://ends", config)
    checkpoint = open_checkpoint("memory://ends")
    asked = []
    read_range = files.read_range

    def counting(url, start, stop):
        asked.append(stop - start)
        return read_range(url, start, stop)

    monkeypatch.setattr(files, "read_range", counting)
    checkpoint.identity()
    assert max(asked) == 64 << 10
    assert len(asked) == 2 * (2 + 12 + 1)
    assert checkpoint.nbytes > 3 << 20


def test_streaming_holds_one_tensor_at_a_time():
    config = dataclasses.replace(PRESETS["tiny"], num_layers=4, ffn_size=4096)
    synthesize("memory://large", config)
    checkpoint = open_checkpoint("memory://large")
    largest = 8 * 32 * 4096
    tracemalloc.start()
    for _, _ in checkpoint.stream():
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert checkpoint.nbytes > 12 * largest
    assert peak < 3.5 * largest  # the one before, this one, and a range on its way


def test_no_secret_is_kept_in_what_is_shown(tiny):
    checkpoint = open_checkpoint(f"file://{tiny}")
    assert checkpoint.url == f"file://{tiny}"
    with pytest.raises(SetupError) as caught:
        open_checkpoint("s4://key:sesame@bucket/x?token=sesame")
    assert "sesame" not in str(caught.value)


def test_reading_needs_no_jax(tiny):
    code = (
        "import sys\n"
        "from model.checkpoint import inspect, source, synth, synth_tokenizer\n"
        f"report = inspect.inspect_checkpoint({tiny!r})\n"
        "assert report.ok\n"
        "assert not {'jax', 'apache_beam', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pathlib.Path(__file__).parents[2])
