"""``python -m pipeline.dataflow.image MACHINE``: the arguments that build a machine's image."""

import sys

from pipeline.dataflow.profiles import Profile, find_profile
from schemas.error import SetupError


def build_arguments(profile: Profile) -> list[str]:
    """``--build-arg`` options for ``deploy/Dockerfile``."""
    differ = ("JAX_PLATFORMS", "TPU_HOST_BOUNDS", "TPU_CHIPS_PER_HOST_BOUNDS")
    values = {"ACCELERATOR": profile.image}
    values |= {name: profile.environment[name] for name in differ if name in profile.environment}
    return [f"--build-arg={name}={value}" for name, value in values.items()]


if __name__ == "__main__":
    try:
        print(*build_arguments(find_profile(" ".join(sys.argv[1:]))))
    except SetupError as error:
        sys.exit(f"grok1: {error}")
