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
