"""What a machine's profile sets, and every set-up that is refused before anything is sent."""

import importlib.util

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from model.config import GROK_1
from model.machines import MACHINES
from model.room import Question, room_for
from pipeline.cli import OK, SETUP, main
from pipeline.dataflow import checks
from pipeline.dataflow.checks import check_fits
from pipeline.dataflow.options import complete, make_parser, parse
from pipeline.dataflow.profiles import IMAGE_PYTHON, PROFILES
from pipeline.storage import Folder
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


def told_to_beam(*given: str) -> dict:
    """What Beam itself makes of a completed command."""
    return PipelineOptions(complete(PROFILES["h100x8"], given, "gs://b/w", 9)).get_all_options()


def test_what_the_user_sets_stays():
    found = told_to_beam("--machine_type=other", "--num_workers", "5", "--staging_location=gs://x")
    assert (found["machine_type"], found["num_workers"]) == ("other", 5)
    assert found["staging_location"] == "gs://x"
    assert found["max_num_workers"] == 9
    assert found["temp_location"] == "gs://b/w/tmp"


def test_it_stays_under_every_name_that_beam_has_for_it():
    assert told_to_beam("--worker_machine_type=other")["machine_type"] == "other"
    found = told_to_beam("--experiment=one,two", "--dataflow_service_option=three")
    assert found["experiments"] == ["one", "two", "no_use_multiple_sdk_containers"]
    accelerator = f"worker_accelerator={PROFILES['h100x8'].accelerator}"
    assert found["dataflow_service_options"] == ["three", accelerator]
    own = "worker_accelerator=type:nvidia-h100-80gb;count:8;install-nvidia-driver:5xx"
    assert told_to_beam(f"--experiments={own}")["dataflow_service_options"] is None


def test_the_names_are_beam_s():
    names = {}
    for options in PipelineOptions.__subclasses__():
        parser = make_parser().__class__(add_help=False, conflict_handler="resolve")
        options._add_argparse_args(parser)
        names |= {action.dest: set(action.option_strings) for action in parser._actions}
    for action in make_parser()._actions:
        assert set(action.option_strings) == names[action.dest]


CONTRADICTIONS = [
    (["--experiments=use_multiple_sdk_containers"], "only one process can own"),
    (
        ["--dataflow_service_options=worker_accelerator=type:nvidia-l4;count:1"],
        "count:8;install-nvidia-driver:5xx, and type:nvidia-l4;count:1 is asked",
    ),
    (["--num_workers=5", "--max_num_workers=2"], "exceeds --max_num_workers=2"),
    (
        ["--machine_type=n1-standard-4"],
        "h100x8 has hosts of type a3-highgpu-8g, and --machine_type=n1-standard-4 is asked for",
    ),
    (["--sdk_worker_parallelism=4"], "--sdk_worker_parallelism=4 starts more or fewer"),
    (["--temp_location=/tmp/x"], "--temp_location=/tmp/x is no gs://BUCKET/FOLDER"),
    (["--staging_location=/tmp/x"], "--staging_location=/tmp/x is no gs://BUCKET/FOLDER"),
    (
        ["--worker_zone=europe-west4-a"],
        "--worker_zone=europe-west4-a is not in --region=us-central1; leave it out, or give the "
        "region that it belongs to: --region=europe-west4",
    ),
    (["--zone=here"], "--zone=here is not in --region=us-central1"),
    (["--worker_region=europe-west4"], "--worker_region=europe-west4 is not in --region"),
    (["--compile-cache=./compiled"], "--compile-cache gs://BUCKET/compiled, or leave it out"),
]
AGREEING = [
    "--machine_type=a3-highgpu-8g",
    "--sdk_worker_parallelism=1",
    "--staging_location=gs://another-bucket/folder",
    "--worker_zone=us-central1-a",
    "--compile-cache=none",
]


@pytest.mark.parametrize(("given", "says"), CONTRADICTIONS)
def test_what_contradicts_the_machine_is_refused(world, capsys, given, says):
    assert main([*world.command(), *given]) == SETUP
    assert says in capsys.readouterr().err


REFUSED_BY_BEAM = [
    ({"project": "Bad Project!"}, "Invalid Project ID (Bad Project!)"),
    ({"job_name": "Bad_Name!"}, "Invalid job_name (Bad_Name!)"),
    ({"max_num_workers": "0"}, "Invalid value (0) for option: max_num_workers"),
]


def test_what_agrees_with_the_machine_is_taken(world):
    assert main([*world.command(explain=True), *AGREEING]) == OK


@pytest.mark.parametrize("endpoint", [None, "http://localhost:9"])
@pytest.mark.parametrize(("changes", "says"), REFUSED_BY_BEAM)
def test_what_beam_refuses_is_refused_before_anything_is_claimed(
    world, capsys, changes, says, endpoint
):
    command = world.command("claimed", **changes, dataflow_endpoint=endpoint)
    for more in ([], ["--explain"]):
        assert main([*command, *more]) == SETUP
        assert says in capsys.readouterr().err
    assert not Folder(f"{world.bucket}/claimed").names()


WRONG = {
    "machine": (None, "Dataflow needs a machine: --machine"),
    "project": (None, "Dataflow needs --project"),
    "region": (None, "Dataflow needs --region: one that has the machine: us-central1"),
    "bucket": (None, "Dataflow needs --bucket"),
    "sdk_container_image": (None, "make image MACHINE=h100x8"),
}


def test_a_number_that_is_none_is_told_in_one_sentence(world, capsys):
    assert main(world.command(max_num_workers="many")) == SETUP
    assert capsys.readouterr().err == (
        "grok1: argument --max_num_workers: invalid int value: 'many'; see grok1 generate --help\n"
    )


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


def fits(machine: str, weights: str = "int8", **more) -> int:
    question = Question(machine=machine, config=GROK_1, weights=weights, **more)
    return check_fits(PROFILES[machine], question)


def test_grok_1_is_refused_where_it_does_not_fit():
    with pytest.raises(SetupError, match=r"of 31.25 GiB a device, int8 weights take 37.27"):
        fits("v6e-8")
    with pytest.raises(SetupError, match=r"int4 weights take 20.36.*; take a larger machine$"):
        fits("v5e-8", "int4")
    with pytest.raises(SetupError, match=r"of 75.14 GiB.*153 sequences.*--slots 144, --max-con"):
        fits("h100x8", context=8192, slots=153)
    with pytest.raises(SetupError, match="--kv-cache-dtype int8"):
        fits("h100x8", context=8192, slots=256)


def test_what_fits_is_what_the_arithmetic_of_fit_says():
    assert fits("h100x8", context=8192) == 144
    assert fits("h100x8", context=8192, slots=100) == 100
    assert fits("h100x8", context=8192, slots=256, kv_cache_dtype="int8") == 256
    assert (
        fits("v6e-8", "int4")
        == room_for(Question(machine="v6e-8", config=GROK_1, weights="int4")).max_slots
    )
    # Twice the bytes in the cache, and an embedding of twice the size.
    assert fits("h100x8", context=8192, numerics="float32") <= 144 / 2


def test_slots_that_do_not_fit_are_refused_with_the_figures(world, capsys):
    assert main(world.command("unclaimed", slots=100_000_000)) == SETUP
    told = capsys.readouterr().err
    assert "--machine h100x8: the model does not fit: of 75.14 GiB a device" in told
    assert "100000000 sequences of 256 tokens" in told
    assert "fewer or shorter sequences: --slots " in told


def test_every_profile_is_a_known_machine():
    assert {profile.machine.name for profile in PROFILES.values()} == set(PROFILES)
    assert all(MACHINES[name] is profile.machine for name, profile in PROFILES.items())


def test_another_python_than_the_image_s_is_refused():
    checks.check_python(IMAGE_PYTHON)
    with pytest.raises(SetupError, match=r"this is Python 3.13 and the worker image has 3.11"):
        checks.check_python((3, 13))


def test_the_running_python_is_the_one_that_is_checked(world, capsys, monkeypatch):
    monkeypatch.setattr(checks, "IMAGE_PYTHON", (3, 99))
    assert main(world.command("refused")) == SETUP
    assert "worker image has 3.99" in capsys.readouterr().err


def test_without_google_s_client_nothing_is_claimed(world, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "dataflow" in name else find(name)
    )
    assert main(world.command("unclaimed")) == SETUP
    assert "not installed here; run: make setup-dev" in capsys.readouterr().err
    with pytest.raises(SetupError, match=r"-m pip install 'apache-beam\[gcp\]>=2.77,<2.78' gcsfs"):
        checks.check_client(from_checkout=False)
    assert main(["status", f"{world.bucket}/unclaimed"]) == SETUP


def test_a_job_that_makes_a_template_needs_no_image_yet():
    given = parse(["--template_location=gs://b/t", "--no_auth", "--dry_run=True"])
    assert (given.template_location, given.no_auth, given.dry_run) == ("gs://b/t", True, "True")


@pytest.mark.parametrize("flag", ["--machine=h100x8", "--detach", "--explain"])
def test_flags_of_dataflow_want_its_runner(world, capsys, flag):
    assert main([*world.command(runner=None, machine=None, bucket=None), flag]) == SETUP
    assert "add --runner=DataflowRunner" in capsys.readouterr().err
