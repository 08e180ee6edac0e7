import json
import os
import pathlib
import pickle

import pyarrow as pa
import pytest

from model.checkpoint.synth_tokenizer import synthesize_tokenizer
from pipeline.claim import JOB, MANIFEST, MANIFEST_PARTS, SUCCESS
from pipeline.storage import Folder
from schemas.error import SetupError
from schemas.sampling import SamplingParams
from tests.jobs import write

PROMPTS = {"prompt": ["one", "two", "three"], "id": [1, 2, 3]}


@pytest.fixture
def refused(prepare):
    def prepare_and_fail(*arguments, **changes) -> str:
        with pytest.raises(SetupError) as caught:
            prepare(*arguments, **changes)
        return str(caught.value)

    return prepare_and_fail


def test_a_job_knows_what_a_worker_must(prepare, talking):
    job = prepare(PROMPTS, chunk_rows=2)
    assert (job.files, job.rows, job.chunks, job.done) == (1, 3, 2, 0)
    assert job.max_context == 256
    assert job.vocab_size == 1024
    assert job.tokenizer == f"{talking}/tokenizer.model"
    assert job.output.schema.names[:3] == ["prompt", "id", "row_uid"]
    assert pickle.loads(pickle.dumps(job)) == job
    assert len(pickle.dumps(job)) < 10_000


def test_the_output_folder_is_claimed(prepare, tmp_path):
    job = prepare(PROMPTS)
    there = json.loads((tmp_path / "out" / JOB).read_text())
    assert there["run_id"] == job.run_id
    assert there["input"]["rows"] == 3
    assert prepare().run_id == job.run_id


def test_settings_that_do_not_change_results_may_change(prepare, talking):
    job = prepare(PROMPTS)
    again = prepare(strict=True, allow_errors=1.0, tokenizer=f"{talking}/tokenizer.model")
    assert again.run_id == job.run_id
    assert again.identity == job.identity


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sampling": SamplingParams(max_tokens=7)}, "another max_tokens: 16 there, 7 now"),
        ({"run_seed": 5}, "another run_seed: 0 there, 5 now"),
        ({"chunk_rows": 1}, "another chunk_rows: none there, 1 now"),
        ({"limit": 2}, "another limit: none there, 2 now"),
    ],
)
def test_a_run_with_other_settings_is_refused(prepare, refused, change, told):
    prepare(PROMPTS)
    sentence = refused(**change)
    assert told in sentence
    assert "--overwrite" in sentence
    assert prepare(overwrite=True, **change).done == 0


def test_a_run_over_another_input_is_refused(prepare, refused, tmp_path):
    prepare(PROMPTS)
    assert "file 'a.parquet' has changed" in refused({"prompt": ["four"], "id": [4]})
    (tmp_path / "in" / "a.parquet").unlink()
    assert "file 'a.parquet' is gone" in refused_after_writing(refused, tmp_path / "in" / "b")
    prepare(overwrite=True)
    write(tmp_path / "in" / "c.parquet", PROMPTS)
    assert "file 'c.parquet' is new" in refused()


def refused_after_writing(refused, path) -> str:
    write(path.with_suffix(".parquet"), PROMPTS)
    return refused()


def test_overwriting_removes_the_old_parts(prepare, tmp_path):
    old = prepare(PROMPTS)
    for name in ("part-000000-000000000000-0123456789ab.parquet", SUCCESS, MANIFEST):
        (tmp_path / "out" / name).write_bytes(b"")
    new = prepare(overwrite=True)
    assert new.run_id != old.run_id
    assert set(Folder(str(tmp_path / "out")).names()) == {JOB}


def test_a_folder_of_something_else_is_refused(refused, tmp_path):
    write(tmp_path / "in" / "a.parquet", PROMPTS)
    write(tmp_path / "out" / "data.parquet", PROMPTS)
    assert "holds 'data.parquet', which is no part of a run" in refused()
    assert "holds 'data.parquet'" in refused(overwrite=True)
    assert (tmp_path / "out" / "data.parquet").exists()


def test_parts_without_a_job_are_refused(refused, tmp_path):
    write(tmp_path / "in" / "a.parquet", PROMPTS)
    write(tmp_path / "out" / "part-000000-000000000000-0123456789ab.parquet", PROMPTS)
    assert "1 parts but no _job.json" in refused()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 99}', "\xff"])
def test_a_job_file_of_another_kind_is_refused(refused, tmp_path, text):
    write(tmp_path / "in" / "a.parquet", PROMPTS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOB).write_text(text, encoding="latin-1")
    assert "was not written by this version" in refused()


def test_a_finished_run_that_lost_a_part_is_unfinished_again(prepare, tmp_path):
    prepare(PROMPTS)
    for name in (SUCCESS, MANIFEST, MANIFEST_PARTS):
        (tmp_path / "out" / name).write_bytes(b"")
    assert prepare().done == 0
    assert set(Folder(str(tmp_path / "out")).names()) == {JOB}


def test_an_output_that_cannot_be_written(refused, tmp_path):
    write(tmp_path / "in" / "a.parquet", PROMPTS)
    (tmp_path / "file").write_bytes(b"")
    sentence = refused(output=str(tmp_path / "file" / "out"))
    assert sentence.startswith(f"cannot write to {tmp_path / 'file' / 'out'}: Not a directory;")


def test_wrong_input(refused, tmp_path):
    assert refused().startswith(f"no input file matches {tmp_path / 'in'};")
    assert "has no column 'prompt'" in refused({"text": ["a"]})
    assert "input column 'text'" in refused({"prompt": ["a"], "text": ["b"]})
    assert "--columns prompt=gone" in refused(PROMPTS, columns={"prompt": "gone"})
    assert "column 'seed' holds string" in refused({"prompt": ["a"], "seed": ["b"]})
    assert "--unique-custom-id" in refused(PROMPTS, unique_custom_id=True)


def test_nothing_is_claimed_by_a_job_that_cannot_be_done(refused, tmp_path):
    refused({"text": ["a"]})
    refused(PROMPTS, checkpoint=str(tmp_path / "none"))
    assert not (tmp_path / "out").exists()


def test_wrong_checkpoint(refused, tmp_path, talking):
    gone = str(tmp_path / "gone")
    assert refused(PROMPTS, checkpoint=gone).startswith(f"{gone} does not exist: give the folder")
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint" in refused(checkpoint=str(tmp_path / "empty"))
    part = tmp_path / "part" / "ckpt-0"
    part.mkdir(parents=True)
    for name in os.listdir(f"{talking}/ckpt-0")[:-2]:
        os.link(os.path.realpath(f"{talking}/ckpt-0/{name}"), part / name)
    config = pathlib.Path(talking, "config.json").read_bytes()
    (tmp_path / "part" / "config.json").write_bytes(config)
    sentence = refused(checkpoint=str(tmp_path / "part"))
    missing = sorted(set(os.listdir(f"{talking}/ckpt-0")) - set(os.listdir(part)))
    assert "misses 2 of 146 tensors" in sentence
    assert all(name in sentence for name in missing)


def test_wrong_tokenizer(refused, prepare, tmp_path, tiny, talking):
    assert "no tokenizer.model" in refused(PROMPTS, checkpoint=tiny)
    assert "--tokenizer FILE" in refused(checkpoint=tiny)
    other = tmp_path / "other.model"
    other.write_bytes(b"no model")
    assert str(other) in refused(tokenizer=str(other))
    ids = {"prompt_token_ids": pa.array([[1]])}
    assert "--stop is about text" in refused(
        ids, checkpoint=tiny, sampling=SamplingParams(stop="\n")
    )
    assert prepare(ids, checkpoint=tiny).tokenizer is None


def test_a_constraint_of_the_job_is_checked_before_anything_loads(refused):
    sentence = refused(PROMPTS, sampling=SamplingParams(structured_outputs={"regex": "(a"}))
    assert sentence.startswith("--structured-outputs has a regex that does not compile: ")
    assert "unclosed group" in sentence


def test_constraints_need_their_library(refused, monkeypatch):
    monkeypatch.setattr("model.constraint.available", lambda: False)
    told = "needs llguidance: pip install 'grok1-batch[constraints]'"
    assert told in refused({**PROMPTS, "guided_regex": ["a", None, "b"]})
    constrained = SamplingParams(structured_outputs={"choice": ["a"]})
    assert told in refused(PROMPTS, sampling=constrained)


def test_a_tokenizer_of_another_vocabulary(refused, tmp_path):
    (tmp_path / "other.model").write_bytes(synthesize_tokenizer(512))
    sentence = refused(PROMPTS, tokenizer=str(tmp_path / "other.model"))
    assert "the tokenizer has 512 pieces, the checkpoint's config a vocabulary of 1024" in sentence


def test_no_room_for_any_prompt(refused):
    sampling = SamplingParams(max_tokens=256)
    assert "--max-tokens 256 leaves no room" in refused(PROMPTS, sampling=sampling)


def test_secrets_stay_out_of_sentences(refused):
    sentence = refused(PROMPTS, output="nosuch://user:secret@host/out")
    assert "secret" not in sentence
