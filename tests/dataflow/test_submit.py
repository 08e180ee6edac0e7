"""A job submitted, staged for real, and run from nothing but what was staged."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from apache_beam.internal.gcp import auth

from pipeline.cli import FAILED, INTERRUPTED, OK, SETUP, main
from pipeline.completions import read_completions
from pipeline.dataflow import record, submit
from pipeline.storage import Folder
from tests.dataflow import service
from tests.jobs import write

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch):
    """Beam would look for some for 25 seconds, although it is told to go without."""
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)


def test_what_was_staged_gives_the_same_dataset_as_a_local_run(world, tmp_path, capsys):
    with service.running(tmp_path) as (dataflow, endpoint):
        command = world.command("remote", no_auth=True, dataflow_endpoint=endpoint)
        code = main([*command, "--no-report"])
        assert code == OK, dataflow.log + capsys.readouterr().err
    assert f"code from {tmp_path}" in dataflow.log
    (job,) = dataflow.jobs
    assert job["environment"]["workerPools"][0]["machineType"] == "a3-highgpu-8g"
    assert "https://console.cloud.google.com/dataflow/jobs/us-central1/" in capsys.readouterr().out
    local = world.command("local", runner=None, machine=None, bucket=None, project=None)
    local = [a for a in local if not a.startswith(("--region", "--sdk_container_image"))]
    assert main([*local, "--no-report"]) == OK
    remote, here = (read_completions(f"{world.bucket}/{name}") for name in ("remote", "local"))
    assert here.num_rows == 24
    assert remote.equals(here)
    assert main(["status", f"{world.bucket}/remote"]) == OK
    assert "complete: 24 of 24 rows" in capsys.readouterr().out


@pytest.fixture
def idle(tmp_path, monkeypatch):
    """A service whose workers never come, and its URL."""
    with service.running(tmp_path) as (dataflow, endpoint):
        monkeypatch.setattr(dataflow, "_work", lambda: None)
        yield dataflow, endpoint


def test_a_detached_job_is_left_alone_and_can_be_asked_about(world, idle, capsys):
    dataflow, endpoint = idle
    command = world.command("detached", no_auth=True, dataflow_endpoint=endpoint, detach=True)
    assert main(command) == OK
    assert f"see grok1 status {world.bucket}/detached" in capsys.readouterr().out
    assert main(["status", f"{world.bucket}/detached"]) == FAILED
    told = capsys.readouterr().out
    assert "unfinished: 0 of 24 rows" in told
    assert "Dataflow job 2026-01-01_00_00_00-1: running · https://console.cloud.google" in told
    # A second job for the same output would compute everything twice.
    assert main(command) == SETUP
    told = capsys.readouterr().err
    assert "job 2026-01-01_00_00_00-1 works on" in told
    assert "gcloud dataflow jobs cancel 2026-01-01_00_00_00-1 --project=some-project" in told
    dataflow.state = "JOB_STATE_CANCELLED"
    assert main(command) == OK
    assert len(dataflow.jobs) == 2
    capsys.readouterr()
    assert main(["status", "--json", f"{world.bucket}/detached"]) == FAILED
    assert json.loads(capsys.readouterr().out)["job_state"] == "cancelled"


def test_a_service_that_does_not_answer_is_no_obstacle(world, tmp_path, capsys):
    output = Folder(f"{world.bucket}/silent")
    gone = record.Submitted(
        job_id="j-1",
        project="p",
        region="r",
        endpoint="http://localhost:9",
        no_auth=True,
    )
    record.record(output, gone)
    with pytest.raises(record.Unknown, match="Dataflow cannot be reached at http://localhost:9"):
        record.ask_state(gone)
    with service.running(tmp_path) as (dataflow, endpoint):
        dataflow._work = lambda: None
        command = world.command("silent", no_auth=True, dataflow_endpoint=endpoint, detach=True)
        assert main(command) == OK
        assert "job j-1 was submitted for this output before" in capsys.readouterr().err
        record.record(output, gone)
    assert main(["status", f"{world.bucket}/silent"]) == FAILED
    assert "job j-1: state not known: Dataflow cannot be reached" in capsys.readouterr().out


def test_a_job_that_cannot_be_noted_is_told_all_the_same(world, idle, capsys, monkeypatch):
    def fail(*_):
        raise OSError("the bucket went away")

    monkeypatch.setattr(submit, "record", fail)
    dataflow, endpoint = idle
    command = world.command("unnoted", no_auth=True, dataflow_endpoint=endpoint, detach=True)
    assert main(command) == OK
    assert len(dataflow.jobs) == 1
    captured = capsys.readouterr()
    assert "Dataflow job 2026-01-01_00_00_00-1: https://console.cloud.google" in captured.out
    assert "could not be noted in its output (the bucket went away)" in captured.err
    assert "cancel it: gcloud dataflow jobs cancel 2026-01-01_00_00_00-1" in captured.err
    assert "starting again" not in captured.err


def test_a_job_that_is_done_is_done_without_its_metrics(world, idle, capsys, monkeypatch):
    def fail(*_):
        raise RuntimeError("503 the metrics are away")

    monkeypatch.setattr(submit, "counters_of", fail)
    dataflow, endpoint = idle
    local = world.command("unmeasured", runner=None, machine=None, bucket=None, project=None)
    local = [a for a in local if not a.startswith(("--region", "--sdk_container_image"))]

    def work() -> None:
        # As the workers would, a run on this machine fills the output, which it has to be let to.
        output = Folder(f"{world.bucket}/unmeasured")
        while record.submitted(output) is None:
            time.sleep(0.1)
        output.remove([record.SUBMISSION])
        script = "import sys; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
        subprocess.run([sys.executable, "-c", script, *local, "--no-report"], check=False)
        dataflow.state = "JOB_STATE_DONE"

    monkeypatch.setattr(dataflow, "_work", work)
    command = world.command("unmeasured", no_auth=True, dataflow_endpoint=endpoint)
    assert main([*command, "--no-report"]) == OK
    assert "no metrics of the job: 503 the metrics are away" in capsys.readouterr().err


def test_an_interrupt_says_that_the_job_goes_on(world, idle, capsys, request):
    # A shell that starts this in the background has it ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    dataflow, endpoint = idle

    def interrupt() -> None:
        while not dataflow.asked:  # until then the command has not begun to wait
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    command = world.command("waiting", no_auth=True, dataflow_endpoint=endpoint)
    assert main(command) == INTERRUPTED
    captured = capsys.readouterr()
    # Where it runs was said before anybody waited.
    assert "Dataflow job 2026-01-01_00_00_00-1: https://console.cloud.google" in captured.out
    assert "job 2026-01-01_00_00_00-1 goes on without this command" in captured.err
    assert "gcloud dataflow jobs cancel 2026-01-01_00_00_00-1" in captured.err
    assert dataflow.state == "JOB_STATE_RUNNING"


@pytest.mark.parametrize(("kind", "ending"), [("--sdist", ".tar.gz"), ("--wheel", ".whl")])
def test_the_project_runs_from_its_own_archive(tmp_path, kind, ending, talking):
    """What is packed is all that a run needs, data files included, in a folder of its own."""
    root = pathlib.Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", tmp_path, root],
        check=True,
        capture_output=True,
    )
    (archive,) = tmp_path.glob(f"*{ending}")
    python = service.Service(tmp_path).environment([archive])
    place = tmp_path / "elsewhere"
    write(place / "prompts.parquet", {"prompt": ["import ", "def f("]})
    command = ["generate", "--checkpoint", talking, "--input", "prompts.parquet"]
    command += ["--output", "out", "--max-tokens", "4", "--numerics", "float32"]
    script = (
        "import pipeline, sys\n"
        "from pipeline.cli import main\n"
        "from pipeline.estimate.cost import read_rates\n"
        "assert read_rates(None)\n"
        "print(pipeline.__file__, flush=True)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    ran = subprocess.run(
        [python, "-c", script, *command],
        cwd=place,
        env=service.clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == OK, ran.stderr
    assert ran.stdout.startswith(str(tmp_path / "environment"))
    assert (place / "out" / "_report.html").is_file()
    assert read_completions(str(place / "out")).num_rows == 2
