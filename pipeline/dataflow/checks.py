"""What can be wrong with a job on Dataflow, each told before anything is claimed or sent."""

import contextlib
import importlib.util
import re
import sys
from argparse import Namespace

from model.checkpoint import files
from model.room import Question, room_for
from pipeline.dataflow import cloud
from pipeline.dataflow.profiles import IMAGE_PYTHON, Profile
from pipeline.options import JobOptions
from schemas.error import SetupError

_RESERVATION = "automatically_use_created_reservation"

_GCS_FOLDER = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/.*)?")


def check_client(from_checkout: bool) -> None:
    """Refuses a submission by an environment that cannot speak to Dataflow.

    Raises:
      SetupError: Google's client is not installed.
    """
    try:
        found = importlib.util.find_spec("google.cloud.dataflow") is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        command = (
            "make setup-dev"
            if from_checkout
            else f"{sys.executable} -m pip install 'apache-beam[gcp]>=2.77,<2.78' gcsfs"
        )
        raise SetupError(
            f"Dataflow needs Google's client, which is not installed here; run: {command}"
        )


def check_python(version: tuple[int, int] | None = None) -> None:
    """Refuses to submit by another Python than the workers'.

    Args:
      version: the submitting one's; by default the running one's.

    Raises:
      SetupError: it is another; what it sends could not be read.
    """
    major, minor = version or sys.version_info[:2]
    if (major, minor) != IMAGE_PYTHON:
        image = ".".join(map(str, IMAGE_PYTHON))
        raise SetupError(
            f"this is Python {major}.{minor} and the worker image has {image}, which could not "
            f"read what is sent; submit by {image}: "
            f"rm -r .venv && make setup-dev PYTHON=python{image}"
        )


def check_fits(profile: Profile, question: Question) -> int:
    """Sequences that the machine holds at once, by the arithmetic that ``grok1 fit`` verifies.

    Args:
      profile: the machine.
      question: the model; slots as they are asked for, or None.

    Returns:
      The slots that were asked for, or the most that fit.

    Raises:
      SetupError: they do not fit, or not even one sequence does.
    """
    room = room_for(question)
    most, wanted = room.max_slots, question.slots or profile.machine.devices
    if room.peak_bytes(wanted) <= room.limit_bytes:
        return question.slots or most
    remedies = ["take a larger machine"]
    if question.weights == "int8":
        remedies.append("convert the checkpoint: grok1 convert --weights int4")
    if question.kv_cache_dtype == "auto" and room.weights_bytes < room.limit_bytes:
        remedies.append("halve the cache: --kv-cache-dtype int8")
    if most:
        remedies.append(f"ask for fewer or shorter sequences: --slots {most}, --max-context N")
    raise SetupError(
        f"--machine {profile.machine.name}: the model does not fit: {room.told(wanted)}; "
        + ", or ".join(remedies)
    )


def check_remote(options: JobOptions) -> None:
    """Refuses paths that workers cannot reach.

    Raises:
      SetupError: one is on this machine.
    """
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
    cache = options.engine.compile_cache
    if cache not in (None, "none") and files.local_path(cache) is not None:
        raise SetupError(
            f"--compile-cache {cache} would be a folder of each worker's own, lost with it; give "
            "one in a bucket: --compile-cache gs://BUCKET/compiled, or leave it out"
        )


def is_gcs_folder(url: str) -> bool:
    """Whether a URL has the form of a bucket on Google Cloud Storage, or a folder in one."""
    return _GCS_FOLDER.fullmatch(url) is not None


def check_bucket(bucket: str, region: str, ask: bool) -> None:
    """Refuses a bucket that cannot be used for staging.

    Args:
      bucket: its URL.
      region: of the job, for the message.
      ask: whether to ask the store if it is there.

    Raises:
      SetupError: it is none, or does not exist.
    """
    if not is_gcs_folder(bucket):
        raise SetupError(f"--bucket {bucket} is no gs://BUCKET/FOLDER")
    name = bucket.removeprefix("gs://").partition("/")[0]
    if ask and not files.exists(f"gs://{name}"):
        raise SetupError(
            f"bucket gs://{name} does not exist; make it: "
            f"gcloud storage buckets create gs://{name} --location={region}"
        )


def check_image(image: str | None, machine: str, identified: bool) -> None:
    """Refuses a job without an image, or with one that its registry does not have.

    Args:
      image: as given.
      machine: for the message.
      identified: whether to use this machine's credentials to ask.

    Raises:
      SetupError: there is none.
    """
    if not image:
        raise SetupError(
            "Dataflow needs a worker image: build and push one with `make image "
            f"MACHINE={machine} IMAGE=REGION-docker.pkg.dev/PROJECT/REPO/grok1:TAG`, "
            "then give it: --sdk_container_image IMAGE"
        )
    with contextlib.suppress(cloud.Unknown):
        if not cloud.image_exists(image, identified):
            raise SetupError(
                f"there is no image {image}, for which every worker would wait; build and push it: "
                f"make image MACHINE={machine} IMAGE={image}"
            )


def region_advice(profile: Profile, region: str) -> str | None:
    """What to know of a region in which the machine was not seen; None if it was."""
    if region in profile.regions:
        return None
    return (
        f"--region {region} is none of those in which Dataflow's {profile.machine.title} was seen: "
        f"{', '.join(profile.regions)}"
    )


def reservation_advice(profile: Profile, given: Namespace, workers: int) -> str | None:
    """What to do about capacity; None if enough of it is known to be reserved, or nobody can tell.

    Args:
      profile: the machine.
      given: of Beam's options.
      workers: most hosts at once.
    """
    machine_type = given.machine_type or profile.machine_type
    reserve = (
        f"gcloud compute reservations create grok1 --zone={profile.zones[0]} --vm-count={workers} "
        f"--machine-type={machine_type} --project={given.project}"
    )
    if not any(_RESERVATION in option for option in given.dataflow_service_options):
        return (
            f"no reservation is named, and {profile.machine.title} is seldom free on demand; "
            f"reserve: {reserve}, then add --dataflow_service_options={_RESERVATION}"
        )
    identified = not given.no_auth
    try:
        free = cloud.reserved_hosts(given.project, given.region, machine_type, identified)
    except cloud.Unknown:
        return None
    if free >= workers:
        return None
    return (
        f"of up to {workers} workers, {free} have a reserved {machine_type} that is free in "
        f"{given.region}; the others wait for one on demand, or reserve: {reserve}"
    )


def spread_advice(spans: int, workers: int, threads: int, rows: int) -> str | None:
    """What to do about workers that may have nothing to do; None if each will have some.

    Args:
      spans: pieces that the work comes in.
      workers: most hosts at once.
      threads: pieces that a host takes at once.
      rows: of all pieces.
    """
    busy = -(-spans // threads)
    if not 0 < busy < workers:
        return None
    chunk = rows // (threads * workers)
    more = f", or cut it finer: --chunk-rows {chunk}" if chunk >= 1 else ""
    return (
        f"the work comes in {spans} pieces, of which a worker takes {threads} at once, so that "
        f"{workers - busy} of {workers} workers may have none; give --max_num_workers={busy}{more}"
    )
