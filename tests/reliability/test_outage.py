"""A store that fails for a while says nothing of its files; one that refuses or loses them does."""

import dataclasses
import errno
import http.server
import re
import threading
from typing import Any

import pytest

from pipeline.pages import is_corrupt
from pipeline.prepare import prepare_job
from schemas.error import SetupError
from tests import jobs
from tests.reliability import runs

ROWS = 20
DROPPED = 0
"""In the place of a status: the connection is closed before all that was promised is sent."""


class _Store(http.server.ThreadingHTTPServer):
    """Serves ranges of two files; the n-th GET of ``b.parquet``, or of all from there, fails."""

    def __init__(self, folder: Any) -> None:
        super().__init__(("localhost", 0), _Handler)
        self.files = {f"/{n}.parquet": (folder / f"{n}.parquet").read_bytes() for n in "ab"}
        self.urls = [f"http://localhost:{self.server_port}{path}" for path in self.files]
        self.fail(range(0), 200)

    def fail(self, which: range, status: int) -> None:
        self.gets, self.which, self.status = 0, which, status

    def handle_error(self, *_: Any) -> None:
        pass


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Store

    def do_HEAD(self) -> None:
        self._answer(b"", 200, len(self.server.files[self.path]))

    def do_GET(self) -> None:
        data = self.server.files[self.path]
        if self.path == "/b.parquet":
            self.server.gets += 1
            if self.server.gets in self.server.which:
                dropped = self.server.status == DROPPED
                self._answer(b"", 206 if dropped else self.server.status, 9 if dropped else 0)
                return
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert found
        part = data[int(found[1]) : int(found[2]) + 1]
        self._answer(part, 206, len(part))

    def _answer(self, data: bytes, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def store(tmp_path):
    for first, name in enumerate("ab"):
        runs.write(tmp_path / "in" / f"{name}.parquet", runs.prompts(ROWS, first * ROWS))
    with _Store(tmp_path / "in") as store:
        threading.Thread(target=store.serve_forever, daemon=True).start()
        yield store
        store.shutdown()


def _options(store, tmp_path):
    return dataclasses.replace(
        runs.options(store.urls[0], str(tmp_path / "out")), input=tuple(store.urls)
    )


@pytest.mark.parametrize("status", [503, 429, DROPPED])
def test_a_file_is_not_left_out_for_an_outage(status, store, tmp_path):
    store.fail(range(1, 2), status)
    with pytest.raises(SetupError, match=r"cannot read .*/b\.parquet: .* or start again if"):
        prepare_job(_options(store, tmp_path))
    assert not (tmp_path / "out").exists()
    assert prepare_job(_options(store, tmp_path)).rows == 2 * ROWS


@pytest.mark.parametrize("status", [503, 403])
def test_a_run_is_not_to_be_discarded_for_what_cannot_be_read_now(status, store, tmp_path):
    job = prepare_job(_options(store, tmp_path))
    store.fail(range(1, 2), status)
    with pytest.raises(SetupError, match="start again") as told:
        prepare_job(_options(store, tmp_path))
    assert "--overwrite" not in str(told.value)
    assert "changed" not in str(told.value)
    assert prepare_job(_options(store, tmp_path)).run_id == job.run_id


@pytest.mark.parametrize("status", [503, DROPPED])
@pytest.mark.parametrize("nth", [1, 2], ids=["open", "pages"])
def test_rows_are_not_given_up_for_an_outage(nth, status, store, tmp_path):
    job = prepare_job(_options(store, tmp_path))
    store.fail(range(nth, nth + 1), status)
    with pytest.raises(Exception, match="503" if status else "payload"):
        jobs.prompts_of(job)
    assert not any(chunk.errors for chunk in jobs.prompts_of(job))


def test_nor_while_it_is_found_out_whether_a_file_has_changed(store, tmp_path):
    job = prepare_job(_options(store, tmp_path))
    _Handler.send_header, send = _another_version, _Handler.send_header
    try:
        store.fail(range(1, 2), 503)
        with pytest.raises(SetupError, match="start again if"):
            jobs.prompts_of(job)
        assert not any(chunk.errors for chunk in jobs.prompts_of(job))
    finally:
        _Handler.send_header = send


def _another_version(self: _Handler, name: str, value: str) -> None:
    value = '"2"' if name == "ETag" else value
    http.server.BaseHTTPRequestHandler.send_header(self, name, value)


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (401, "input_unreadable", "may not be read: its server answers 401"),
        (403, "input_unreadable", "may not be read: its server answers 403"),
        (404, "input_changed", "is gone"),
        (410, "input_changed", "is gone"),
    ],
)
@pytest.mark.parametrize("nth", [2, 3], ids=["open", "pages"])
def test_a_file_that_is_refused_or_lost_while_it_is_read(nth, status, code, told, store, tmp_path):
    store.fail(range(nth, 1000), status)
    output = str(tmp_path / "out")
    assert runs.generate(store.urls, output) == 3
    manifest = runs.manifest(output)
    assert (manifest["succeeded"], manifest["errors"]) == (ROWS, {code: ROWS})
    [error] = manifest["file_errors"]
    assert (error["path"], error["rows_errored"]) == ("b.parquet", ROWS)
    assert f"/b.parquet {told}" in error["error_message"]


def test_what_a_client_does_not_know_is_no_corruption():
    """S3's tells it by the number of a disk's fault; Google's tells a refusal by none at all."""
    assert is_corrupt(OSError(errno.EIO, "Input/output error"))
    unknown = OSError(errno.EIO, "We encountered an internal error")
    unknown.__cause__ = Exception("InternalError")
    assert not is_corrupt(unknown)
    assert not is_corrupt(OSError("Forbidden: bucket/a.parquet"))
    assert not is_corrupt(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
