"""A fault of all files is told in one sentence, before a model loads and a folder is claimed."""

import os
import pathlib

import pyarrow as pa
import pytest

from model.checkpoint.synth_tokenizer import synthesize_tokenizer
from pipeline import registry
from tests.jobs import write

GOOD = {"prompt": ["a"]}


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    def refuse(settings):
        pytest.fail(f"an engine was loaded: {settings}")

    monkeypatch.setattr(registry, "factory", refuse)
    monkeypatch.setattr(registry, "_held", {})


@pytest.fixture
def refused(generate, tmp_path):
    def run(*arguments, **settings) -> str:
        outcome = generate(*arguments, **settings)
        assert outcome.code == 2
        assert outcome.out == ""
        sentence = outcome.sentence()
        assert len(sentence) < 500
        assert "Traceback" not in sentence
        assert "Error" not in sentence
        assert not (tmp_path / "out").exists()
        return sentence

    return run


def test_no_input(refused, tmp_path):
    for source in (tmp_path / "none", tmp_path / "*.parquet", "memory://nobody/*.parquet"):
        assert refused(source=source).startswith(f"no input file matches {source}; give ")


def test_no_prompts(refused):
    sentence = refused(table={"question": ["a"], "id": [1]})
    assert "has no column 'prompt' or 'prompt_token_ids', only 'question', 'id'" in sentence
    assert "--columns prompt=NAME" in sentence


def test_a_column_that_is_not_there(refused):
    sentence = refused("--columns", "custom_id=key", table=GOOD)
    assert "--columns custom_id=key" in sentence
    assert "has no column 'key'" in sentence


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", ["hot"]),
        ("stop", [7]),
        ("max_tokens", [True]),
        ("stop_token_ids", [1]),
        ("ignore_eos", [1]),
    ],
)
def test_a_sampling_column_of_another_type(refused, name, values):
    sentence = refused(table={**GOOD, name: values})
    assert f"column '{name}' holds {pa.array(values).type}, but {name} takes " in sentence
    assert f"--columns {name}=" in sentence


def test_a_prompt_column_of_another_type(refused):
    sentence = refused(table={"prompt": [1]})
    assert "column 'prompt' holds int64, but prompt takes strings" in sentence


def test_names_that_collide(refused):
    sentence = refused(table={**GOOD, "text": ["b"]})
    assert "input column 'text' would have the name of the added column 'text'" in sentence
    assert "--rename text=NAME" in sentence
    assert "--output-prefix" in sentence
    assert "no column 'gone'" in refused("--rename", "gone=x", table=GOOD)


def test_an_output_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    sentence = refused(table=GOOD, output=tmp_path / "file" / "below")
    assert sentence.startswith(f"cannot write to {tmp_path}/file/below: Not a directory; choose")
    assert "nosuch" in refused(table=GOOD, output="nosuch://bucket/out")


def test_an_output_that_holds_something_else(generate, tmp_path):
    write(tmp_path / "mine" / "data.parquet", GOOD)
    outcome = generate(table=GOOD, output=tmp_path / "mine")
    assert outcome.code == 2
    assert "holds 'data.parquet', which is no part of a run" in outcome.sentence()
    assert sorted(os.listdir(tmp_path / "mine")) == ["data.parquet"]


def test_no_checkpoint(refused, tmp_path):
    gone = tmp_path / "gone"
    sentence = refused(table=GOOD, checkpoint=gone)
    assert sentence.startswith(f"{gone} does not exist: give the folder that holds ckpt-0")
    gone.mkdir()
    assert f"{gone} holds no checkpoint" in refused(table=GOOD, checkpoint=gone)


@pytest.fixture
def copied(tmp_path, talking) -> pathlib.Path:
    """A checkpoint of one's own, to be broken."""
    folder = tmp_path / "checkpoint"
    (folder / "ckpt-0").mkdir(parents=True)
    for name in os.listdir(f"{talking}/ckpt-0"):
        os.link(os.path.realpath(f"{talking}/ckpt-0/{name}"), folder / "ckpt-0" / name)
    for name in ("config.json", "tokenizer.model"):
        (folder / name).write_bytes(pathlib.Path(talking, name).read_bytes())
    return folder


def test_a_checkpoint_that_misses_tensors(refused, copied):
    for number in (3, 77):
        (copied / "ckpt-0" / f"tensor{number:05}_000").unlink()
    sentence = refused(table=GOOD, checkpoint=copied)
    assert "misses 2 of 146 tensors" in sentence
    assert "ckpt-0/tensor00003_000" in sentence
    assert "ckpt-0/tensor00077_000" in sentence
    assert "complete the download" in sentence


def test_a_checkpoint_cut_short(refused, copied):
    path = copied / "ckpt-0" / "tensor00004_000"
    data = path.read_bytes()
    path.unlink()  # not through the link
    path.write_bytes(data[: len(data) // 2])
    sentence = refused(table=GOOD, checkpoint=copied)
    assert "files too small for their tensors" in sentence
    assert "tensor00004_000" in sentence


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not readable as JSON"),
        ('{"vocab_size": 5}', "config: missing attn_output"),
        ('{"layers": 5}', "unknown key 'layers'"),
    ],
)
def test_a_config_that_is_none(refused, copied, text, told):
    (copied / "config.json").write_text(text)
    sentence = refused(table=GOOD, checkpoint=copied)
    assert str(copied / "config.json") in sentence
    assert told in sentence


def test_a_config_of_another_model(refused, copied):
    config = (copied / "config.json").read_text()
    (copied / "config.json").write_text(config.replace('"num_layers": 12', '"num_layers": 11'))
    assert "files beyond the 134 tensors of its config" in refused(table=GOOD, checkpoint=copied)
    (copied / "config.json").unlink()
    assert "there is no config.json, so it should be Grok-1's" in refused(
        table=GOOD, checkpoint=copied
    )


def test_tokenizers(refused, tmp_path, tiny):
    assert "no tokenizer.model" in refused(table=GOOD, checkpoint=tiny)
    other = tmp_path / "other.model"
    assert str(other) in refused("--tokenizer", other, table=GOOD)
    other.write_bytes(b"\x0a\x03abc")
    assert str(other) in refused("--tokenizer", other, table=GOOD)
    other.write_bytes(synthesize_tokenizer(512))
    sentence = refused("--tokenizer", other, table=GOOD)
    assert "512 pieces" in sentence
    assert "vocabulary of 1024" in sentence


def test_no_room_for_any_prompt(refused):
    sentence = refused("--max-tokens", 300, table=GOOD)
    assert "--max-tokens 300 leaves no room for a prompt in a context of 256" in sentence


@pytest.mark.parametrize("flag", ["--stop-token-ids", "--allowed-token-ids"])
def test_token_ids_beyond_the_vocabulary(refused, flag):
    sentence = refused(flag, 5000, table=GOOD)
    assert f"{flag} holds 5000, but the model's vocabulary ends at 1023" in sentence


def test_an_input_that_is_none(refused, tmp_path):
    path = tmp_path / "junk.parquet"
    path.write_bytes(b"junk, and no more than that")
    sentence = refused(source=path)
    assert "junk.parquet is no readable Parquet file" in sentence
    assert "restore the file, or leave it out of --input" in sentence
    assert "retry" not in sentence


def test_more_devices_than_there_are(generate, monkeypatch):
    """Only the machine that runs the model can know; the exit code is the same."""
    monkeypatch.setattr(registry, "factory", registry.load_engine)
    outcome = generate("--devices", 8, table=GOOD)
    assert outcome.code == 2
    assert "8" in outcome.sentence()
    assert "device" in outcome.sentence()
