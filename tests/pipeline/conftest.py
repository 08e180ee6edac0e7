import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.options import GenerateOptions
from pipeline.prepare import Job, prepare_job
from tests import jobs


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
