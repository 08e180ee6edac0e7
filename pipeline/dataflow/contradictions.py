"""Options of the user's own that contradict the machine, the region, or each other. No Beam."""

import re
from argparse import Namespace

from pipeline.dataflow.checks import is_gcs_folder
from pipeline.dataflow.profiles import Profile
from schemas.error import SetupError

_ACCELERATOR = re.compile(r"worker_accelerator=(?P<asked>\S+)")

_MANY_PROCESSES = "use_multiple_sdk_containers"


def check_contradictions(profile: Profile, given: Namespace) -> None:
    """Refuses what the machine's profile cannot live with.

    Raises:
      SetupError: one contradicts the profile, or another.
    """
    _check_machine(profile, given)
    _check_processes(given)
    _check_places(given)
    if given.num_workers and given.max_num_workers and given.num_workers > given.max_num_workers:
        raise SetupError(
            f"--num_workers={given.num_workers} exceeds --max_num_workers="
            f"{given.max_num_workers}; raise the latter"
        )


def accelerators(given: Namespace) -> list[str]:
    """What the user himself asks for as accelerator."""
    told = [*given.dataflow_service_options, *given.experiments]
    return [found["asked"] for option in told if (found := _ACCELERATOR.match(option))]


def _check_machine(profile: Profile, given: Namespace) -> None:
    name = profile.machine.name
    if given.machine_type not in (None, profile.machine_type):
        raise SetupError(
            f"--machine {name} has hosts of type {profile.machine_type}, and --machine_type="
            f"{given.machine_type} is asked for; leave that out, or name the machine that it "
            "belongs to"
        )
    for asked in accelerators(given):
        if _kind(asked) != _kind(profile.accelerator):
            raise SetupError(
                f"--machine {name} has worker_accelerator={profile.accelerator}, and {asked} is "
                "asked for; leave that out, or name the machine that it belongs to"
            )


def _check_processes(given: Namespace) -> None:
    if _MANY_PROCESSES in given.experiments:
        asked = f"--experiments={_MANY_PROCESSES} starts a process a core"
    elif given.sdk_worker_parallelism not in (None, "1"):
        parallel = given.sdk_worker_parallelism
        asked = f"--sdk_worker_parallelism={parallel} starts more or fewer processes than one"
    else:
        return
    raise SetupError(f"{asked}, but only one process can own a host's accelerators; leave it out")


def _check_places(given: Namespace) -> None:
    for flag in ("temp_location", "staging_location"):
        url = getattr(given, flag)
        if url is not None and not is_gcs_folder(url):
            raise SetupError(
                f"--{flag}={url} is no gs://BUCKET/FOLDER, which workers could reach; leave it "
                "out, as --bucket has a folder for it, or give one"
            )
    for flag in ("worker_zone", "zone", "worker_region"):
        place = getattr(given, flag)
        region = place if flag == "worker_region" or place is None else place.rpartition("-")[0]
        if region not in (None, given.region):
            raise SetupError(
                f"--{flag}={place} is not in --region={given.region}; leave it out, or give the "
                f"region that it belongs to: --region={region or 'REGION'}"
            )


def _kind(accelerator: str) -> set[str]:
    """Type and number or shape: a driver's version may differ."""
    parts = accelerator.split(";")
    return {part for part in parts if part.partition(":")[0] in ("type", "count", "topology")}
