"""The whole job as Dataflow would get it, built with no cloud."""

import json

import fsspec
import pytest
from apache_beam.internal import pickler
from apache_beam.internal.gcp import auth
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2

from pipeline.cli import OK, main
from pipeline.dataflow.profiles import PROFILES
from pipeline.dataflow.stages import fused_stages
from pipeline.handler import Grok1ModelHandler
from pipeline.storage import Folder


@pytest.fixture(scope="module", autouse=True)
def _no_credentials():
    """Beam would look for some for 25 seconds, although it is told to go without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auth._Credentials, "_credentials_init", True)
        yield


TPU_AND_GPU = ("v5p-4", "h100x8")


def template_command(world, machine: str) -> list[str]:
    """The command that makes a template of a job."""
    return world.command(
        f"built-{machine}",
        machine=machine,
        bucket=f"{world.bucket}/{machine}",
        no_auth=True,
        dataflow_endpoint="http://localhost:9",
        template_location=f"{world.bucket}/{machine}/template.json",
        job_name="a-job-with-a-name-that-takes-more-than-half-of-a-line",
        service_account_email="grok1-worker@a-project-of-some-length.iam.gserviceaccount.com",
        max_num_workers=7,
    )


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[] if name in TPU_AND_GPU else pytest.mark.slow)
        for name in PROFILES
    ],
)
def built(request, world):
    """The job as a template: its JSON, its pipeline, the names of all staged files; a machine."""
    machine = request.param
    assert main(template_command(world, machine)) == OK
    fs = fsspec.filesystem("gs")
    job = json.loads(fs.cat_file(f"{world.bucket}/{machine}/template.json"))
    staged = fs.find(f"{world.bucket}/{machine}/staging")
    (path,) = (path for path in staged if path.endswith("pipeline.pb"))
    pipeline = beam_runner_api_pb2.Pipeline.FromString(fs.cat_file(path))
    return PROFILES[machine], job, pipeline, staged


def test_the_job_asks_for_the_machine(built):
    profile, job, pipeline, staged = built
    environment = job["environment"]
    (pool,) = environment["workerPools"]
    assert pool["machineType"] == profile.machine_type
    assert pool["diskSizeGb"] == profile.disk_gb
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 7
    image = "us-docker.pkg.dev/some-project/repo/grok1:1"
    assert {i["containerImage"] for i in pool["sdkHarnessContainerImages"]} == {image}
    service = environment["serviceOptions"]
    assert f"worker_accelerator={profile.accelerator}" in service
    assert "no_use_multiple_sdk_containers" in environment["experiments"]
    options = environment["sdkPipelineOptions"]["options"]
    assert options["number_of_worker_harness_threads"] == 8
    assert options["temp_location"]
    assert options["sdk_location"] == "container"
    # The submitting checkout's own code travels along.
    assert any(name.endswith(".tar.gz") for name in staged)
    (sdk,) = {
        env.payload
        for env in pipeline.components.environments.values()
        if b"grok1:1" in env.payload
    }
    assert image.encode() in sdk


def test_explain_shows_all_that_the_job_is_told(built, world, capsys, monkeypatch):
    profile, job, _, _ = built
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*template_command(world, profile.machine.name), "--explain"]) == OK
    shown = in_two_columns(capsys.readouterr().out)
    defaults = PipelineOptions([]).get_all_options()
    told = job["environment"]["sdkPipelineOptions"]["options"]
    told = {k: v for k, v in told.items() if not k.startswith("pipeline") and v != defaults[k]}
    assert {"experiments", "beam_plugins", "pickle_library", "job_name"} <= set(told)
    for name in ("temp_location", "staging_location"):  # their last part is the time
        told[name], shown[name] = (each[name].rsplit(".", 2)[0] for each in (told, shown))
    for name, value in told.items():
        if name == "beam_plugins":
            value = sorted(value)
        # JSON knows no integers.
        value = int(value) if isinstance(value, float) else value
        text = "".join(value) if isinstance(value, list) else str(value)
        assert shown[name] == text.replace(" ", ""), name
    assert job["environment"]["experiments"] == told["experiments"]


def in_two_columns(text: str) -> dict[str, str]:
    """The table of options: the values by name, put together again and without spaces."""
    lines = iter(text.splitlines())
    heading = next(line for line in lines if line.split() == ["option", "value"])
    edge, found, name = heading.index("value"), {}, ""
    next(lines)
    for line in lines:
        if not line.strip():
            return found
        name = line[:edge].strip() or name
        found[name] = found.get(name, "") + line[edge:].replace(" ", "")
    return found


def test_reading_inference_and_committing_are_one_stage(built):
    _, _, pipeline, _ = built
    found = [
        stage
        for stage in fused_stages(pipeline)
        if any("RunInference" in step.unique_name for step in stage)
    ]
    # Inference is one step of one stage, and what runs there is this project's model.
    (stage,) = found
    (inference,) = [step for step in stage if "RunInference" in step.unique_name]
    assert handler_of(inference) is Grok1ModelHandler
    names = [step.unique_name for step in stage]
    order = ["ReadPrompts/Read", inference.unique_name, "WriteCompletions/Commit"]
    assert [name for name in names if name in order] == order
    # Spans are spread over the workers before that stage, not inside of it.
    assert "ReadPrompts/Spans" not in names
    assert any(name.startswith("ReadPrompts/Spread") for name in names)


def handler_of(step) -> type:
    """The class of the model handler that a staged step calls."""
    payload = beam_runner_api_pb2.ParDoPayload.FromString(step.spec.payload)
    function, *_ = pickler.loads(payload.do_fn.payload)
    return type(function._model_handler)


def test_a_dry_run_validates_and_leaves_nothing_behind(world, capsys):
    assert main(world.command("dry", no_auth=True, dry_run="True")) == OK
    assert "nothing was submitted" in capsys.readouterr().out
    assert not Folder(f"{world.bucket}/dry").names()
