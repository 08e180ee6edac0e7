import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.checkpoint.synth import synthesize
from model.checkpoint.synth_tokenizer import synthesize_tokenizer
from model.config import PRESETS
from pipeline.cli import ROW_ERRORS, main
from pipeline.options import GenerateOptions
from pipeline.prepare import Job, prepare_job
from tests import jobs
from tests.finished import COLUMN, HOSTILE, RENAMED, Run


@pytest.fixture
def options(tmp_path: pathlib.Path, talking: str) -> Callable[..., GenerateOptions]:
    """Options of a job from ``in/`` to ``out/`` of the test's folder; keywords set others."""

    def make(**changes: Any) -> GenerateOptions:
        usual = {
            "checkpoint": talking,
            "input": (str(tmp_path / "in"),),
            "output": str(tmp_path / "out"),
        }
        return GenerateOptions(**{**usual, **changes})

    return make


@pytest.fixture
def prepare(tmp_path: pathlib.Path, options: Callable[..., GenerateOptions]) -> Callable[..., Job]:
    """Writes a table as ``in/a.parquet``, where one is given, and prepares a job on ``in/``."""

    def make(table: Any = None, **changes: Any) -> Job:
        if table is not None:
            jobs.write(tmp_path / "in" / "a.parquet", table)
        return prepare_job(options(**changes))

    return make


@pytest.fixture(scope="session")
def shallow(tmp_path_factory) -> pathlib.Path:
    """A checkpoint of one layer with a tokenizer."""
    folder = tmp_path_factory.mktemp("shallow")
    config = dataclasses.replace(PRESETS["tiny"], num_layers=1)
    synthesize(str(folder), config, tokenizer=synthesize_tokenizer(config.vocab_size))
    return folder


@pytest.fixture(scope="session")
def finished(shallow, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("report")
    prompts = [HOSTILE, None, "=cmd|' /C calc'!A0", "needle in a haystack", *["import os\n"] * 20]
    ids = [f"<b>{i}</b>" for i in range(len(prompts))]
    table = pa.table({"prompt": prompts, "custom_id": ids, COLUMN: ["+1"] * len(prompts)})
    pq.write_table(table, folder / "in.parquet")
    arguments = ["generate", "--checkpoint", shallow, "--input", folder / "in.parquet"]
    arguments += ["--output", folder / "out", "--max-tokens", "12", "--logprobs", "1"]
    arguments += ["--chunk-rows", "6", "--slots", "8", "--max-context", "256"]
    arguments += ["--rename", f"{COLUMN}={RENAMED}"]
    assert main([str(argument) for argument in arguments]) == ROW_ERRORS
    return Run(folder / "out", prompts)


@pytest.fixture(scope="session")
def scored(shallow, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("scores")
    contexts = [HOSTILE, "An empty list follows", "needle in a haystack", *["import"] * 9]
    answers = [[" os", " re\n"] if i != 1 else [] for i in range(len(contexts))]
    ids = [f"<b>{i}</b>" for i in range(len(contexts))]
    table = pa.table({"context": contexts, "continuations": answers, "custom_id": ids})
    pq.write_table(table, folder / "in.parquet")
    arguments = ["score", "--checkpoint", shallow, "--input", folder / "in.parquet"]
    arguments += ["--output", folder / "out", "--chunk-rows", "6", "--max-context", "256"]
    assert main([str(argument) for argument in arguments]) == ROW_ERRORS
    return Run(folder / "out", contexts, each=2)
