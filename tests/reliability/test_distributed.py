"""Runners with workers in other processes: one dataset, to the bit, even if they lose one."""

import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from pipeline import preemption
from pipeline.storage import Folder
from tests.reliability import fleet, runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROWS = 480
PARTS = 60
KILLS = [190, 191, 192]
"""Token ids of a prompt that is in no other row."""

_GROK1 = ["-c", "import sys; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"]

_SMALL = ("--chunk-rows", "8")
"""So that a worker that is killed when the first chunks are done has more to do."""

_FLINK = (
    *("--parallelism=2", "--sdk_worker_parallelism=2"),
    "--number_of_execution_retries=3",
)
"""Two workers, and as many more attempts as ``flink-conf.yaml`` allows."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> str:
    """Four files, of which one has a row that is an error."""
    folder = tmp_path_factory.mktemp("in")
    for file in range(4):
        columns = runs.prompts(ROWS // 4, first=file * ROWS)
        if not file:
            columns["prompt_token_ids"][11] = []
        runs.write(folder / f"{file}.parquet", columns)
    return str(folder)


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory) -> dict:
    """The dataset of a local run."""
    output = str(tmp_path_factory.mktemp("expected") / "out")
    assert runs.generate(inputs, output, *_SMALL) == 3
    found = runs.fingerprint(output)
    assert len(found) == PARTS
    return found


@pytest.fixture
def pool(environment, tmp_path) -> Iterator[fleet.Pool]:
    with fleet.pool(environment, tmp_path / "pool.log") as found:
        yield found


@pytest.fixture
def flink(tmp_path) -> Iterator[str]:
    with fleet.flink(tmp_path) as address:
        yield address


@pytest.fixture
def prism(tmp_path) -> Iterator[str]:
    with fleet.prism(tmp_path) as address:
        yield address


class _Job:
    """``grok1 generate`` on a runner elsewhere."""

    def __init__(self, inputs, output, environment, runner, pool, *more) -> None:
        self.output = output
        beam = [
            *("--runner=PortableRunner", f"--job_endpoint={runner}", "--job_server_timeout=300"),
            *("--environment_type=EXTERNAL", f"--environment_config={pool.address}", *more),
        ]
        self._process = subprocess.Popen(
            [sys.executable, *_GROK1, *runs.arguments(inputs, output, *_SMALL, *beam)],
            env=environment,
            cwd=fleet.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def until_parts(self, least: int) -> int:
        """Waits until so many parts are there; how many are."""
        while self._process.poll() is None:
            if pathlib.Path(self.output).exists():
                parts = len(runs.part_names(self.output))
                if parts >= least:
                    return parts
            time.sleep(0.02)
        raise AssertionError(f"it has ended: {self._process.communicate()[0]}")

    def end(self) -> tuple[int, str]:
        """Waits for the end; exit code, and all that it has said."""
        said = self._process.communicate(timeout=1800)[0]
        return self._process.returncode, said


_LOST = pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM], ids=lambda s: s.name)
"""A machine that is lost, and one that is preempted."""


def _check(output: str, expected: dict) -> None:
    assert runs.fingerprint(output) == expected
    manifest = runs.manifest(output)
    assert (manifest["rows_in"], manifest["succeeded"], manifest["errored"]) == (ROWS, ROWS - 1, 1)
    assert Folder(output).exists("_SUCCESS")


def test_flink(inputs, expected, environment, pool, flink, tmp_path):
    job = _Job(inputs, str(tmp_path / "out"), environment, flink, pool, *_FLINK)
    job.until_parts(1)
    assert pool.started() >= 2
    code, said = job.end()
    assert code == 3, said
    _check(job.output, expected)


@_LOST
def test_flink_loses_a_worker(sign, inputs, expected, environment, pool, flink, tmp_path):
    """One command: the runner tries again by itself, and what was done is passed over."""
    job = _Job(inputs, str(tmp_path / "out"), environment, flink, pool, *_FLINK)
    assert job.until_parts(2) < PARTS
    before = pool.started()
    assert pool.lose_one(sign) < preemption.GRACE_SECONDS
    code, said = job.end()
    assert code == 3, said
    assert pool.started() > max(before, 2)
    _check(job.output, expected)


def test_flink_meets_a_row_that_kills(inputs, expected, environment, flink, tmp_path):
    """One command: whoever decodes the row dies; it is found out, and no other row is lost."""
    # Found by each worker process when it starts, before any of its own code.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'worker_pool_main' not in ' '.join(sys.orig_argv):\n"
        "    from tests.reliability import killed\n"
        f"    killed.poison({{{tuple(KILLS)}}})\n"
    )
    lethal = {**environment, "PYTHONPATH": f"{tmp_path}:{environment['PYTHONPATH']}"}
    columns = runs.prompts(ROWS // 4, first=9 * ROWS)
    columns["prompt_token_ids"][50] = KILLS
    folder = tmp_path / "in"
    shutil.copytree(inputs, folder)
    runs.write(folder / "4.parquet", columns)
    with fleet.pool(lethal, tmp_path / "pool.log") as pool:
        job = _Job(str(folder), str(tmp_path / "out"), environment, flink, pool, *_FLINK)
        code, said = job.end()
        assert code == 3, said
        assert pool.started() > 2
    manifest = runs.manifest(job.output)
    assert manifest["rows_in"] == ROWS + ROWS // 4
    lost = [row for row in runs.rows(job.output) if row["status"] == "errored"]
    assert manifest["errors"] == {"poison": 1, "prompt_empty": 1}
    assert [row["prompt_token_ids"] for row in lost] == [[], KILLS]
    assert expected.items() <= runs.fingerprint(job.output).items()


def test_prism(inputs, expected, environment, pool, prism, tmp_path):
    """It has one worker a job, so two are at work on one output by two jobs."""
    output = str(tmp_path / "out")
    for job in [_Job(inputs, output, environment, prism, pool) for _ in range(2)]:
        code, said = job.end()
        assert code == 3, said
    assert pool.started() == 2
    _check(output, expected)


@_LOST
def test_prism_loses_a_worker(sign, inputs, expected, environment, pool, prism, tmp_path):
    """It does not try again; the same command does, and only what is missing."""
    output = str(tmp_path / "out")
    job = _Job(inputs, output, environment, prism, pool)
    assert job.until_parts(2) < PARTS
    assert pool.lose_one(sign) < preemption.GRACE_SECONDS
    if sign == signal.SIGTERM:
        names = Folder(f"{output}/_strikes").names()
        assert all(".saved." in name for name in names), "whoever is told to end accuses nobody"
    code, said = job.end()
    assert code == 1, said
    done = len(runs.part_names(output))
    assert done < PARTS
    code, said = _Job(inputs, output, environment, prism, pool).end()
    assert code == 3, said
    assert f"{done} of them done" in said
    _check(output, expected)
