import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from model.engine.options import EngineOptions
from pipeline.cli import main
from pipeline.options import GenerateOptions
from tests import jobs

ENGINE = ("--numerics", "float32", "--slots", "8")
"""One engine for all tests: the process keeps it as long as set-ups are equal."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a command: exit code, what it printed, the output folder and its parts."""

    code: int
    out: str
    err: str
    folder: pathlib.Path
    parts: list[str]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return jobs.read_parts(self.folder)

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "_manifest.json").read_text())

    def sentence(self) -> str:
        """The one line on stderr that a fault is told in."""
        assert self.err.startswith("grok1: ")
        assert self.err.count("\n") == 1
        return self.err.removeprefix("grok1: ").strip()


Generate = Callable[..., Outcome]


@pytest.fixture
def command(tmp_path: pathlib.Path, talking: str, capfd: pytest.CaptureFixture[str]) -> Generate:
    """Runs a command from ``in/`` to a folder, ``out/`` by default."""

    def run(
        name: str,
        *arguments: Any,
        table: Any = None,
        checkpoint: Any = talking,
        source: Any = tmp_path / "in",
        output: Any = tmp_path / "out",
    ) -> Outcome:
        if table is not None:
            jobs.write(tmp_path / "in" / "a.parquet", table)
        given = ["--checkpoint", checkpoint, "--input", source, "--output", output]
        words = [name, *given, *ENGINE, "--no-report", *arguments]
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        parts = sorted(path.name for path in pathlib.Path(output).glob("part-*"))
        return Outcome(code, out, err, pathlib.Path(output), parts)

    return run


@pytest.fixture
def generate(command: Generate) -> Generate:
    """Runs ``grok1 generate``; see ``command``."""
    return functools.partial(command, "generate")


@pytest.fixture
def options(tmp_path: pathlib.Path, talking: str) -> Callable[..., GenerateOptions]:
    """Options of the same job for the Python API; writes its input."""

    def make(table: Any, **changes: Any) -> GenerateOptions:
        return GenerateOptions(
            checkpoint=talking,
            input=(jobs.write(tmp_path / "in" / "a.parquet", table),),
            output=str(tmp_path / "out"),
            engine=EngineOptions(numerics="float32", slots=8),
            **changes,
        )

    return make
