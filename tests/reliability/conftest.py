import uuid
from collections.abc import Iterator

import fsspec
import pytest

from tests import emulators


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of a bucket on an S3 server; the environment points at it from now on."""
    with emulators.s3_server() as environment, emulators.pointed_at(environment):
        fsspec.filesystem("s3").mkdir("prompts-bucket")
        yield "s3://prompts-bucket"


@pytest.fixture(scope="session")
def gcs() -> Iterator[str]:
    """The URL of a bucket on a Google Cloud Storage server."""
    with emulators.gcs_server() as environment, emulators.pointed_at(environment):
        fsspec.filesystem("gs").mkdir("prompts-bucket")
        yield "gs://prompts-bucket"


@pytest.fixture(params=["local", "memory", "s3", "gcs"])
def store(request: pytest.FixtureRequest, tmp_path) -> str:
    """The URL of an empty folder on each kind of store in turn."""
    if request.param == "local":
        return str(tmp_path / "folder")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    return f"{request.getfixturevalue(request.param)}/{uuid.uuid4().hex}"
