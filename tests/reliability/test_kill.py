"""A process that dies: what it had done is kept, and the next start does the rest to the bit."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from pipeline import preemption
from pipeline.storage import Folder
from tests.reliability import runs
from tests.reliability.killed import PHASES

GROK1 = ["-c", "import sys; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"]
ROWS = 96
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> str:
    """Two files, some of whose rows are errors, of different prompts and lengths."""
    folder = tmp_path_factory.mktemp("in")
    columns = runs.prompts(ROWS - 30)
    columns["prompt_token_ids"][7] = []
    columns["prompt_token_ids"][21] = [10**6]
    runs.write(folder / "a.parquet", columns, row_group_size=20)
    runs.write(folder / "b.parquet", runs.prompts(30, first=ROWS))
    return str(folder)


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory) -> str:
    """The output of a run that nothing happened to."""
    output = str(tmp_path_factory.mktemp("undisturbed") / "out")
    assert runs.generate(inputs, output) == 3
    return output


def _run(how: list[str], inputs: str, output: str, environment, *more: str):
    command = [sys.executable, *how, *runs.arguments(inputs, output, *more)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=800, cwd=ROOT
    )


MOMENTS = [(phase, seed) for phase in PHASES for seed in range(4)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("phase", "seed"),
    [
        pytest.param(*moment, marks=[] if moment == ("decode", 0) else pytest.mark.slow)
        for moment in MOMENTS
    ],
)
def test_killed_and_started_again(phase, seed, inputs, undisturbed, environment, tmp_path):
    output = str(tmp_path / "out")
    killed = _run(["-m", "tests.reliability.killed", phase, str(seed)], inputs, output, environment)
    assert killed.returncode == -9, killed.stderr
    assert "killed" in killed.stdout
    done = len(runs.part_names(output))
    resumed = _run(GROK1, inputs, output, environment)
    assert resumed.returncode == 3, resumed.stderr
    if done:
        assert f"{done} of them done" in resumed.stdout
    assert runs.fingerprint(output) == runs.fingerprint(undisturbed)
    same = ("rows_in", "succeeded", "errored", "rows_out", "errors", "finish_reasons")
    assert {k: runs.manifest(output)[k] for k in same} == {
        k: runs.manifest(undisturbed)[k] for k in same
    }
    assert not [name for name in os.listdir(output) if name.startswith("_tmp")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sign", "phase", "sentence"),
    [
        (signal.SIGTERM, "decode", "told to end"),
        (signal.SIGTERM, "planned", "told to end"),
        (signal.SIGINT, "decode", "interrupted; start the same"),
    ],
)
def test_told_to_end(inputs, undisturbed, environment, tmp_path, sign, phase, sentence):
    """Wherever it is: gone in time, with one sentence, and nobody is a suspect."""
    output = str(tmp_path / "out")
    how = ["-m", "tests.reliability.killed", phase, "1", *runs.arguments(inputs, output)]
    process = subprocess.Popen(
        [sys.executable, *how],
        env={**environment, "SIGNAL": sign.name},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert any("killed" in line for line in process.stdout), process.communicate()
    told = time.monotonic()
    _, errors = process.communicate(timeout=800)
    seconds = time.monotonic() - told
    assert process.returncode == 128 + sign, errors
    assert seconds < preemption.GRACE_SECONDS
    assert errors.count(sentence) == 1
    assert "Traceback" not in errors
    assert Folder(output).names().get("_SUCCESS") is None
    assert Folder(f"{output}/_strikes").names() == {}
    assert runs.generate(inputs, output) == 3
    assert runs.fingerprint(output) == runs.fingerprint(undisturbed)


def test_a_store_that_hangs_does_not_keep_a_process_that_is_told_to_end(environment):
    """Bounded whatever happens: here, what would settle affairs never returns."""
    code = (
        "import os, signal, threading, time\n"
        "from pipeline import preemption, strikes\n"
        "preemption.GRACE_SECONDS = 1.0\n"
        "strikes.pardon_all = lambda ending: threading.Event().wait()\n"
        "preemption.install('ending')\n"
        "print(time.time(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(600)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, timeout=120
    )
    seconds = time.time() - float(ended.stdout)
    assert ended.returncode == 128 + signal.SIGTERM
    assert 1.0 <= seconds < 5.0, "the grace, and what a busy machine adds"
    assert ended.stderr == b"ending\n"


def test_a_worker_settles_before_beam_s_boot_program_kills_it(environment):
    """That waits 5 s after it has passed the signal on."""
    code = (
        "from pipeline import preemption\n"
        "preemption.install = lambda seconds: print(seconds)\n"
        "import pipeline.worker"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert 0 < float(ran.stdout) < 5


_AS_A_WORKER = (
    "import os, signal, sys, threading, time\n"
    "{comment}\n"
    "from pipeline import preemption, strikes\n"
    "strikes.pardon_all = lambda ending: print('pardoned', flush=True)\n"
    "for _ in range(2):\n"
    "    thread = threading.Thread(target=preemption.install_in_worker)\n"
    "    thread.start()\n"
    "    thread.join()\n"
    "os.kill(os.getpid(), signal.SIGTERM)\n"
    "time.sleep(600)\n"
)


@pytest.mark.parametrize(
    ("comment", "code", "said"),
    [
        ("# apache_beam.runners.worker.sdk_worker", preemption.EXIT_CODE, b"pardoned\n"),
        ("# somebody's program", -signal.SIGTERM, b""),
    ],
)
def test_a_worker_whose_main_thread_is_a_runner_s_settles_too(comment, code, said, environment):
    """As Beam's worker pool and its local runner's processes are, which import no plugin."""
    ended = subprocess.run(
        [sys.executable, "-c", _AS_A_WORKER.format(comment=comment)],
        env=environment,
        capture_output=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, said, b"")
