"""Whatever takes a path takes a URL."""

import json
import pathlib
import uuid

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.cli import main
from tests.end_to_end.conftest import ENGINE
from tests.jobs import write


@pytest.fixture
def bucket(talking):
    """A place in memory that holds a checkpoint, a tokenizer and two files of prompts."""
    url = f"memory://{uuid.uuid4().hex}"
    fs, path = fsspec.core.url_to_fs(url)
    tokenizer = pathlib.Path(talking, "tokenizer.model").read_bytes()
    fs.pipe_file(f"{path}/words/tokenizer.model", tokenizer)
    fs.pipe_file(f"{path}/ckpt/config.json", pathlib.Path(talking, "config.json").read_bytes())
    for file in pathlib.Path(talking, "ckpt-0").iterdir():
        fs.pipe_file(f"{path}/ckpt/ckpt-0/{file.name}", file.read_bytes())
    for name, prompts in (("a", ["import os", None]), ("b", ["def f(x):"])):
        with fs.open(f"{path}/in/{name}.parquet", "wb") as file:
            pq.write_table(pa.table({"prompt": pa.array(prompts, pa.string())}), file)
    yield url
    fs.rm(path, recursive=True)


def test_checkpoint_input_and_output_in_a_bucket(bucket, generate, tmp_path, capfd):
    def run(*others):
        return main(
            [
                *("generate", "--checkpoint", f"{bucket}/ckpt", "--output", f"{bucket}/out"),
                *("--tokenizer", f"{bucket}/words/tokenizer.model", *ENGINE, "--no-report"),
                *("--input", f"{bucket}/in/*.parquet", "--max-tokens", "4"),
                *others,
            ]
        )

    assert run() == 3
    assert run("--allow-errors") == 0
    rows = pipeline.read_completions(f"{bucket}/out").to_pylist()
    assert [row["prompt"] for row in rows] == ["import os", None, "def f(x):"]
    manifest = json.loads(fsspec.open(f"{bucket}/out/_manifest.json").open().read())
    assert (manifest["rows_in"], manifest["errored"]) == (3, 1)
    assert main(["inspect", f"{bucket}/out"]) == 3
    assert main(["inspect", f"{bucket}/ckpt"]) == 0
    assert "146 of 146 tensors" in capfd.readouterr().out

    # The same data gives the same answers on a laptop and in a bucket.
    write(tmp_path / "in" / "a.parquet", {"prompt": pa.array(["import os", None], pa.string())})
    write(tmp_path / "in" / "b.parquet", {"prompt": ["def f(x):"]})
    assert generate("--max-tokens", 4).rows == rows
