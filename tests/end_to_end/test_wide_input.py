"""Rows of a thousand columns: what they take does not grow with how many there are."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

COLUMNS = 1000
GROUP = 10_000
"""Rows of a group: 80 MB, which is what a reader has to pass over."""


def _write(path, rows: int) -> str:
    names = ["prompt", *(f"c{i}" for i in range(COLUMNS))]
    schema = pa.schema([("prompt", pa.string()), *((name, pa.int64()) for name in names[1:])])
    # Plain pages of numbers that repeat: small on a disk, of full size when they are read.
    values = pa.array([row % 7 for row in range(GROUP)], pa.int64())
    table = pa.table([pa.array(["def f(x):"] * GROUP), *[values] * COLUMNS], schema)
    with pq.ParquetWriter(path, schema, use_dictionary=False, compression="zstd") as writer:
        for first in range(0, rows, GROUP):
            writer.write_table(table.slice(0, min(GROUP, rows - first)))
    return str(path)


def _run(code: str, *arguments: object) -> list[float]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert not ended.returncode, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


PEAK = """
import json, re, sys, time

def peak():
    # Not ru_maxrss, which a process has from the one that started it.
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10
"""

READ = f"""{PEAK}
import pyarrow.parquet
from pipeline import plan
from pipeline.options import GenerateOptions
from pipeline.prepare import prepare_job
from pipeline.read import read_span
from pipeline.spans import spans

checkpoint, source, output = sys.argv[1:]
options = GenerateOptions(checkpoint=checkpoint, input=(source,), output=output)
start, before, rows = time.monotonic(), peak(), 0
job = prepare_job(options)
planned = peak() - before
for span in spans(plan.read_chunks(job.folder)):
    for questions in read_span(job, span):
        rows += questions.rows.num_rows
print(json.dumps([rows, planned, peak() - before, time.monotonic() - start]))
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_rows_are_planned_and_read_in_bounded_memory(talking, tmp_path):
    """8 GB of numbers, and a footer that tells of a hundred thousand pieces."""
    source = _write(tmp_path / "in.parquet", 1_000_000)
    rows, planned, grown, seconds = _run(READ, talking, source, tmp_path / "out")
    print(json.dumps({"rows": rows, "planned": planned, "mib": grown, "seconds": seconds}))
    assert rows == 1_000_000
    assert grown < 512


GENERATE = f"""{PEAK}
from pipeline.cli import main

checkpoint, source, output = sys.argv[1:]
arguments = ["--checkpoint", checkpoint, "--input", source, "--output", output, "--no-report"]
code = main(["generate", *arguments, "--max-tokens", "1"])
print(json.dumps([code, peak()]))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_whole_run_takes_no_more_for_more_rows(talking, tmp_path):
    """From where it has all the chunks under way that it ever has."""
    peaks = {}
    for rows in (40_000, 80_000):
        source = _write(tmp_path / f"{rows}.parquet", rows)
        code, peaks[rows] = _run(GENERATE, talking, source, tmp_path / f"out-{rows}")
        assert code == 0
    print(json.dumps(peaks))
    assert peaks[80_000] < peaks[40_000] + 256, "320 MB more came in, and as much went out"
