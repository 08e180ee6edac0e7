"""Rows that kill the process are found out, and all others are completed as ever."""

import dataclasses
import json
import pathlib
import pickle
import subprocess
import sys

import pytest

from pipeline import cli, process
from pipeline import job as jobs
from pipeline.prepare import prepare_job
from pipeline.storage import Folder
from tests.reliability import runs

ROWS = 64
POISON = [190, 191, 192]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> str:
    """Two files; row 37 of the first kills whoever decodes it."""
    folder = tmp_path_factory.mktemp("in")
    columns = runs.prompts(ROWS - 16)
    columns["prompt_token_ids"][37] = POISON
    runs.write(folder / "a.parquet", columns)
    runs.write(folder / "b.parquet", runs.prompts(16, first=ROWS))
    return str(folder)


@pytest.fixture(scope="module")
def healthy(inputs, tmp_path_factory) -> str:
    """The output of an engine that the row does not harm."""
    output = str(tmp_path_factory.mktemp("healthy") / "out")
    assert runs.generate(inputs, output) == 0
    return output


def _start(inputs: str, output: str, environment, *prompts: list[int]):
    what = ";".join(",".join(map(str, ids)) for ids in prompts)
    command = ["-m", "tests.reliability.killed", "poison", what, *runs.arguments(inputs, output)]
    return _python(environment, *command)


def _python(environment, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=pathlib.Path(__file__).parents[2],
    )


def _records(output: str) -> list[str]:
    return sorted(
        name.partition(".parquet.")[2].split(".")[1]
        for name in Folder(f"{output}/_strikes").names()
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_row_that_kills_is_quarantined(inputs, healthy, environment, tmp_path):
    output = str(tmp_path / "out")
    # The first death: whoever was in the engine is a suspect, of no more than that.
    first = _start(inputs, output, environment, POISON)
    assert first.returncode == -9, first.stderr
    assert set(_records(output)) == {"flight"}
    # The second: all others were done before, and it was alone.
    second = _start(inputs, output, environment, POISON)
    assert second.returncode == -9, second.stderr
    assert _records(output).count("alone") == 1, "nor is one accused that had its answer"
    # Chunks that were in the engine beside it have suspects of their own, and may be whole or not;
    # what they came to so far is kept.
    assert len(runs.part_names(output)) < 4
    assert len(runs.part_names(output)) + _records(output).count("saved") >= 4
    # The third: what the chunk's other rows came to is known by now, so it begins with the row.
    third = _start(inputs, output, environment, POISON)
    assert third.returncode == -9, third.stderr
    assert _records(output).count("alone") == 2
    # The fourth leaves it alone.
    fourth = _start(inputs, output, environment, POISON)
    assert fourth.returncode == 3, fourth.stderr
    assert runs.manifest(output)["errors"] == {"poison": 1}
    assert _records(output) == []
    truth, found = runs.rows(healthy), runs.rows(output)
    assert len(found) == len(truth) == ROWS
    for i, (row, expected) in enumerate(zip(found, truth, strict=True)):
        if i == 37:
            assert (row["status"], row["error_code"]) == ("errored", "poison")
            assert row["prompt_token_ids"] == POISON
            assert row["note"] == expected["note"]
            assert "died 2 times" in row["error_message"]
        else:
            assert row == expected
    # What became of the other parts is what always becomes of them.
    same = runs.fingerprint(healthy)
    assert [name for name, part in runs.fingerprint(output).items() if part != same[name]] == [
        runs.part_names(output)[2]
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_suspects_that_are_innocent_are_completed_to_the_bit(
    inputs, healthy, environment, tmp_path
):
    """One death while several rows were in flight: they go alone then, and all are as ever."""
    output = str(tmp_path / "out")
    assert _start(inputs, output, environment, POISON).returncode == -9
    [*records] = Folder(f"{output}/_strikes").names()
    assert records
    suspects = [
        len(json.loads(Folder(f"{output}/_strikes").read(name) or b"")["rows"]) for name in records
    ]
    assert max(suspects) > 1
    assert runs.generate(inputs, output) == 0
    assert runs.fingerprint(output) == runs.fingerprint(healthy)
    assert runs.manifest(output)["errored"] == 0
    assert _records(output) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_suspects_that_were_given_up_are_taken_up_by_retry(inputs, healthy, environment, tmp_path):
    """With real deaths in both: of a runner that tries twice, and of the retry itself."""
    output = str(tmp_path / "out")
    job = tmp_path / "job"
    job.write_bytes(pickle.dumps(prepare_job(runs.options(inputs, output))))
    code = (
        "import pickle, sys\n"
        "from apache_beam.options.pipeline_options import PipelineOptions\n"
        "from tests.reliability import killed\n"
        "from pipeline import beam_options, job\n"
        f"killed.poison({{{tuple(POISON)}}})\n"
        "tries = beam_options.complete(['--number_of_execution_retries=1'])\n"
        "job.run(pickle.load(open(sys.argv[1], 'rb')), PipelineOptions(tries))\n"
    )
    attempts = [_python(environment, "-c", code, str(job)) for _ in range(2)]
    assert [attempt.returncode for attempt in attempts] == [-9, 0], attempts[-1].stderr
    errors = runs.manifest(output)["errors"]
    assert errors.keys() == {"suspected_poison"}
    assert errors["suspected_poison"] > 1, "innocent ones as well"
    truth = runs.rows(healthy)
    found = runs.rows(output)
    assert found[37]["error_code"] == "suspected_poison"
    assert all(
        row == expected
        for row, expected in zip(found, truth, strict=True)
        if row["status"] != "errored"
    )
    # Each is alone in the engine now, so that the one which kills is found out in two deaths.
    what = ",".join(map(str, POISON))
    retry = ["-m", "tests.reliability.killed", "poison", what, "retry", output, "--no-report"]
    tries = [_python(environment, *retry) for _ in range(3)]
    assert [each.returncode for each in tries] == [-9, -9, 3], tries[-1].stderr
    assert runs.manifest(output)["errors"] == {"poison": 1}
    assert [i for i, row in enumerate(runs.rows(output)) if row != truth[i]] == [37]
    # And where the fault is gone, that one is answered, too.
    assert cli.main(["retry", output, "--no-report"]) == 0
    assert runs.rows(output) == truth


def test_suspects_are_given_up_when_the_runner_tries_no_more(
    inputs, healthy, tmp_path, monkeypatch
):
    """Three deaths, by records as the dead leave them; the fourth attempt is the last."""
    output = str(tmp_path / "out")
    job = dataclasses.replace(prepare_job(runs.options(inputs, output)), attempts=4)
    ledger = jobs.ledger_of(job)
    part = runs.part_names(healthy)[0]
    for _ in range(3):
        ledger.begin(part).admit([3, 5])
    monkeypatch.setattr(process, "is_alive", lambda other: False)
    monkeypatch.setattr(jobs, "attempts", lambda beam_options: 4)
    jobs.run(job)
    assert runs.manifest(output)["errors"] == {"suspected_poison": 2}
    lost = [i for i, row in enumerate(runs.rows(output)) if row["status"] == "errored"]
    assert lost == [3, 5]
