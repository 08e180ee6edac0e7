"""Many parts: what starting again and the end ask of the store, and what that costs."""

import collections
import json
import os
import threading
import time
from typing import Any

import pytest

from pipeline import footer, plan
from pipeline import job as jobs_
from pipeline.commit import commit
from pipeline.finalize import finalize
from pipeline.prepare import prepare_job
from pipeline.read import read_span
from pipeline.spans import Span
from pipeline.storage import Folder
from tests import jobs
from tests.reliability import runs


@pytest.fixture
def asked(monkeypatch) -> collections.Counter[str]:
    """What is asked of the output: listings under ``names``, each part's footer under its name."""
    counts: collections.Counter[str] = collections.Counter()
    lock = threading.Lock()
    names, tail, exists, size = Folder.names, footer.read_tail, Folder.exists, Folder.size

    def count(what: str) -> None:
        with lock:
            counts[what] += 1

    def counted(name: str, real: Any) -> Any:
        def asking(folder: Folder, *what: str) -> Any:
            # Folders below the output have no parts.
            if not what and not folder.url.rpartition("/")[2].startswith("_"):
                count(name)
            elif what and plan.is_part(what[0]):
                count(f"{name} of a part")
            return real(folder, *what)

        return asking

    def reading(url: str, size: int, length: int) -> bytes:
        name = url.rpartition("/")[2]
        if plan.is_part(name):
            count(name)
        return tail(url, size, length)

    for name, real in (("names", names), ("exists", exists), ("size", size)):
        monkeypatch.setattr(Folder, name, counted(name, real))
    monkeypatch.setattr(footer, "read_tail", reading)
    return counts


@pytest.mark.parametrize("done", [0, 3, 6])
def test_what_is_there_is_found_by_its_name_and_each_footer_is_read_once(done, tmp_path, asked):
    """However many parts there are: a listing by who needs one, and no request for a done part."""
    source = runs.write(tmp_path / "in" / "a.parquet", runs.prompts(48))
    output = tmp_path / "out"
    options = runs.options(source, str(output), chunk_rows=8)
    jobs_.run(prepare_job(options))
    parts = runs.part_names(str(output))
    assert len(parts) == 6
    for name in parts[done:]:
        (output / name).unlink()
    asked.clear()
    job = prepare_job(options)
    assert job.done == done
    assert asked == {"names": 2}, "whose the folder is, and what is done"
    asked.clear()
    counters = jobs_.run(job)
    assert counters.get("parts_committed", 0) == 6 - done
    # The listing that finds what is missing, and Finalize's own, which reads each footer. Before a
    # chunk is read somebody looks whether another attempt has done it.
    assert asked.pop("exists of a part", 0) == 6 - done
    assert asked == {"names": 2, **dict.fromkeys(parts, 1)}


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
