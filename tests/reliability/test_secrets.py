"""Secrets in URLs and options: nothing that a run writes, prints or logs holds them."""

import functools
import http.server
import io
import json
import logging
import pathlib
import re
import threading
import uuid
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import cli
from tests.reliability import runs

SECRET, TOKEN, OPTION = (f"{word}{uuid.uuid4().hex[:8]}" for word in ("hunter", "sig", "key"))


@pytest.fixture
def bucket():
    """URLs of a place in memory that name a user, a password and a signature."""
    root = f"memory://me:{SECRET}@bucket-{uuid.uuid4().hex}"
    fs, path = fsspec.core.url_to_fs(root)
    checkpoint = pathlib.Path(runs.CHECKPOINT)
    for file in [checkpoint / "config.json", *(checkpoint / "ckpt-0").iterdir()]:
        fs.pipe_file(f"{path}/ckpt/{file.relative_to(checkpoint)}", file.read_bytes())
    columns = runs.prompts(24)
    columns["prompt_token_ids"][5] = [10**6]
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    fs.pipe_file(f"{path}/in/it's.parquet", sink.getvalue())
    fs.pipe_file(f"{path}/in/corrupt.parquet", b"PAR1 and no more")
    yield root
    fs.rm(path, recursive=True)


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves a file to those who know the signature, by ranges as object stores do."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        file = pathlib.Path(self.directory, path.strip("/"))
        if query != f"token={TOKEN}" or not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        size = len(data)
        self.send_response_only(206 if "Range" in self.headers else 200)
        if found := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            start = int(found[1]) if found[1] else size - int(found[2])
            stop = min(int(found[2]) + 1 if found[1] and found[2] else size, size)
            data = data[start:stop]
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def signed(tmp_path):
    """A signed URL of an input file."""
    columns = runs.prompts(24)
    columns["prompt_token_ids"][5] = [10**6]
    runs.write(tmp_path / "it's.parquet", columns)
    handler = functools.partial(_Ranges, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/it's.parquet?token={TOKEN}"
        server.shutdown()


def _texts(value: Any) -> str:
    return json.dumps(value, default=str)


def _written(url: str) -> dict[str, str]:
    """Every file below a URL as text, Parquet files as what they hold and say of themselves."""
    fs, path = fsspec.core.url_to_fs(url)
    found = {}
    for name in fs.find(path):
        data = fs.cat_file(name)
        text = data.decode("latin-1")
        if name.endswith(".parquet"):
            file = pq.ParquetFile(pa.BufferReader(data))
            text += _texts(file.read().to_pylist()) + _texts(file.schema_arrow.metadata)
        found[name.removeprefix(path)] = text
    return found


def test_none_is_told(bucket, signed, caplog, capfd):
    def command(*words: str) -> int:
        with caplog.at_level(logging.INFO):
            return cli.main([*words, "--debug"])

    def generate(source: str, *more: str) -> int:
        given = ("--checkpoint", f"{bucket}/ckpt", "--input", source)
        option = f"--s3_secret_access_key={OPTION}"
        settings = [word for word in runs.SETTINGS if word != "--no-report"]
        return command("generate", *given, "--output", output, *settings, option, *more)

    output = f"{bucket}/out"
    assert generate(f"{bucket}/in/*.parquet") == 3
    before = {row["row_uid"] for row in runs.rows(output)}
    written = _written(output)
    assert {"/_SUCCESS", "/_job.json", "/_manifest.json", "/_report.html"} <= set(written)
    assert {"/_errors/files.parquet", "/_plan/files.parquet"} <= set(written)
    assert len([name for name in written if name.startswith("/part-")]) == 2
    # Each of these names its URLs: what exists already, what lacks, what is wrong.
    assert command("inspect", output) == 3
    assert command("status", output) == 3
    assert command("report", output) == 0
    assert command("retry", output) == 2
    assert generate(f"{bucket}/in/*.parquet", "--max-tokens", "9") == 2
    assert generate(f"{bucket}/nothing/*.parquet", "--overwrite") == 2
    assert command("inspect", f"{bucket}/nothing") == 2
    assert command("export", output, "--to", f"{bucket}/out.jsonl", "--format", "jsonl") == 0
    assert generate(signed.replace(TOKEN, "wrong"), "--overwrite") == 2
    assert generate(signed, "--overwrite") == 3
    # A signature lasts an hour; the rows are the same under the next one.
    assert {row["row_uid"] for row in runs.rows(output)} <= before
    written |= {f"signed{name}": text for name, text in _written(output).items()}
    out, err = capfd.readouterr()
    assert "***" in err
    logged = "\n".join(
        f"{record.getMessage()} {record.exc_text or ''}" for record in caplog.records
    )
    assert "grok1.chunk" in logged
    for secret in (SECRET, TOKEN, OPTION):
        for where, text in {**written, "out": out, "err": err, "logs": logged}.items():
            assert secret not in text, where


@pytest.mark.usefixtures("s3")
def test_a_client_that_quotes_a_password_is_not_repeated(tmp_path, capfd):
    """S3's takes what stands before the @ for a bucket's name, and says that it is none."""
    url = f"s3://key:{SECRET}@bucket/x.parquet"
    common = ["--checkpoint", runs.CHECKPOINT]
    assert cli.main(["plan", *common, "--input", url]) == cli.SETUP
    runs.write(tmp_path / "a.parquet", runs.prompts(2))
    source, output = ["--input", str(tmp_path / "a.parquet")], f"s3://key:{SECRET}@bucket/out"
    assert cli.main(["generate", *common, *source, "--output", output]) == cli.SETUP
    told = capfd.readouterr()
    assert told.err.count("grok1: ") == 2
    assert SECRET not in told.out + told.err
