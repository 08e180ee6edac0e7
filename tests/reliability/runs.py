"""Runs of ``grok1 generate`` on a small checkpoint, and what they leave."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.engine.options import EngineOptions
from pipeline import cli
from pipeline.commit import RUN
from pipeline.options import GenerateOptions
from pipeline.plan import is_part
from pipeline.storage import Folder
from schemas.sampling import SamplingParams

CHECKPOINT = str(pathlib.Path(__file__).parents[1] / "data" / "grok1-tiny")

SETTINGS = (
    *("--max-tokens", "8", "--chunk-rows", "16", "--slots", "8", "--max-context", "64"),
    "--no-report",
)


def arguments(inputs: str | Sequence[str], output: str, *more: str) -> list[str]:
    """The command line of a small run."""
    named = [inputs] if isinstance(inputs, str) else inputs
    paths = ["--checkpoint", CHECKPOINT, "--input", *named, "--output", output]
    return ["generate", *paths, *SETTINGS, *more]


def generate(inputs: str | Sequence[str], output: str, *more: str) -> int:
    """Runs the command in this process, which keeps the engine for the next; its exit code."""
    return cli.main(arguments(inputs, output, *more))


def options(inputs: str, output: str, **more: Any) -> GenerateOptions:
    """The same, for a program."""
    return GenerateOptions(
        checkpoint=CHECKPOINT,
        input=(inputs,),
        output=output,
        sampling=SamplingParams(max_tokens=8),
        engine=EngineOptions(slots=8, max_context=64),
        **{"chunk_rows": 16, **more},
    )


def prompts(rows: int, first: int = 0) -> dict[str, list[Any]]:
    """Columns of an input: prompts as token ids, and a column that only passes through."""
    return {
        "prompt_token_ids": [
            [1 + i % 200, 2 + i % 50, 3, 4][: 1 + i % 4] for i in range(first, first + rows)
        ],
        "note": [f"row {i}" for i in range(first, first + rows)],
    }


def write(path: pathlib.Path, columns: Mapping[str, Any] | pa.Table, **options: Any) -> str:
    """Writes a Parquet file with the folders above it; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    pq.write_table(table, path, **options)
    return str(path)


def manifest(output: str) -> dict[str, Any]:
    data = Folder(output).read("_manifest.json")
    assert data is not None
    return json.loads(data)


def rows(output: str) -> list[dict[str, Any]]:
    """All rows, in the order of the parts' names, as any reader would see them."""
    folder = Folder(output)
    return [row for name in part_names(output) for row in _table(folder, name).to_pylist()]


def part_names(output: str) -> list[str]:
    return sorted(filter(is_part, Folder(output).names()))


def fingerprint(output: str) -> dict[str, tuple[bytes, dict[bytes, bytes]]]:
    """Each part's bytes up to its footer, and its footer less what says when it was written."""
    folder, found = Folder(output), {}
    for name in part_names(output):
        data = folder.read(name)
        assert data is not None
        body = data[: -8 - int.from_bytes(data[-8:-4], "little")]
        metadata = dict(pq.read_metadata(pa.BufferReader(data)).metadata)
        assert metadata.pop(RUN)
        found[name] = body, metadata
    return found


def _table(folder: Folder, name: str) -> pa.Table:
    data = folder.read(name)
    assert data is not None
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
