"""What Dataflow must be told to give its workers a machine's accelerators: one table. No Beam."""

import dataclasses
from collections.abc import Mapping

from model.machines import MACHINES, MachineProfile
from schemas.error import SetupError

IMAGE_PYTHON = (3, 11)
"""Of ``deploy/Dockerfile``'s image and of its lock files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """A machine as Dataflow offers it.

    Attributes:
      machine: the machine itself.
      machine_type: Compute Engine's name of the host.
      accelerator: value of the service option ``worker_accelerator``.
      zones: where it has been offered; a hint for messages, not a list to rely on.
      disk_gb: of a worker; on GPU hosts weights may be kept there.
      environment: variables that the worker's image must set. ``JAX_PLATFORMS`` makes a missing
        accelerator or driver an error, where JAX would else go on with the host's processors.
    """

    machine: MachineProfile
    machine_type: str
    accelerator: str
    zones: tuple[str, ...]
    disk_gb: int
    environment: Mapping[str, str]

    @property
    def image(self) -> str:
        """The kind of worker image: ``tpu`` or ``gpu``."""
        return self.machine.platform

    @property
    def regions(self) -> list[str]:
        """Those of the zones, each once."""
        return list(dict.fromkeys(zone.rpartition("-")[0] for zone in self.zones))


def _tpu(
    name: str, machine_type: str, kind: str, topology: str, chips: str, zones: tuple[str, ...]
) -> Profile:
    # One process opens all chips of the host, and asks no metadata server which ones.
    environment = {
        "JAX_PLATFORMS": "tpu,cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_HOST_BOUNDS": "1,1,1",
        "TPU_CHIPS_PER_HOST_BOUNDS": chips,
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
    }
    return Profile(
        machine=MACHINES[name],
        machine_type=machine_type,
        accelerator=f"type:{kind};topology:{topology}",
        zones=zones,
        disk_gb=200,
        environment=environment,
    )


def _gpu(name: str, machine_type: str, kind: str, zones: tuple[str, ...]) -> Profile:
    return Profile(
        machine=MACHINES[name],
        machine_type=machine_type,
        # Without a version an A100 may get a driver that is too old for any CUDA of today.
        accelerator=f"type:{kind};count:8;install-nvidia-driver:5xx",
        zones=zones,
        disk_gb=1000,
        environment={
            "JAX_PLATFORMS": "cuda,cpu",
            # Where Dataflow puts the driver that it installs.
            "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64",
            "NVIDIA_VISIBLE_DEVICES": "all",
            "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        },
    )


PROFILES: dict[str, Profile] = {
    profile.machine.name: profile
    for profile in (
        _tpu(
            "v5p-4",
            "ct5p-hightpu-4t",
            "tpu-v5p-slice",
            "2x2x1",
            "2,2,1",
            ("us-east5-a", "us-central1-a", "europe-west4-b"),
        ),
        _tpu(
            "v6e-8",
            "ct6e-standard-8t",
            "tpu-v6e-slice",
            "2x4",
            "2,4,1",
            ("us-east5-b", "europe-west4-a", "us-east1-d"),
        ),
        _tpu(
            "v5e-8",
            "ct5lp-hightpu-8t",
            "tpu-v5-lite-podslice",
            "2x4",
            "2,4,1",
            ("us-west4-a", "us-east5-b", "europe-west4-b"),
        ),
        _gpu(
            "h100x8",
            "a3-highgpu-8g",
            "nvidia-h100-80gb",
            ("us-central1-a", "us-east4-a", "europe-west4-b"),
        ),
        _gpu(
            "a100x8",
            "a2-ultragpu-8g",
            "nvidia-a100-80gb",
            ("us-central1-a", "us-east4-c", "europe-west4-a"),
        ),
    )
}
"""By the machine's name. Dataflow does not list the H200."""


def find_profile(name: str) -> Profile:
    """The profile of a machine.

    Raises:
      SetupError: Dataflow has no such machine.
    """
    if name not in PROFILES:
        offered = ", ".join(PROFILES)
        known = (
            f"Dataflow does not offer {MACHINES[name].title}" if name in MACHINES else "not known"
        )
        raise SetupError(f"--machine {name}: {known}; one of {offered}")
    return PROFILES[name]
