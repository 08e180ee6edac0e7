"""Wherever it lies, however it is run, and whoever else runs it: one dataset, to the bit."""

import os
import re
import signal
import subprocess
import sys
import threading

import fsspec
import pytest

from pipeline.storage import Folder
from tests.reliability import runs

ROWS = 80


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("in")
    columns = runs.prompts(ROWS - 20)
    columns["prompt_token_ids"][11] = []
    runs.write(folder / "a.parquet", columns, row_group_size=25)
    runs.write(folder / "deep" / "b.parquet", runs.prompts(20, first=ROWS))
    return str(folder)


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory) -> dict:
    """The dataset of a local run."""
    output = str(tmp_path_factory.mktemp("expected") / "out")
    assert runs.generate(inputs, output) == 3
    return runs.fingerprint(output)


def test_from_and_to_each_store(store, inputs, expected):
    """``s3://``, ``gs://``, ``memory://`` and local paths, as a user names them."""
    fs, path = fsspec.core.url_to_fs(f"{store}/prompts")
    for name in ("a.parquet", "deep/b.parquet"):
        fs.makedirs(fs._parent(f"{path}/{name}"), exist_ok=True)
        with open(f"{inputs}/{name}", "rb") as file:
            fs.pipe_file(f"{path}/{name}", file.read())
    output = f"{store}/out"
    assert runs.generate(f"{store}/prompts", output) == 3
    assert runs.fingerprint(output) == expected
    assert runs.manifest(output)["rows_in"] == ROWS
    # A part is lost, and the run goes on from the names of the others.
    names = runs.part_names(output)
    Folder(output).remove([names[1], "_SUCCESS", "_manifest.json"])
    assert runs.generate(f"{store}/prompts", output) == 3
    assert runs.fingerprint(output) == expected
    assert Folder(output).exists("_SUCCESS")


@pytest.mark.parametrize(
    "how",
    [
        ["--direct_runner_bundle_repeat=1"],
        ["--direct_num_workers=1", "--direct_running_mode=in_memory"],
        ["--direct_num_workers=4", "--direct_running_mode=multi_threading"],
        pytest.param(
            ["--direct_num_workers=2", "--direct_running_mode=multi_processing"],
            marks=[pytest.mark.slow, pytest.mark.timeout(900)],
        ),
    ],
    ids=["every bundle twice", "one thread", "four threads", "two processes"],
)
def test_however_it_is_run(how, inputs, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    output = str(tmp_path / "out")
    assert runs.generate(inputs, output, *how) == 3
    assert runs.fingerprint(output) == expected
    assert runs.manifest(output)["rows_in"] == ROWS


def test_two_runs_at_once(inputs, expected, tmp_path, capsys):
    """They share the work or race for it; each part has one writer, and both say the same."""
    output, codes = str(tmp_path / "out"), []
    both = [
        threading.Thread(target=lambda: codes.append(runs.generate(inputs, output)))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert codes == [3, 3]
    assert runs.fingerprint(output) == expected
    assert runs.manifest(output)["rows_in"] == ROWS
    assert f"{ROWS:,} in = {ROWS - 1:,} succeeded + 1 errored" in capsys.readouterr().out


def _parts_told(out: str) -> dict[str, int]:
    """What a summary says of parts."""
    line = next(line for line in out.splitlines() if " written" in line)
    found = {}
    for what in ("written", "there before", "written meanwhile by another run"):
        match = re.search(rf"([\d,]+) {what}\b(?! meanwhile)", line)
        found[what] = int(match[1]) if match else 0
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_at_once(inputs, expected, environment, tmp_path):
    """Each part is told of as what it was: this one's, the other's meanwhile, or there before."""
    output = str(tmp_path / "out")
    code = "import sys; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, *runs.arguments(inputs, output)],
            env={**environment, "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    told = []
    for process in both:
        out, errors = process.communicate(timeout=800)
        assert process.returncode == 3, errors
        assert f"{ROWS:,} in = {ROWS - 1:,} succeeded + 1 errored" in out
        told.append(_parts_told(out))
        before = re.search(r"([\d,]+) of them done", out)
        assert told[-1]["there before"] == (int(before[1]) if before else 0)
    assert runs.fingerprint(output) == expected
    assert runs.manifest(output)["rows_in"] == ROWS
    assert sum(parts["written"] for parts in told) == len(expected), "each has one writer"
    assert {sum(parts.values()) for parts in told} == {len(expected)}


class _Zombie:
    """A run in a process of its own that is stopped in a phase, and wakes up when it is told to."""

    def __init__(self, phase: str, inputs: str, output: str, environment: dict[str, str]) -> None:
        command = ["-m", "tests.reliability.killed", phase, "2", *runs.arguments(inputs, output)]
        self._process = subprocess.Popen(
            [sys.executable, *command],
            env={**environment, "SIGNAL": "SIGSTOP", "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def wake(self) -> tuple[int, str, str]:
        """Lets it go on to its end; exit code, output, errors."""
        self._process.send_signal(signal.SIGCONT)
        out, errors = self._process.communicate(timeout=600)
        return self._process.returncode, out, errors

    def bury(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def zombie(inputs, environment, tmp_path):
    made = []

    def make(phase: str) -> _Zombie:
        made.append(_Zombie(phase, inputs, str(tmp_path / "out"), environment))
        return made[-1]

    yield make
    for each in made:
        each.bury()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("phase", ["decode", "commit", "manifest"])
def test_a_zombie_that_goes_on_after_the_manifest(phase, zombie, inputs, expected, tmp_path):
    """Its retry has done all meanwhile: the first writer has won, and the counts are right."""
    output, late = str(tmp_path / "out"), zombie(phase)
    assert runs.generate(inputs, output) == 3
    code, out, errors = late.wake()
    assert code == 3, errors
    assert f"{ROWS:,} in = {ROWS - 1:,} succeeded + 1 errored" in out
    parts = _parts_told(out)
    assert parts["there before"] == 0
    assert (parts["written meanwhile by another run"] > 0) == (phase != "manifest")
    assert sum(parts.values()) == len(expected)
    assert runs.fingerprint(output) == expected
    assert runs.manifest(output)["rows_in"] == ROWS
    assert set(Folder(output).names()) >= {"_SUCCESS", "_manifest.json"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("phase", ["decode", "commit"])
def test_a_zombie_of_a_job_that_was_replaced(phase, zombie, inputs, tmp_path):
    output, late = str(tmp_path / "out"), zombie(phase)
    assert runs.generate(inputs, output, "--overwrite", "--run-seed", "5") == 3
    after = runs.fingerprint(output)
    code, _, errors = late.wake()
    assert code == 1
    assert "was taken over by another run; this one writes no more" in errors
    assert errors.count("taken over") == 1
    assert runs.fingerprint(output) == after
    assert runs.generate(inputs, output, "--run-seed", "5") == 3
