"""What a run may take: tokens, hours, a row's seconds, and a device's silence."""

import json
import subprocess
import sys
import threading
import time

import pytest

from model.engine import loop
from model.engine.engine import Engine
from model.engine.options import EngineOptions
from model.engine.request import Request
from pipeline import budget, cli
from pipeline.counts import Counts
from pipeline.prepare import prepare_job
from pipeline.storage import Folder
from schemas.sampling import SamplingParams
from tests.reliability import runs

ROWS = 128


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("in")
    runs.write(folder / "a.parquet", runs.prompts(ROWS))
    return str(folder)


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory) -> str:
    output = str(tmp_path_factory.mktemp("whole") / "out")
    assert runs.generate(inputs, output) == 0
    return output


def test_a_budget_of_tokens(inputs, whole, tmp_path, capsys):
    output, one = str(tmp_path / "out"), ("--direct_num_workers", "1")
    total = sum(runs.manifest(whole)[name] for name in ("prompt_tokens", "completion_tokens"))
    limit = ("--max-total-tokens", str(total // 2))
    assert runs.generate(inputs, output, *limit, *one) == 4
    told = capsys.readouterr().err
    assert f"--max-total-tokens {total // 2:,} are reached" in told
    assert told.count("\n") == 1
    done = len(runs.part_names(output))
    # What was under way is finished, and no more is begun.
    assert ROWS / 16 / 2 <= done <= ROWS / 16 / 2 + 2
    assert Folder(output).read("_manifest.json") is None
    assert cli.main(["status", output, "--json"]) == 4
    assert "reached" in json.loads(capsys.readouterr().out)["stopped_by"]
    # The budget is of the whole output: again, there is none left.
    assert runs.generate(inputs, output, *limit, *one) == 4
    assert len(runs.part_names(output)) == done
    assert runs.generate(inputs, output, "--max-total-tokens", str(10 * total)) == 0
    assert runs.fingerprint(output) == runs.fingerprint(whole)
    assert cli.main(["status", output]) == 0


def test_a_budget_of_hours(inputs, whole, tmp_path, capsys):
    output = str(tmp_path / "out")
    assert runs.generate(inputs, output, "--max-hours", "1e-9") == 4
    assert "--max-hours 1e-09 have passed; start again with more" in capsys.readouterr().err
    assert runs.part_names(output) == []
    assert runs.generate(inputs, output, "--max-hours", "5") == 0
    assert runs.fingerprint(output) == runs.fingerprint(whole)


def test_a_budget_is_of_all_processes(inputs, tmp_path, monkeypatch):
    from pipeline.options import Limits

    limits = Limits(max_total_tokens=100)
    job = prepare_job(runs.options(inputs, str(tmp_path / "out"), limits=limits))
    budget.spend(job, Counts(completion_tokens=60))
    assert budget.reached(job) is None
    monkeypatch.setattr(budget, "_process", "another")
    monkeypatch.setattr(budget, "_noted", {})
    monkeypatch.setattr(budget, "_seen", {})
    budget.spend(job, Counts(prompt_tokens=39))
    assert budget.reached(job) is None
    budget.spend(job, Counts(scored_tokens=1))
    assert budget.reached(job) == "--max-total-tokens 100 are reached with 100"


@pytest.mark.parametrize("flag", ["--max-hours", "--max-total-tokens", "--row-deadline"])
def test_limits_out_of_bounds(flag, inputs, tmp_path, capsys):
    assert runs.generate(inputs, str(tmp_path / "out"), flag, "0") == 2
    assert flag in capsys.readouterr().err


class Clock:
    """The time, or a time to come."""

    ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


def test_a_row_that_takes_too_long(monkeypatch):
    """Its slots are free for others, which go on as ever; so with several samples of one row."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    decode, begun = loop.Loop._decode, threading.Event()

    def slow(self):
        begun.set()
        time.sleep(0.05)
        decode(self)

    options = EngineOptions(slots=8, max_context=256, row_deadline=1000.0)
    with Engine.from_checkpoint(runs.CHECKPOINT, options=options) as engine:
        short = SamplingParams(max_tokens=4)
        expected = engine.generate([[1, 2]], short)
        monkeypatch.setattr(loop.Loop, "_decode", slow)
        endless = SamplingParams(max_tokens=250, ignore_eos=True, n=3)
        future = engine.submit(Request(prompt_token_ids=(5, 6), params=endless, address="a"))
        assert begun.wait(60)
        clock.ahead = 1001.0
        error = future.result(60).error
        clock.ahead = 0.0
        monkeypatch.undo()
        assert error is not None
        assert str(error.code) == "deadline_exceeded"
        assert "--row-deadline" in error.sentence()
        # Nothing of it is left behind.
        deadline = time.monotonic() + 30
        while not engine._replicas[0].loop.idle and time.monotonic() < deadline:
            time.sleep(0.01)
        assert engine._replicas[0].loop.idle
        assert engine.generate([[1, 2]], short) == expected


@pytest.mark.slow
def test_a_device_that_hangs(inputs, whole, environment, tmp_path):
    """Its rows are named, its threads' stacks shown, no prompt told; and the next start goes on."""
    output = str(tmp_path / "out")
    arguments = runs.arguments(inputs, output, "--stall-seconds", "4")
    code = (
        "import sys, threading\n"
        "from model.engine.loop import Loop\n"
        "from pipeline.cli import main\n"
        "collect, calls = Loop._collect, []\n"
        "def hang(self, results):\n"
        "    calls.append(1)\n"
        "    threading.Event().wait() if len(calls) == 12 else collect(self, results)\n"
        "Loop._collect = hang\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 1
    _, named, *stacks, told = ended.stderr.splitlines()
    assert told == (
        "grok1: no token from the device for 4 s; this process ends, and starting again goes on "
        "(--stall-seconds N waits longer)"
    )
    uids = named.removeprefix("grok1: rows in flight: ").split(", ")
    assert set(uids) <= {row["row_uid"] for row in runs.rows(whole)}
    assert len(uids) >= 8
    assert any("in hang" in line for line in stacks)
    assert "prompt_token_ids" not in ended.stderr
    assert runs.generate(inputs, output) == 0
    assert runs.fingerprint(output) == runs.fingerprint(whole)
