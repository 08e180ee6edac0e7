"""Runners that send work to other processes, and those processes: nothing here is simulated.

Beam's job servers are fetched by ``make flink`` and ``make prism``; tests skip where they are not.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FLINK = ROOT / "build" / "flink"
PRISM = ROOT / "build" / "prism" / "prism"

START_SECONDS = 300.0
"""For a Java machine, or Python with JAX, on two cores that others keep busy."""

_JOB_SERVER = "org.apache.beam.runners.flink.FlinkJobServerDriver"

_OPENED = ("java.lang", "java.util", "java.nio", "java.util.concurrent")
"""Packages of Java's own that Flink 1.19 reflects on."""


class Pool:
    """Beam's worker pool: starts a process for each worker that a runner asks for."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: pathlib.Path) -> None:
        self.address = f"localhost:{port}"
        self._pid = process.pid
        self._log = log

    def started(self) -> int:
        """How many workers a runner has asked for so far."""
        return self._log.read_text().count("Starting worker with command")

    def workers(self) -> list[int]:
        """Ids of the processes that live, the oldest first."""
        found = []
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, parent, *others = stat.read_text().rpartition(")")[2].split()
                if int(parent) == self._pid and state != "Z":
                    found.append((int(others[17]), int(stat.parent.name)))
        return [pid for _, pid in sorted(found)]

    def lose_one(self, sign: int) -> float:
        """Ends the oldest worker, as a lost machine would or as a preempted one is told to.

        Returns:
          Seconds until it was gone.
        """
        worker, told = self.workers()[0], time.monotonic()
        os.kill(worker, sign)
        while worker in self.workers():
            time.sleep(0.02)
        return time.monotonic() - told


@contextlib.contextmanager
def pool(environment: Mapping[str, str], log: pathlib.Path) -> Iterator[Pool]:
    """A pool whose workers are processes of this Python."""
    port = _free_port()
    # It calls them by the name alone.
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"]
    with _server(
        [*command, f"--service_port={port}"], port, log, {**environment, "PATH": path}
    ) as process:
        found = Pool(process, port, log)
        try:
            yield found
        finally:
            for worker in found.workers():
                os.kill(worker, signal.SIGKILL)


@contextlib.contextmanager
def flink(folder: pathlib.Path) -> Iterator[str]:
    """A job server with a cluster of its own; yields its address."""
    if not list(FLINK.glob("beam-runners-flink-*.jar")) or not shutil.which("java"):
        pytest.skip("no job server for Flink here; make flink fetches it")
    port = _free_port()
    opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED]
    options = {
        "job-port": port,
        "artifact-port": _free_port(),
        "expansion-port": -1,
        "artifacts-dir": folder / "artifacts",
        "flink-master": "[local]",
        "flink-conf-dir": ROOT / "deploy" / "flink",
    }
    command = [
        *("java", "-Xmx1g", *opened, "-cp", f"{FLINK}/*", _JOB_SERVER),
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    with _server(command, port, folder / "flink.log", os.environ):
        yield f"localhost:{port}"


@contextlib.contextmanager
def prism(folder: pathlib.Path) -> Iterator[str]:
    """Beam's own portable runner; yields its address."""
    if not PRISM.exists():
        pytest.skip("no Prism here; make prism builds it")
    port = _free_port()
    command = [str(PRISM), f"--job_port={port}", "--serve_http=false"]
    with _server(command, port, folder / "prism.log", os.environ):
        yield f"localhost:{port}"


@contextlib.contextmanager
def _server(
    command: list[str], port: int, log: pathlib.Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} did not start: {log.read_text()[-2000:]}")
                time.sleep(0.1)
            yield process
        finally:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
        return True
    return False


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
