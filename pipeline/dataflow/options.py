"""Beam's arguments for a job on a machine that Dataflow offers, complete and checked. No Beam."""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NoReturn

from model.checkpoint.source import open_checkpoint
from model.room import Question
from pipeline.dataflow import checks
from pipeline.dataflow.contradictions import accelerators, check_contradictions
from pipeline.dataflow.profiles import Profile, find_profile
from pipeline.options import JobOptions
from schemas.error import SetupError

HARNESS_THREADS = 8
"""Chunks in flight on a worker, so that the engine's slots stay full across chunk ends."""

_ONE_PROCESS = "no_use_multiple_sdk_containers"
"""One process owns the accelerators; Beam would start one a core."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """A job that may be submitted.

    Attributes:
      profile: the machine.
      arguments: Beam's, complete.
      project, region, bucket, image: as given.
      machine_type: of the hosts.
      workers: most hosts at once.
      threads: chunks in flight on a host.
      weights: kind of the checkpoint's weights.
      slots: sequences of the longest kind that a host holds at once.
      endpoint: of the service, where it is not Google's own.
      no_auth: whether to do without credentials.
      dry_run: whether nothing at all comes of it.
      advice: sentences about what is allowed, but better otherwise.
    """

    profile: Profile
    arguments: list[str]
    project: str
    region: str
    bucket: str
    image: str | None
    machine_type: str
    workers: int
    threads: int
    weights: str
    slots: int
    endpoint: str | None
    no_auth: bool
    dry_run: bool
    advice: tuple[str, ...]


def is_dataflow(arguments: Sequence[str]) -> bool:
    """Whether Beam's arguments name the Dataflow runner."""
    return names_dataflow(parse(arguments).runner)


def names_dataflow(runner: str | None) -> bool:
    """Whether a runner's name, as Beam reads it, is Dataflow's: any case, with its module or not,
    with or without its last word.
    """
    name = (runner or "").rpartition(".")[2].lower().removesuffix("runner")
    return name in ("dataflow", "testdataflow")


def prepare(
    options: JobOptions,
    arguments: Sequence[str],
    *,
    machine: str | None,
    bucket: str | None,
    check_bucket: bool = True,
) -> Submission:
    """Completes Beam's arguments for a machine, after checking all that can be checked from here.

    What the user gives himself among ``arguments`` stays as it is, or is refused.

    Args:
      options: the job.
      arguments: Beam's, as typed.
      machine: a name of ``PROFILES``.
      bucket: ``gs://`` URL of the folder for staging and temporary files.
      check_bucket: whether to ask the store if the bucket is there.

    Raises:
      SetupError: one sentence with what is missing or does not fit, and what to do.
    """
    given = parse(arguments)
    checks.check_client(source_setup() is not None)
    checks.check_python()
    if machine is None:
        raise SetupError("Dataflow needs a machine: --machine v5p-4, v6e-8, h100x8 or a100x8")
    profile = find_profile(machine)
    for flag, value, how in (
        ("--project", given.project, "the Google Cloud project that pays"),
        ("--region", given.region, f"one that has the machine: {', '.join(profile.regions)}"),
        ("--bucket", bucket or given.temp_location, "gs://BUCKET/FOLDER for staging"),
    ):
        if not value:
            raise SetupError(f"Dataflow needs {flag}: {how}")
    bucket = (bucket or given.temp_location).rstrip("/")
    checks.check_remote(options)
    checks.check_bucket(bucket, given.region, check_bucket)
    check_contradictions(profile, given)
    workers = given.max_num_workers or given.num_workers or 1
    completed = complete(profile, arguments, bucket, workers)
    # Beam takes seconds to import: what can be told before that was.
    from pipeline.dataflow.validate import validate

    validate(completed)
    sends = not given.dry_run and not given.template_location
    if given.sdk_container_image or sends:
        checks.check_image(given.sdk_container_image, machine, not given.no_auth)
    checkpoint = open_checkpoint(options.checkpoint)
    question = Question(
        machine=machine,
        config=checkpoint.config,
        weights=checkpoint.weights,
        numerics=options.engine.numerics,
        kv_cache_dtype=options.engine.kv_cache_dtype,
        context=options.engine.context_of(checkpoint.config),
        slots=options.engine.slots,
    )
    advice = (
        checks.region_advice(profile, given.region),
        checks.reservation_advice(profile, given, workers),
    )
    return Submission(
        profile=profile,
        arguments=completed,
        project=given.project,
        region=given.region,
        bucket=bucket,
        image=given.sdk_container_image,
        machine_type=given.machine_type or profile.machine_type,
        workers=workers,
        threads=given.number_of_worker_harness_threads or HARNESS_THREADS,
        weights=checkpoint.weights,
        slots=checks.check_fits(profile, question),
        endpoint=given.dataflow_endpoint,
        no_auth=given.no_auth,
        dry_run=bool(given.dry_run),
        advice=tuple(filter(None, advice)),
    )


def complete(profile: Profile, arguments: Sequence[str], bucket: str, workers: int) -> list[str]:
    """The arguments with everything that the machine needs and the user has not set."""
    given = parse(arguments)
    defaults = {
        "temp_location": f"{bucket}/tmp",
        "staging_location": f"{bucket}/staging",
        "machine_type": profile.machine_type,
        "disk_size_gb": profile.disk_gb,
        "num_workers": 1,
        "max_num_workers": workers,
        "number_of_worker_harness_threads": HARNESS_THREADS,
        "sdk_location": "container",
        # Workers then run the very code that submits; else that of the image.
        "setup_file": source_setup(),
    }
    added = [
        f"--{name}={value}"
        for name, value in defaults.items()
        if value is not None and getattr(given, name) is None
    ]
    if not accelerators(given):
        added.append(f"--dataflow_service_options=worker_accelerator={profile.accelerator}")
    if _ONE_PROCESS not in given.experiments:
        added.append(f"--experiments={_ONE_PROCESS}")
    return [*arguments, *added]


def source_setup() -> str | None:
    """The ``setup.py`` of the checkout that this code runs from, if it does."""
    path = pathlib.Path(__file__).parents[2] / "setup.py"
    return str(path) if path.is_file() else None


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What is said of those of Beam's options that a machine's profile has a say in."""
    given, _ = make_parser().parse_known_args(list(arguments))
    return given


def make_parser() -> argparse.ArgumentParser:
    """Of the options that ``parse`` knows, under all the names that Beam has for them."""
    parser = Parser(add_help=False, allow_abbrev=False)
    add = parser.add_argument
    for name in ("runner", "project", "region", "temp_location", "staging_location"):
        add(f"--{name}")
    for name in ("setup_file", "sdk_location", "dataflow_endpoint", "template_location"):
        add(f"--{name}")
    for name in ("sdk_container_image", "sdk_worker_parallelism"):
        add(f"--{name}")
    for name in ("zone", "worker_zone", "worker_region"):
        add(f"--{name}")
    add("--worker_machine_type", "--machine_type", dest="machine_type")
    add("--no_auth", action="store_true")
    add("--dry_run", nargs="?", const="True")
    for name in ("num_workers", "max_num_workers", "disk_size_gb"):
        add(f"--{name}", type=int)
    add("--number_of_worker_harness_threads", type=int)
    add("--experiment", "--experiments", dest="experiments", action=_Listed, default=[])
    add(
        "--dataflow_service_option",
        "--dataflow_service_options",
        dest="dataflow_service_options",
        action=_Listed,
        default=[],
    )
    return parser


class Parser(argparse.ArgumentParser):
    """Tells a wrong value in one sentence, where argparse would print all of Beam's options."""

    def error(self, message: str) -> NoReturn:
        """Raises SetupError."""
        raise SetupError(f"{message}; see grok1 generate --help")


class _Listed(argparse.Action):
    """Given more than once, or with commas, as Beam takes it."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any
    ) -> None:
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *values.split(",")])
