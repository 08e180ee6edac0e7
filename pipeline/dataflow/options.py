"""Beam's arguments for a machine, and everything that can be wrong with them before submission."""

import argparse
import dataclasses
import pathlib
import re
from collections.abc import Sequence

from model.checkpoint import files
from model.checkpoint.source import open_checkpoint
from model.config import Grok1Config
from model.machines import cache_bytes_per_token, weight_bytes
from pipeline.dataflow.profiles import Profile, find_profile
from pipeline.options import JobOptions
from schemas.error import SetupError

HARNESS_THREADS = 8
"""Chunks in flight on a worker, so that the engine's slots stay full across chunk ends."""

_RESERVE = 2 << 30
_GIB = 1 << 30
_MIN_SLOTS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """A job that may be submitted.

    Attributes:
      profile: the machine.
      arguments: Beam's, complete.
      project, region, bucket, image: as given.
      workers: most hosts at once.
      weights: kind of the checkpoint's weights.
      slots: sequences of the longest kind that a host holds at once.
    """

    profile: Profile
    arguments: list[str]
    project: str
    region: str
    bucket: str
    image: str | None
    workers: int
    weights: str
    slots: int


def is_dataflow(arguments: Sequence[str]) -> bool:
    """Whether Beam's arguments name the Dataflow runner."""
    given, _ = _parser().parse_known_args(list(arguments))
    return (given.runner or "").rpartition(".")[2].lower() in ("dataflowrunner", "dataflow")


def prepare(
    options: JobOptions,
    arguments: Sequence[str],
    *,
    machine: str | None,
    bucket: str | None,
    check_bucket: bool = True,
) -> Submission:
    """Completes Beam's arguments for a machine, after checking all that can be checked from here.

    What the user gives himself among ``arguments`` stays as it is.

    Args:
      options: the job.
      arguments: Beam's, as typed.
      machine: a name of ``PROFILES``.
      bucket: ``gs://`` URL of the folder for staging and temporary files.
      check_bucket: whether to ask the store if the bucket is there.

    Raises:
      SetupError: one sentence with what is missing or does not fit, and what to do.
    """
    given, _ = _parser().parse_known_args(list(arguments))
    if machine is None:
        raise SetupError("Dataflow needs a machine: --machine v5p-4, v6e-8, h100x8 or a100x8")
    profile = find_profile(machine)
    for flag, value, how in (
        ("--project", given.project, "the Google Cloud project that pays"),
        ("--region", given.region, f"one that has the machine: {_regions(profile)}"),
        ("--bucket", bucket or given.temp_location, "gs://BUCKET/FOLDER for staging"),
    ):
        if not value:
            raise SetupError(f"Dataflow needs {flag}: {how}")
    bucket = (bucket or given.temp_location).rstrip("/")
    _check_remote(options)
    _check_bucket(bucket, given.region, check_bucket)
    if not given.sdk_container_image and not given.dry_run and not given.template_location:
        raise SetupError(
            "Dataflow needs a worker image: build and push one with `make image "
            f"MACHINE={machine} IMAGE=REGION-docker.pkg.dev/PROJECT/REPO/grok1:TAG`, "
            "then give it: --sdk_container_image IMAGE"
        )
    checkpoint = open_checkpoint(options.checkpoint)
    weights = getattr(checkpoint, "weights", "int8")
    context = options.engine.context_of(checkpoint.config)
    slots = check_fits(profile, checkpoint.config, weights, context, options.engine.slots)
    workers = given.max_num_workers or given.num_workers or 1
    return Submission(
        profile=profile,
        arguments=complete(profile, arguments, bucket, workers),
        project=given.project,
        region=given.region,
        bucket=bucket,
        image=given.sdk_container_image,
        workers=workers,
        weights=weights,
        slots=slots,
    )


def complete(profile: Profile, arguments: Sequence[str], bucket: str, workers: int) -> list[str]:
    """The arguments with everything that the machine needs and the user has not set."""
    names = {argument.partition("=")[0] for argument in arguments}
    defaults = {
        "--temp_location": f"{bucket}/tmp",
        "--staging_location": f"{bucket}/staging",
        "--machine_type": profile.machine_type,
        "--disk_size_gb": str(profile.disk_gb),
        "--num_workers": "1",
        "--max_num_workers": str(workers),
        "--number_of_worker_harness_threads": str(HARNESS_THREADS),
        "--sdk_location": "container",
    }
    added = [f"{name}={value}" for name, value in defaults.items() if name not in names]
    if (setup := source_setup()) is not None and "--setup_file" not in names:
        # Workers then run the very code that submits; else that of the image.
        added.append(f"--setup_file={setup}")
    if not any("worker_accelerator" in argument for argument in arguments):
        added.append(f"--dataflow_service_options=worker_accelerator={profile.accelerator}")
    # One process owns the accelerators; Beam would start one a core.
    added.append("--experiments=no_use_multiple_sdk_containers")
    return [*arguments, *added]


def source_setup() -> str | None:
    """The ``setup.py`` of the checkout that this code runs from, if it does."""
    path = pathlib.Path(__file__).parents[2] / "setup.py"
    return str(path) if path.is_file() else None


def check_fits(
    profile: Profile, config: Grok1Config, weights: str, max_context: int, slots: int | None
) -> int:
    """Sequences of the longest kind that the machine holds at once beside the weights.

    Raises:
      SetupError: the weights do not fit, or too few sequences, or fewer than were asked for.
    """
    machine = profile.machine
    each = weight_bytes(config, weights) / machine.devices
    free = machine.limit_bytes - _RESERVE - each
    sequence = max_context * cache_bytes_per_token(config) / machine.devices
    most = int(free / sequence) if free > 0 else 0
    wanted = slots or _MIN_SLOTS
    if most >= wanted:
        return slots or most
    figures = (
        f"of {machine.limit_bytes / _GIB:.1f} GiB a device, {weights} weights take "
        f"{each / _GIB:.1f} and {wanted} sequences of {max_context} tokens "
        f"{wanted * sequence / _GIB:.1f}"
    )
    remedy = "take a larger machine"
    if weights == "int8" and free < wanted * sequence:
        remedy += ", or convert the checkpoint: grok1 convert --weights int4"
    if most:
        remedy += f", or fewer slots or a shorter context: --slots {most}, --max-context"
    raise SetupError(f"--machine {machine.name}: the model does not fit: {figures}; {remedy}")


def _check_remote(options: JobOptions) -> None:
    named = [
        ("--checkpoint", options.checkpoint),
        *(("--input", url) for url in options.input),
        ("--output", options.output),
        *([("--tokenizer", options.tokenizer)] if options.tokenizer else []),
        *([("--few-shot", options.prompting.few_shot)] if options.prompting.few_shot else []),
    ]
    for flag, url in named:
        if files.local_path(url) is not None or url.startswith("memory://"):
            raise SetupError(
                f"{flag} {files.redact(url)} is on this machine, where Dataflow's workers cannot "
                "reach it; copy it to a bucket and give its gs:// URL"
            )


def _check_bucket(bucket: str, region: str, ask: bool) -> None:
    if not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/.*)?", bucket):
        raise SetupError(f"--bucket {bucket} is no gs://BUCKET/FOLDER")
    name = bucket.removeprefix("gs://").partition("/")[0]
    if ask and not files.exists(f"gs://{name}"):
        raise SetupError(
            f"bucket gs://{name} does not exist; make it: "
            f"gcloud storage buckets create gs://{name} --location={region}"
        )


def _regions(profile: Profile) -> str:
    return ", ".join(dict.fromkeys(zone.rpartition("-")[0] for zone in profile.zones))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("runner", "project", "region", "temp_location", "sdk_container_image"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--template_location")
    parser.add_argument("--dry_run", nargs="?", const="True")
    for name in ("num_workers", "max_num_workers"):
        parser.add_argument(f"--{name}", type=int)
    return parser
