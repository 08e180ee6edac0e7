import json
import os
import pathlib

import pytest

from pipeline.cli import main
from pipeline.commit import commit
from pipeline.finalize import finalize
from tests.jobs import answer, prompts_of


@pytest.fixture
def inspect(capsys):
    def run(path, *flags):
        capsys.readouterr()
        code = main(["inspect", str(path), *flags])
        return code, capsys.readouterr().out

    return run


def squeezed(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_a_sound_checkpoint(inspect, talking):
    code, out = inspect(talking)
    assert code == 0
    for told in ("146 of 146 tensors", "1,024 pieces", "num_layers 12", "all as it should be"):
        assert told in squeezed(out)
    code, out = inspect(talking, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["ok"]
    assert found["config"]["num_layers"] == 12
    assert found["scale_groups"]["down"] == 8


def test_a_broken_checkpoint(inspect, tiny, tmp_path):
    (tmp_path / "ckpt-0").mkdir()
    for name in sorted(os.listdir(f"{tiny}/ckpt-0"))[1:]:
        os.link(f"{tiny}/ckpt-0/{name}", tmp_path / "ckpt-0" / name)
    (tmp_path / "config.json").write_bytes(pathlib.Path(tiny, "config.json").read_bytes())
    broken = tmp_path / "ckpt-0" / "tensor00005_000"
    data = broken.read_bytes()
    broken.unlink()
    broken.write_bytes(data[:-40])
    code, out = inspect(tmp_path)
    assert code == 1
    assert "missing: embedding (ckpt-0/tensor00000_000)" in squeezed(out)
    assert "tensor00005_000" in squeezed(out)
    assert "none: prompts must be token ids" in squeezed(out)


def test_a_run_as_it_goes_and_ends(inspect, prepare, tmp_path):
    job = prepare({"prompt": ["a", "b", None]}, chunk_rows=2)
    first, second = prompts_of(job)
    commit(job, answer(first))
    code, out = inspect(tmp_path / "out")
    assert code == 3
    assert "unfinished" in out
    assert "1 of 2" in out
    commit(job, answer(second))
    finalize(job)
    code, out = inspect(tmp_path / "out")
    assert code == 3
    assert "3 of 3 in = 2 succeeded + 1 errored; 3 out" in squeezed(out)
    assert "prompt_missing 1" in squeezed(out)
    found = json.loads(inspect(tmp_path / "out", "--json")[1])
    assert found["state"] == "complete"
    assert found["faults"] == []


def test_a_run_without_errors(inspect, prepare, tmp_path):
    job = prepare({"prompt": ["a"]})
    commit(job, answer(prompts_of(job)[0]))
    finalize(job)
    assert inspect(tmp_path / "out")[0] == 0
    next((tmp_path / "out").glob("part-*")).write_bytes(b"overwritten by something")
    code, out = inspect(tmp_path / "out")
    assert code == 1
    assert "no readable Parquet file" in squeezed(out)


def test_rows_that_cannot_be_read(inspect, prepare, tmp_path):
    """A part's footer may be sound and its pages not."""
    job = prepare({"prompt": ["a"]})
    commit(job, answer(prompts_of(job)[0]))
    finalize(job)
    part = next((tmp_path / "out").glob("part-*"))
    data = bytearray(part.read_bytes())
    data[4:200] = bytes(196)
    part.write_bytes(data)
    code, out = inspect(tmp_path / "out")
    assert code == 1
    assert f"{part.name} cannot be read: " in squeezed(out)
    assert "remove that part, and start the same command again" in squeezed(out)
    assert inspect(tmp_path / "out", "--footers")[0] == 0


def test_a_folder_of_neither(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
