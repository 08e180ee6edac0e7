"""A stand-in for the Dataflow service: takes a job, and runs what was staged for its workers.

What Google's machines would do is done by a process of its own: it reads the staged pipeline from
the bucket, installs the staged packages into an environment that does not know the checkout, and
runs the pipeline there.
"""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sysconfig
import threading
import venv
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fsspec

_WORKER = """
import pathlib, sys
import fsspec
from apache_beam.internal.gcp import auth
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

auth._Credentials._credentials_init = True
proto = beam_runner_api_pb2.Pipeline.FromString(pathlib.Path(sys.argv[1]).read_bytes())
for environment in proto.components.environments.values():
    # The image is not here; its packages are, in this very interpreter.
    environment.urn = "beam:env:embedded_python:v1"
    environment.payload = b""
    del environment.dependencies[:]
import model, pipeline
print("code from", pathlib.Path(pipeline.__file__).parent.parent)
result = FnApiRunner().run_via_runner_api(proto, PipelineOptions([]))
result.wait_until_finish()
print("state", result.state)
"""


class Service:
    """The jobs that were sent, and how their runs went.

    Attributes:
      jobs: as the client sent them.
      log: what the workers printed.
      state: of the job.
      asked: how often a client looked at the job.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.log = ""
        self.state = "JOB_STATE_RUNNING"
        self.asked = 0
        self._folder = folder

    def take(self, job: dict[str, Any]) -> dict[str, Any]:
        """Accepts a job and starts its workers."""
        self.jobs.append(job)
        threading.Thread(target=self._work, daemon=True).start()
        return self.view()

    def view(self) -> dict[str, Any]:
        """The job as the client sees it."""
        return {
            "id": "2026-01-01_00_00_00-1",
            "projectId": "some-project",
            "name": self.jobs[0].get("name", "job"),
            "location": "us-central1",
            "currentState": self.state,
        }

    def _work(self) -> None:
        try:
            self.log = self._run()
            done = "state DONE" in self.log
            self.state = "JOB_STATE_DONE" if done else "JOB_STATE_FAILED"
        except Exception as error:  # the client has to hear of it, or it waits for ever
            self.log += f"\n{error!r}"
            self.state = "JOB_STATE_FAILED"

    def _run(self) -> str:
        staged = self._download()
        python = self.environment(staged)
        script = self._folder / "worker.py"
        script.write_text(_WORKER)
        (graph,) = (path for path in staged if path.name == "pipeline.pb")
        ran = subprocess.run(
            [python, script, graph],
            cwd=self._folder,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        return ran.stdout + ran.stderr[-4000:]

    def _download(self) -> list[pathlib.Path]:
        options = self.jobs[0]["environment"]["sdkPipelineOptions"]["options"]
        fs = fsspec.filesystem("gs")
        fs.invalidate_cache()
        staged = []
        for path in fs.find(options["staging_location"]):
            target = self._folder / "staged" / path.rpartition("/")[2]
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(fs.cat_file(path))
            staged.append(target)
        return staged

    def environment(self, staged: list[pathlib.Path]) -> pathlib.Path:
        """An interpreter with the lock's packages, and of this project only what was staged."""
        place = self._folder / "environment"
        venv.create(place, with_pip=True)
        site = next(place.glob("lib/python*/site-packages"))
        # Path lines are not searched for more of their kind: an editable install stays unseen.
        (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        python = place / "bin" / "python"
        # The one that venv brings is older than the lock's, and would hide it.
        subprocess.run(
            [python, "-m", "pip", "uninstall", "--yes", "setuptools"],
            check=True,
            capture_output=True,
        )
        packages = [str(path) for path in staged if path.name.endswith((".tar.gz", ".whl"))]
        # The path above shows an installed project of this name and version, which is not meant.
        options = ["--ignore-installed", "--no-deps", "--no-build-isolation"]
        subprocess.run(
            [python, "-m", "pip", "install", *options, *packages],
            env=clean_environment(),
            check=True,
            capture_output=True,
        )
        return python


def clean_environment() -> dict[str, str]:
    """The variables of this process, but for the one that may lead to the checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@contextlib.contextmanager
def running(folder: pathlib.Path) -> Iterator[tuple[Service, str]]:
    """The service at a URL on this machine."""
    service = Service(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer(service.take(json.loads(body)))

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if re.search(r"/jobs/[^/]+$", path):
                service.asked += 1
                self._answer(service.view())
            else:  # messages and metrics: none
                self._answer({})

        def _answer(self, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service, f"http://localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
