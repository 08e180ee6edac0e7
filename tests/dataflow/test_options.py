"""What a machine's profile sets, and every set-up that is refused before anything is sent."""

import pytest

from model.config import GROK_1
from model.machines import MACHINES
from pipeline.cli import OK, SETUP, main
from pipeline.dataflow.options import check_fits, complete
from pipeline.dataflow.profiles import PROFILES
from schemas.error import SetupError
from tests.jobs import write


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_sets_all_that_its_machine_needs(name):
    profile = PROFILES[name]
    told = complete(profile, ["--runner=DataflowRunner"], "gs://bucket/work", 3)
    assert f"--machine_type={profile.machine_type}" in told
    assert f"--dataflow_service_options=worker_accelerator={profile.accelerator}" in told
    assert "--experiments=no_use_multiple_sdk_containers" in told
    assert "--number_of_worker_harness_threads=8" in told
    assert "--max_num_workers=3" in told
    if profile.image == "tpu":
        chips = 1
        for part in profile.environment["TPU_CHIPS_PER_HOST_BOUNDS"].split(","):
            chips *= int(part)
        assert chips == profile.machine.devices
    else:
        assert f"count:{profile.machine.devices};" in profile.accelerator


def test_what_the_user_sets_stays():
    given = ["--machine_type=other", "--num_workers=5", "--staging_location=gs://x/y"]
    told = complete(PROFILES["v5p-4"], given, "gs://bucket/work", 9)
    for argument in given:
        name = argument.partition("=")[0]
        assert [a for a in told if a.startswith(f"{name}=")] == [argument]


WRONG = {
    "machine": (None, "Dataflow needs a machine: --machine"),
    "project": (None, "Dataflow needs --project"),
    "region": (None, "Dataflow needs --region: one that has the machine: us-central1"),
    "bucket": (None, "Dataflow needs --bucket"),
    "sdk_container_image": (None, "make image MACHINE=h100x8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_missing_setting_says_what_to_do(world, capsys, name):
    value, says = WRONG[name]
    assert main(world.command(**{name: value})) == SETUP
    assert says in capsys.readouterr().err


def test_a_missing_bucket_says_how_to_make_it(world, capsys):
    assert main(world.command(bucket="gs://no-such-bucket-here/work")) == SETUP
    error = capsys.readouterr().err
    assert "gcloud storage buckets create gs://no-such-bucket-here --location=us-central1" in error
    assert main(world.command(bucket="/tmp/work")) == SETUP
    assert "is no gs://BUCKET/FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["checkpoint", "input", "output", "tokenizer"])
def test_local_paths_are_refused(world, capsys, name):
    assert main(world.command(**{name: "/some/folder"})) == SETUP
    assert f"--{name} /some/folder is on this machine" in capsys.readouterr().err


def test_examples_on_this_machine_are_refused(world, capsys, tmp_path):
    shots = write(tmp_path / "shots.parquet", {"q": ["a"]})
    command = world.command(**{"few-shot": shots, "few-shot-template": "{{ q }}"})
    assert main(command) == SETUP
    assert f"--few-shot {shots} is on this machine" in capsys.readouterr().err


def test_machines_that_dataflow_does_not_have_are_refused(world, capsys):
    assert main(world.command(machine="h200x8")) == SETUP
    assert "Dataflow does not offer 8 × NVIDIA H200" in capsys.readouterr().err
    assert main(world.command(machine="h100")) == SETUP
    assert "one of v5p-4, v6e-8" in capsys.readouterr().err


def test_grok_1_is_refused_where_it_does_not_fit():
    with pytest.raises(SetupError, match=r"of 31.2 GiB a device, int8 weights take 36.8"):
        check_fits(PROFILES["v6e-8"], GROK_1, "int8", 2048, None)
    with pytest.raises(SetupError, match="take a larger machine"):
        check_fits(PROFILES["v5e-8"], GROK_1, "int4", 2048, None)
    with pytest.raises(SetupError, match=r"--slots \d+, --max-context"):
        check_fits(PROFILES["h100x8"], GROK_1, "int8", 8192, 512)
    assert check_fits(PROFILES["v6e-8"], GROK_1, "int4", 2048, None) > 16
    assert check_fits(PROFILES["h100x8"], GROK_1, "int8", 2048, 128) == 128


def test_every_profile_is_a_known_machine():
    assert {profile.machine.name for profile in PROFILES.values()} == set(PROFILES)
    assert all(MACHINES[name] is profile.machine for name, profile in PROFILES.items())


def test_explain_prints_the_job_and_sends_nothing(world, capsys):
    assert main(world.command("explained", explain=True, max_num_workers=4)) == OK
    told = capsys.readouterr().out
    for part in (
        "24 rows in 1 files, 4 parts",
        "up to 4 × a3-highgpu-8g: 8 × NVIDIA H100 80 GB",
        "type:nvidia-h100-80gb;count:8;install-nvidia-driver",
        "353.00 with all of them",
        "Generate/BeamML_RunInference",
        "no_use_multiple_sdk_containers",
        "us-docker.pkg.dev/some-project/repo/grok1:1",
    ):
        assert part in told
    assert main(["status", f"{world.bucket}/explained"]) == SETUP  # nothing was claimed


@pytest.mark.parametrize("flag", ["--machine=h100x8", "--detach", "--explain"])
def test_flags_of_dataflow_want_its_runner(world, capsys, flag):
    assert main([*world.command(runner=None, machine=None, bucket=None), flag]) == SETUP
    assert "add --runner=DataflowRunner" in capsys.readouterr().err
