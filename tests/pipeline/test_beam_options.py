import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.portable_runner import PortableRunner

from pipeline.beam_options import attempts, check, complete, local_options, make_pipeline
from pipeline.dataflow.options import is_dataflow
from pipeline.job import wire
from schemas.error import SetupError

LOCAL = [
    "DirectRunner",
    "directrunner",
    "Direct",
    "SwitchingDirectRunner",
    "FnApiRunner",
    "fnapi",
    "apache_beam.runners.direct.direct_runner.DirectRunner",
]
ELSEWHERE = ["DataflowRunner", "FlinkRunner", "PrismRunner", "my.own.Runner"]


def options(arguments):
    return PipelineOptions(complete(arguments))


@pytest.mark.parametrize("name", LOCAL)
def test_the_local_runner_by_any_name_is_the_one_that_needs_no_download(name):
    assert options(["--runner", name]).view_as(StandardOptions).runner == "FnApiRunner"
    assert type(make_pipeline(PipelineOptions([f"--runner={name}"])).runner) is FnApiRunner


@pytest.mark.parametrize("name", ELSEWHERE)
def test_another_runner_is_left_alone(name):
    arguments = [f"--runner={name}", "--region=x"]
    assert complete(arguments) == arguments


def test_a_pipeline_for_elsewhere_is_made_for_there():
    options = PipelineOptions(["--runner=PortableRunner"])
    assert type(make_pipeline(options).runner) is PortableRunner


DATAFLOW = [
    "DataflowRunner",
    "dataflowrunner",
    "dataflow",
    "Dataflow",
    "TestDataflowRunner",
    "apache_beam.runners.dataflow.dataflow_runner.DataflowRunner",
    "apache_beam.runners.DataflowRunner",
]


@pytest.mark.parametrize("name", DATAFLOW)
def test_dataflow_tries_four_times_by_any_name(name):
    assert attempts(PipelineOptions([f"--runner={name}"])) == 4
    assert is_dataflow([f"--runner={name}"])


def test_other_runners_try_as_often_as_they_are_told():
    assert attempts(PipelineOptions(["--runner=FnApiRunner"])) is None
    flink = ["--runner=FlinkRunner", "--number_of_execution_retries=2"]
    assert attempts(PipelineOptions(flink)) == 3
    assert not is_dataflow(["--runner=FlinkRunner"])


def test_a_local_run_has_chunks_in_flight():
    direct = local_options().view_as(DirectOptions)
    assert (direct.direct_running_mode, direct.direct_num_workers) == ("multi_threading", 4)
    own = options(["--direct_num_workers=2", "--direct_running_mode", "in_memory"])
    assert own.view_as(DirectOptions).direct_num_workers == 2
    assert own.view_as(DirectOptions).direct_running_mode == "in_memory"


@pytest.mark.parametrize("given", [None, PipelineOptions([]), PipelineOptions(["--runner=Direct"])])
def test_a_pipeline_of_the_api_runs_here_too(prepare, given):
    pipeline = wire(prepare({"prompt": ["a"]}), given)
    assert isinstance(pipeline, beam.Pipeline)
    assert type(pipeline.runner) is FnApiRunner


def test_beams_own_arguments_are_known():
    check(complete(["--direct_num_workers=2", "--job_name=x", "--save_main_session"]), [])


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("--temprature=1", "did you mean --temperature?"),
        ("--direct_num_worker=1", "did you mean --direct_num_workers?"),
        ("--zzzzzzzz", "see grok1 generate --help"),
        ("stray", "see grok1 generate --help"),
    ],
)
def test_a_typing_error_is_told(argument, hint):
    with pytest.raises(SetupError, match=f"unknown argument {argument.partition('=')[0]}; ") as e:
        check(complete([argument]), ["--temperature"])
    assert hint in str(e.value)


def test_a_runner_elsewhere_may_have_options_of_its_own():
    own = f"{PortableRunner.__module__}.PortableRunner"
    for runner in ("PortableRunner", "FlinkRunner", own):
        check(complete([f"--runner={runner}", "--its_own=1"]), [])
    check(complete(["--runner=dataflow"]), [])


def test_dataflows_options_are_all_known():
    check(complete(["--runner=DataflowRunner", "--max_num_workers=4", "--project=p"]), [])
    with pytest.raises(SetupError, match="--max_num_worker; did you mean --max_num_workers"):
        check(complete(["--runner=DataflowRunner", "--max_num_worker=4"]), [])


@pytest.mark.parametrize(
    ("runner", "hint"),
    [
        ("DataflwRunner", "did you mean DataflowRunner?"),
        ("no.such.Runner", "package.module.Class"),
        ("json.Nothing", "package.module.Class"),
        ("zzz", "package.module.Class"),
    ],
)
def test_a_runner_that_is_none_is_told(runner, hint):
    with pytest.raises(SetupError, match=f"Beam has no runner {runner}; ") as told:
        check(complete([f"--runner={runner}"]), [])
    assert hint in str(told.value)


def test_a_wrong_value_is_one_sentence():
    arguments = complete(["--direct_num_workers=abc"])
    with pytest.raises(SetupError, match=r"direct_num_workers.*'abc'; see grok1 generate --help"):
        check(arguments, [])
