"""A job submitted, staged for real, and run from nothing but what was staged."""

import pathlib
import subprocess
import sys

import pytest
from apache_beam.internal.gcp import auth

from pipeline.cli import FAILED, OK, main
from pipeline.completions import read_completions
from tests.dataflow import service

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


def test_a_detached_job_is_left_alone_and_can_be_asked_about(world, tmp_path, capsys):
    with service.running(tmp_path) as (dataflow, endpoint):
        dataflow._work = lambda: None  # the workers never come
        command = world.command("detached", no_auth=True, dataflow_endpoint=endpoint, detach=True)
        assert main(command) == OK
        assert "see grok1 status" in capsys.readouterr().out
    assert main(["status", f"{world.bucket}/detached"]) == FAILED
    told = capsys.readouterr().out
    assert "unfinished: 0 of 24 rows" in told
    assert "console.cloud.google.com" in told


def test_the_project_installs_from_its_own_archive(tmp_path):
    """What setup.py packs is all that a worker needs, data files included."""
    root = pathlib.Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, root],
        check=True,
        capture_output=True,
    )
    python = service.Service(tmp_path).environment(list(tmp_path.glob("*.tar.gz")))
    script = (
        "import importlib.resources as r, pipeline, model, schemas\n"
        "assert (r.files('pipeline.report') / 'assets' / 'report.css').is_file()\n"
        "assert (r.files('pipeline.estimate') / 'rates.toml').is_file()\n"
        "print(pipeline.__file__)"
    )
    ran = subprocess.run(
        [python, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert ran.stdout.startswith(str(tmp_path))
