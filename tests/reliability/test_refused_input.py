"""Input that its store refuses: a fault of that file alone, and no reason to stop."""

import functools
import http.server
import pathlib
import threading
from typing import Any, ClassVar

import pytest

from pipeline.prepare import prepare_job
from tests import jobs
from tests.reliability import runs

GOOD = 40


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """An input folder with one good file."""
    runs.write(tmp_path / "in" / "m.parquet", runs.prompts(GOOD))
    return tmp_path / "in"


class _Guard(http.server.SimpleHTTPRequestHandler):
    """Refuses what is called ``closed``, as a store does; fails at ``broken``, has all else."""

    protocol_version = "HTTP/1.1"
    answers: ClassVar = {"closed": 403, "locked": 401, "broken": 503}

    def send_head(self) -> Any:
        for name, status in self.answers.items():
            if name in self.path:
                self.send_error(status)
                return None
        return super().send_head()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path):
    """URL of a server of files."""
    handler = functools.partial(_Guard, directory=str(tmp_path / "in"))
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://localhost:{found.server_port}"
        found.shutdown()


@pytest.mark.parametrize(("name", "status"), [("closed", 403), ("locked", 401)])
def test_a_file_that_its_store_refuses(name, status, server, folder, tmp_path, capsys):
    output, inputs = str(tmp_path / "out"), [f"{server}/{name}.parquet", str(folder)]
    assert runs.generate(inputs, output) == 3
    manifest = runs.manifest(output)
    assert (manifest["succeeded"], manifest["files_errored"]) == (GOOD, 1)
    [error] = manifest["file_errors"]
    assert (error["path"], error["error_code"]) == (f"{name}.parquet", "input_unreadable")
    assert (
        f"/{name}.parquet may not be read: its server answers {status} ("
        in (error["error_message"])
    )
    assert runs.generate(inputs, str(tmp_path / "strict"), "--strict") == 2
    assert not (tmp_path / "strict").exists()
    assert f"its server answers {status}; " in capsys.readouterr().err
    assert runs.generate(inputs[0], str(tmp_path / "alone")) == 2
    assert "may not be read" in capsys.readouterr().err


def test_a_file_that_a_server_does_not_have_or_does_not_give(server, folder, tmp_path, capsys):
    """Nobody knows whether there is one: a wrong name, or an hour's outage, should stop the job."""
    told = {"absent": "no input file matches", "broken": "cannot list"}
    for name, sentence in told.items():
        inputs = [f"{server}/{name}.parquet", str(folder)]
        assert runs.generate(inputs, str(tmp_path / "out")) == 2
        assert f"{sentence} {server}/{name}.parquet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (401, "input_unreadable", "may not be read: its server answers 401"),
        (403, "input_unreadable", "may not be read: its server answers 403"),
        (404, "input_changed", "is gone"),
    ],
)
def test_a_file_that_is_refused_once_it_is_planned(
    status, code, sentence, server, folder, tmp_path, monkeypatch
):
    job = prepare_job(runs.options(f"{server}/m.parquet", str(tmp_path / "out")))
    monkeypatch.setitem(_Guard.answers, "m.parquet", status)
    read = jobs.prompts_of(job)
    errors = [error for questions in read for error in questions.errors.values()]
    assert len(errors) == GOOD
    assert {error.code for error in errors} == {code}
    assert all(error.message.endswith(f"/m.parquet {sentence}") for error in errors)


def test_an_outage_is_no_fault_of_the_file(server, folder, tmp_path, monkeypatch):
    job = prepare_job(runs.options(f"{server}/m.parquet", str(tmp_path / "out")))
    monkeypatch.setitem(_Guard.answers, "m.parquet", 503)
    with pytest.raises(Exception, match="503"):
        jobs.prompts_of(job)
