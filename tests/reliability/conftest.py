import os
import pathlib
import uuid

import pytest


@pytest.fixture(params=["local", "memory", "s3", "gcs"])
def store(request: pytest.FixtureRequest, tmp_path) -> str:
    """The URL of an empty folder on each kind of store in turn."""
    if request.param == "local":
        return str(tmp_path / "folder")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    return f"{request.getfixturevalue(request.param)}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """Of the processes: they find the source, and compile what the first has compiled no more."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(tmp_path_factory.mktemp("compiled"))
    return {
        **os.environ,
        "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
