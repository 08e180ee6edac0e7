import json
import pathlib

import pytest

from model.checkpoint.source import open_checkpoint
from model.config import PRESETS
from pipeline.cli import main


@pytest.fixture
def synth(tmp_path, capsys):
    def run(*arguments):
        code = main(["synth", "--output", str(tmp_path / "ckpt"), *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_a_preset(synth, tmp_path):
    code, out, err = synth("--preset", "tiny")
    assert code == 0
    assert err == ""
    assert out.startswith("146 tensors, 1,806,880 parameters, ")
    checkpoint = open_checkpoint(str(tmp_path / "ckpt"))
    checkpoint.verify()
    assert checkpoint.config == PRESETS["tiny"]
    assert checkpoint.tokenizer_url is not None


def test_a_config_file_without_room_for_a_tokenizer(synth, tmp_path, tiny):
    config = json.loads(pathlib.Path(tiny, "config.json").read_text())
    config |= {"vocab_size": 64, "num_layers": 2}
    (tmp_path / "shape.json").write_text(json.dumps(config))
    code, _, err = synth("--config", tmp_path / "shape.json")
    assert code == 0
    assert "prompts must be token ids" in err
    checkpoint = open_checkpoint(str(tmp_path / "ckpt"))
    checkpoint.verify()
    assert checkpoint.config.num_layers == 2
    assert checkpoint.tokenizer_url is None


def test_what_is_there_is_not_overwritten_unasked(synth):
    assert synth("--preset", "tiny")[0] == 0
    code, _, err = synth("--preset", "tiny")
    assert code == 2
    assert "already holds tensors" in err
    assert synth("--preset", "tiny", "--overwrite", "--seed", 1)[0] == 0


def test_wrong_usage(synth, tmp_path):
    code, _, err = synth("--config", tmp_path / "none.json")
    assert code == 2
    assert "none.json" in err
    with pytest.raises(SystemExit) as end:
        synth("--preset", "enormous")
    assert end.value.code == 2
