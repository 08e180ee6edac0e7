"""What a registry and Compute Engine say of a job's image and reservations, told before it is sent.

Both are servers here that answer as theirs do.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.cli import OK, SETUP, main
from pipeline.dataflow import cloud

RESERVED = "automatically_use_created_reservation"


def reservation(machine_type: str, count: int, used: int = 0) -> dict:
    """As Compute Engine describes one: numbers are strings."""
    specific = {"count": str(count), "inUseCount": str(used)}
    return {
        "specificReservation": {**specific, "instanceProperties": {"machineType": machine_type}}
    }


PAGES = {
    "": {
        "items": {
            "zones/us-central1-a": {"reservations": [reservation("a3-highgpu-8g", 4, used=1)]},
            "zones/us-east5-a": {"reservations": [reservation("a3-highgpu-8g", 50)]},
            "zones/us-central1-b": {"warning": {"code": "NO_RESULTS_ON_PAGE"}},
        },
        "nextPageToken": "more",
    },
    "more": {
        "items": {
            "zones/us-central1-c": {
                "reservations": [reservation("n2-standard-8", 9), reservation("a3-highgpu-8g", 2)]
            }
        }
    },
}


@contextlib.contextmanager
def served() -> Iterator[tuple[str, list[str]]]:
    """A server's address, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            there = self.path == "/v2/some-project/repo/grok1/manifests/1"
            there = there and "oci.image.index" in self.headers["Accept"]
            closed = "closed" in self.path
            self.send_response(403 if closed else 200 if there else 404)
            self.end_headers()

        def do_GET(self) -> None:
            asked.append(self.path)
            page = self.path.partition("pageToken=")[2]
            self.send_response(200 if "/projects/some-project/" in self.path else 404)
            self.end_headers()
            self.wfile.write(json.dumps(PAGES[page]).encode())

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"localhost:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_image_that_its_registry_does_not_have_is_refused(world, capsys):
    with served() as (host, _):
        there = f"{host}/some-project/repo/grok1:1"
        assert main(world.command("e", explain=True, sdk_container_image=there)) == OK
        capsys.readouterr()
        gone = f"{host}/some-project/repo/grok1:2"
        assert main(world.command("e", sdk_container_image=gone)) == SETUP
    error = capsys.readouterr().err
    assert f"there is no image {gone}, for which every worker would wait" in error
    assert f"make image MACHINE=h100x8 IMAGE={gone}" in error


def test_a_registry_that_does_not_say_is_no_obstacle(world):
    with served() as (host, asked):
        with pytest.raises(cloud.Unknown, match="403"):
            cloud.image_exists(f"{host}/closed@sha256:12")
        assert asked == ["/v2/closed/manifests/sha256:12"]
        assert main(world.command("e", explain=True, sdk_container_image=f"{host}/closed")) == OK
    with pytest.raises(cloud.Unknown):
        cloud.image_exists("localhost:9/grok1:1")
    with pytest.raises(cloud.Unknown, match="none of Google's"):
        cloud.image_exists("docker.io/somebody/grok1:1")
    with pytest.raises(cloud.Unknown, match="not to be used"):
        cloud.image_exists("us-docker.pkg.dev/p/r/grok1:1", identified=False)
    with pytest.raises(cloud.Unknown, match="credentials"):
        cloud.image_exists("us-docker.pkg.dev/p/r/grok1:1")


def test_reservations_of_the_machine_in_the_region_are_counted(world, capsys, monkeypatch):
    with served() as (host, asked):
        monkeypatch.setenv(cloud._COMPUTE, f"http://{host}/compute/v1/")
        assert cloud.reserved_hosts("some-project", "us-central1", "a3-highgpu-8g") == 5
        assert len(asked) == 2
        with pytest.raises(cloud.Unknown, match="no reservations can be seen in project other"):
            cloud.reserved_hosts("other", "us-central1", "a3-highgpu-8g")
        command = world.command("e", explain=True, dataflow_service_options=RESERVED)
        assert main([*command, "--max_num_workers=5"]) == OK
        assert "reserved" not in capsys.readouterr().err
        assert main([*command, "--max_num_workers=6"]) == OK
    assert (
        "of up to 6 workers, 5 have a reserved a3-highgpu-8g that is free in us-central1; the "
        "others wait for one on demand, or reserve: gcloud compute reservations create grok1 "
        "--zone=us-central1-a --vm-count=6 --machine-type=a3-highgpu-8g"
    ) in capsys.readouterr().err
