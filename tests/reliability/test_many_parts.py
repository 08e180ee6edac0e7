"""A hundred thousand parts: what starting again and the end cost then."""

import json
import os
import time

import pytest

from pipeline import plan
from pipeline.commit import commit
from pipeline.finalize import finalize
from pipeline.prepare import prepare_job
from pipeline.read import read_span
from pipeline.spans import Span
from pipeline.storage import Folder
from tests import jobs
from tests.reliability import runs

PARTS = 100_000
LINKS = 20_000
"""File systems bound how many names a file may have."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_resume_and_finalize(tmp_path):
    """Resume lists names once and opens no part; Finalize reads each footer once."""
    columns = {"prompt_token_ids": [[1, 2, 3]] * PARTS}
    source = runs.write(tmp_path / "in" / "a.parquet", columns)
    output = tmp_path / "out"
    options = runs.options(source, str(output), chunk_rows=1)
    first = prepare_job(options)
    chunks = plan.read_chunks(first.folder)
    assert len(chunks) == PARTS
    parts = [chunk.part_name for chunk in chunks]
    [questions] = read_span(first, Span((chunks[0],)))
    commit(first, jobs.answer(questions))
    data = (output / parts[0]).read_bytes()
    (output / parts[0]).unlink()
    for start in range(0, PARTS, LINKS):
        origin, *others = parts[start : start + LINKS]
        (output / origin).write_bytes(data)
        for name in others:
            os.link(output / origin, output / name)
    (output / parts[-1]).unlink()

    seconds = {}
    began = time.perf_counter()
    assert len(Folder(str(output)).names()) >= PARTS - 1
    seconds["listing"] = time.perf_counter() - began
    began = time.perf_counter()
    job = prepare_job(options)
    seconds["resume"] = time.perf_counter() - began
    assert (job.done, job.chunks) == (PARTS - 1, PARTS)

    os.link(output / parts[-2], output / parts[-1])
    began = time.perf_counter()
    manifest = finalize(job)
    seconds["finalize"] = time.perf_counter() - began
    assert manifest["rows_in"] == PARTS
    assert (output / "_SUCCESS").exists()
    print(json.dumps({name: round(value, 1) for name, value in seconds.items()}))
