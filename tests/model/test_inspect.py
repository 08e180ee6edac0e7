import json
import shutil

import pytest

from model.checkpoint.inspect import inspect_checkpoint
from model.checkpoint.source import open_checkpoint
from schemas.error import SetupError


def test_a_sound_checkpoint(tiny):
    report = inspect_checkpoint(tiny)
    assert report.ok
    assert (report.kind, report.tensors, report.present) == ("release", 146, 146)
    assert report.missing == report.faults == report.unexpected == []
    assert report.identity == open_checkpoint(tiny).identity()
    assert sum(report.dtypes.values()) - report.dtypes["bfloat16"] == report.parameters == 1806880
    assert report.scale_groups == {
        "gate": 1, "up": 1, "down": 8, "query": 1, "key": 1, "value": 1, "attn_out": 8,
    }  # fmt: skip
    assert report.tokenizer is None
    assert report.config["num_layers"] == 12
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


def test_each_fault_is_told(tiny, tmp_path, trained):
    root = tmp_path / "copy"
    shutil.copytree(tiny, root)
    tensors = root / "ckpt-0"
    (tensors / "tensor00002_000").unlink()
    (tensors / "tensor00005_000").write_bytes(b"cposix\nsystem\n.")
    (tensors / "tensor00006_000").write_bytes((tensors / "tensor00007_000").read_bytes())
    (tensors / "tensor00145_000").write_bytes((tensors / "tensor00144_000").read_bytes()[:-1])
    (tensors / "tensor00146_000").write_bytes(b"")
    (root / "tokenizer.model").write_bytes(trained.model)
    report = inspect_checkpoint(str(root))
    assert not report.ok
    assert report.missing == ["layers.0.gate (ckpt-0/tensor00002_000)"]
    assert report.unexpected == ["tensor00146_000"]
    assert report.present == 142
    key, attn_out, router = report.faults
    assert "layers.0.key (ckpt-0/tensor00005_000)" in key
    assert "load posix.system" in key
    assert "layers.0.attn_out (ckpt-0/tensor00006_000)" in attn_out
    assert "holds int8[32, 128] with scales bfloat16[1, 128]" in attn_out
    assert "layers.9.router (ckpt-0/tensor00145_000)" in router
    assert report.tokenizer == {"vocab_size": 1024, "identity": trained.identity}
    assert report.tokenizer_fault is None
    json.dumps(report.to_dict())


def test_a_tokenizer_that_cannot_belong_is_a_fault(tiny, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(tiny, root)
    (root / "tokenizer.model").write_bytes(b"junk")
    report = inspect_checkpoint(str(root))
    assert not report.ok
    assert "tokenizer.model is no SentencePiece model" in report.tokenizer_fault
    assert report.tokenizer is None


def test_no_checkpoint(tmp_path):
    with pytest.raises(SetupError, match="holds no checkpoint"):
        inspect_checkpoint(str(tmp_path))
