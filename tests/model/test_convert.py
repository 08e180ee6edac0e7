import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest

from model.checkpoint import convert as conversion
from model.checkpoint import files
from model.checkpoint.convert import convert
from model.checkpoint.source import open_checkpoint
from model.checkpoint.store import JOURNAL
from model.checkpoint.store_index import INDEX
from model.checkpoint.synth import synthesize
from model.config import PRESETS
from model.tokenizer import Tokenizer
from pipeline.cli import main
from schemas.error import SetupError
from tests import emulators


def bytes_of(url: str) -> dict[str, bytes]:
    fs, path = fsspec.core.url_to_fs(url)
    return {name.rpartition("/")[2]: fs.cat_file(name) for name in fs.find(path)}


@pytest.fixture(scope="module")
def made(talking, tmp_path_factory) -> str:
    url = str(tmp_path_factory.mktemp("made") / "store")
    convert(talking, url)
    return url


def test_what_is_converted_converts_again_to_the_same_bytes(made, talking, tmp_path):
    """Through another number of devices and back, and to a store that is not local."""
    assert open_checkpoint(made).tokenizer_url == os.path.join(made, "tokenizer.model")
    assert Tokenizer.load(open_checkpoint(made).tokenizer_url).identity
    for target in (str(tmp_path / "again"), "memory://converted"):
        convert(made, str(tmp_path / "two"), shards=2, overwrite=True)
        done = convert(str(tmp_path / "two"), target, shards=8)
        assert done.source["kind"] == "store"
        ours, theirs = bytes_of(target), bytes_of(made)
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {INDEX}:
            assert ours[name] == theirs[name], name
        sums = [json.loads(held[INDEX])["checksums"] for held in (ours, theirs)]
        assert sums[0] == sums[1]


def test_an_object_store(tmp_path):
    """S3's own protocol, from a bucket to a bucket."""
    config = dataclasses.replace(PRESETS["tiny"], num_layers=1)
    synthesize(str(tmp_path / "release"), config)
    local = open_checkpoint(str(tmp_path / "release"))
    with emulators.s3_server() as environment, emulators.pointed_at(environment):
        fs = fsspec.filesystem("s3")
        fs.mkdir("s3://weights")
        fs.put(local.url, "s3://weights/release", recursive=True)
        convert("s3://weights/release", "s3://weights/store")
        remote = open_checkpoint("s3://weights/store")
        remote.verify()
        for tensor in local.tensors():
            np.testing.assert_array_equal(remote.read(tensor).values, local.read(tensor).values)
        assert not fs.exists(f"s3://weights/store/{JOURNAL}")


def test_it_goes_on_where_it_was_killed(talking, made, tmp_path):
    """``kill -9`` at three moments; what was done is kept, and the end is the same, bit for bit."""
    target = tmp_path / "store"
    code = (
        "import sys, time\n"
        "from model.checkpoint import convert\n"
        "write = convert._write_array\n"
        "def slowly(*asked):\n"
        "    time.sleep(0.002)\n"
        "    return write(*asked)\n"
        "convert._write_array = slowly\n"
        "convert.convert(*sys.argv[1:3])\n"
    )
    kept: dict[str, int] = {}
    for wanted in (3, 20, 40):
        process = subprocess.Popen(
            [sys.executable, "-c", code, talking, str(target)],
            cwd=pathlib.Path(__file__).parents[2],
        )
        while len(list(target.glob("*.safetensors"))) < wanted:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for name, written in kept.items():
            assert (target / name).stat().st_mtime_ns == written
        records = {path.stem for path in (target / JOURNAL).iterdir()}
        kept = {
            path.name: path.stat().st_mtime_ns
            for path in target.glob("*.safetensors")
            if path.stem in records
        }
        with pytest.raises(SetupError, match="is not finished: start the same grok1 convert"):
            open_checkpoint(str(target))
    done = convert(talking, str(target))
    assert 38 <= len(kept) == done.resumed < done.files == 49
    assert bytes_of(str(target)) == bytes_of(made)


def test_started_again_it_only_compares(talking, made):
    before = {path: path.stat().st_mtime_ns for path in pathlib.Path(made).glob("*.safetensors")}
    done = convert(talking, made)
    assert done.resumed == done.files == len(before) == 49
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_does_not_read_back_is_written_again(talking, made, tmp_path):
    target = tmp_path / "store"
    shutil.copytree(made, target)
    for name in ("layer-002-up.safetensors", "layer-007-down.safetensors"):
        damaged = bytearray((target / name).read_bytes())
        damaged[-1] ^= 1
        (target / name).write_bytes(damaged)
    with pytest.raises(SetupError, match=r"layer-002-up.* \(1 more file.* faulty\); start the con"):
        convert(talking, str(target))
    assert not (target / INDEX).exists()
    assert convert(talking, str(target)).resumed == 47
    assert bytes_of(str(target)) == bytes_of(made)


def test_a_damaged_record_counts_for_nothing(talking, made, tmp_path, monkeypatch):
    target = tmp_path / "store"
    monkeypatch.setattr(conversion, "_verify_files", lambda *_: (_ for _ in ()).throw(OSError()))
    with pytest.raises(OSError):  # noqa: PT011
        convert(talking, str(target))
    (target / JOURNAL / "layer-002-up.json").write_text("{}")
    (target / "layer-003-up.safetensors").unlink()
    monkeypatch.undo()
    assert convert(talking, str(target)).resumed == 47
    assert bytes_of(str(target)) == bytes_of(made)


# What it refuses.


def test_a_folder_with_something_else_in_it(tiny, talking, made, tmp_path):
    target = str(tmp_path / "store")
    shutil.copytree(made, target)
    with pytest.raises(SetupError, match=r"holds a store of another.*--overwrite"):
        convert(talking, target, shards=4)
    assert convert(talking, target, shards=4, overwrite=True).shards == 4
    os.remove(os.path.join(target, INDEX))
    with pytest.raises(SetupError, match=r"embedding\.safetensors, but nothing that says"):
        convert(talking, target, shards=4)
    (tmp_path / "store" / "model-00001-of-00002.safetensors").write_bytes(b"")
    for overwrite in (True, False):
        with pytest.raises(
            SetupError, match=r"holds model-00001-of-00002\.safetensors, which is of"
        ):
            convert(talking, target, overwrite=overwrite)
    with pytest.raises(SetupError, match="is the source itself"):
        convert(talking, talking + "/")


def test_the_beginnings_of_another_conversion(talking, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "_write_files", lambda *_: (_ for _ in ()).throw(OSError()))
    with pytest.raises(OSError):  # noqa: PT011
        convert(talking, str(tmp_path / "store"))
    monkeypatch.undo()
    with pytest.raises(SetupError, match="the beginnings of another conversion"):
        convert(talking, str(tmp_path / "store"), shards=2)


def test_a_faulty_source(tiny, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    (source / "ckpt-0" / "tensor00014_000").write_bytes(b"cposix\nsystem\n." + bytes(60_000))
    with pytest.raises(SetupError, match=r"load posix\.system"):
        convert(str(source), str(tmp_path / "store"))
    assert not (tmp_path / "store" / INDEX).exists()


# The command.


def test_the_command(talking, tmp_path, capsys):
    target = str(tmp_path / "store")
    assert main(["convert", "--from", talking, "--to", target, "--shards", "4"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(f"MB of int8 weights for 4 devices in 49 files, in {target}")
    assert re.search(r"peak memory \d+\.\d\d GB", second)
    assert main(["convert", "--from", talking, "--to", target, "--shards", "4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["resumed"], told["shards"], told["weights"]) == (49, 4, "int8")
    assert main(["convert", "--from", talking, "--to", target, "--shards", "2"]) == 2
    assert "grok1: " in capsys.readouterr().err


def test_memory_stays_at_a_few_tensors(tmp_path):
    """Of a model of many tensors of 8 MB, fewer than three's worth above what Python takes."""
    config = dataclasses.replace(PRESETS["tiny"], num_layers=4, emb_size=256, ffn_size=4096)
    synthesize(str(tmp_path / "release"), config)
    code = (
        "import json, sys\n"
        "from model.checkpoint.convert import convert\n"
        "from model.memory import peak_bytes\n"
        "before = peak_bytes()\n"
        "done = convert(*sys.argv[1:3])\n"
        "print(json.dumps([done.nbytes, done.peak_bytes - before]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "release"), str(tmp_path / "store")],
        capture_output=True,
        check=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    nbytes, grown = json.loads(ran.stdout)
    assert nbytes > 12 * (8 << 20)
    assert grown < 3 * (8 << 20) + (16 << 20)  # blocks on their way
    files.remove_folder(str(tmp_path / "release"))
