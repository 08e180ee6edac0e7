"""An output folder that a job on Dataflow works on is left to that job, whoever asks for it."""

import dataclasses
import pathlib

import pytest

from pipeline.claim import JOB
from pipeline.cli import OK, SETUP, main
from pipeline.dataflow import record
from pipeline.storage import Folder
from tests.dataflow import service
from tests.jobs import write

JOB_ID = "2026-01-01_00_00_00-1"


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run on this machine, and what it was told."""

    prompts: pathlib.Path
    output: pathlib.Path
    checkpoint: str

    def command(self, task: str, *more: str) -> list[str]:
        files = [f"--checkpoint={self.checkpoint}", f"--input={self.prompts}"]
        run = [f"--output={self.output}", "--numerics=float32", "--no-report", *more]
        return [task, *files, *run]


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Run:
    place = tmp_path_factory.mktemp("live")
    rows = {"prompt_token_ids": [[10, 20]], "continuation_token_ids": [[30, 40]]}
    prompts = pathlib.Path(write(place / "prompts.parquet", rows))
    run = Run(prompts, place / "out", str(tiny))
    assert main(run.command("generate", "--max-tokens=2")) == OK
    return run


@pytest.fixture
def live(finished, tmp_path):
    """The service, whose job works on the finished run's output."""
    with service.running(tmp_path) as (dataflow, endpoint):
        dataflow.jobs.append({"name": "grok1"})
        sent = record.Submitted(
            job_id=JOB_ID,
            project="some-project",
            region="us-central1",
            endpoint=endpoint,
            no_auth=True,
        )
        record.record(Folder(str(finished.output)), sent)
        yield dataflow


@pytest.mark.parametrize("task", ["generate", "score", "retry"])
def test_a_live_job_s_output_is_refused_to_every_command(finished, live, capsys, task):
    command = finished.command(task, "--overwrite")
    if task == "retry":
        command = ["retry", str(finished.output)]
    before = (finished.output / JOB).read_bytes()
    assert main(command) == SETUP
    told = capsys.readouterr().err
    assert f"Dataflow job {JOB_ID} works on {finished.output} already (running); wait" in told
    assert f"see grok1 status {finished.output}, or cancel" in told
    assert f"gcloud dataflow jobs cancel {JOB_ID} --project=some-project" in told
    assert (finished.output / JOB).read_bytes() == before


def test_once_it_has_ended_the_output_is_free(finished, live, capsys):
    live.state = "JOB_STATE_DONE"
    assert main(finished.command("generate", "--max-tokens=2")) == OK
    assert "Dataflow" not in capsys.readouterr().err
