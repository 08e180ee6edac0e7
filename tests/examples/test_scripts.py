"""The example scripts, run as a user would run them."""

import os
import pathlib
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = ["import os\n", "def f(x):\n    return x\n", "class Queue:\n    pass\n", "x = 1\n"]


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, ROOT / "examples" / script, *map(str, arguments)]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def test_own_parquet_to_completions(talking, tmp_path):
    pq.write_table(pa.table({"prompt": TEXTS}), tmp_path / "in.parquet")
    told = run("complete_parquet.py", talking, tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert told.startswith("4 of 4 rows completed")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["prompt"] for row in rows] == TEXTS
    assert all(row["text"] for row in rows)


@pytest.mark.slow
def test_inside_a_pipeline_of_ones_own(talking, tmp_path):
    (tmp_path / "in").mkdir()
    run("sample_prompts.py", tmp_path / "in" / "a.parquet")
    told = run("own_pipeline.py", talking, tmp_path / "in", tmp_path / "out")
    assert told.strip() == "10 of 12 rows"
    assert (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.slow
def test_score_and_filter(talking, tmp_path):
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in.parquet")
    told = run("score_and_filter.py", talking, tmp_path / "in.parquet", tmp_path / "out.parquet")
    kept = pq.read_table(tmp_path / "out.parquet")
    assert told.startswith(f"{kept.num_rows} of 4 documents kept")
    assert set(kept.column_names) == {"text", "byte_perplexity"}
    assert 1 <= kept.num_rows <= 2
