import dataclasses
import pathlib
import uuid
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROWS = 24


@dataclasses.dataclass(frozen=True)
class World:
    """A bucket with a small checkpoint and prompts, as a job on Dataflow would find them."""

    bucket: str

    @property
    def checkpoint(self) -> str:
        return f"{self.bucket}/checkpoint"

    @property
    def input(self) -> str:
        return f"{self.bucket}/prompts/*.parquet"

    def command(self, output: str = "completions", **changes: Any) -> list[str]:
        """A complete command; keywords replace or, with None, leave out an argument."""
        arguments = {
            "checkpoint": self.checkpoint,
            "input": self.input,
            "output": output if output.startswith("/") else f"{self.bucket}/{output}",
            "runner": "DataflowRunner",
            "machine": "h100x8",
            "project": "some-project",
            "region": "us-central1",
            "bucket": f"{self.bucket}/work",
            "sdk_container_image": "us-docker.pkg.dev/some-project/repo/grok1:1",
            "max-tokens": "6",
            "temperature": "0",
            "numerics": "float32",
            "slots": "8",
            "chunk-rows": "6",
            **changes,
        }
        return [
            "generate",
            *(f"--{k}={v}" for k, v in arguments.items() if v is not None and v is not True),
            *(f"--{k}" for k, v in arguments.items() if v is True),
        ]


@pytest.fixture(scope="session", autouse=True)
def _no_cloud():
    """Google's client would look for the metadata server of a machine in the cloud, for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_GCE_CHECK", "true")
        yield


@pytest.fixture(scope="session")
def world(gcs, tiny) -> World:
    bucket = f"{gcs}/{uuid.uuid4().hex}"
    fs = fsspec.filesystem("gs")
    for path in pathlib.Path(tiny).rglob("*"):
        if path.is_file() and path.suffix != ".npz":
            fs.pipe_file(f"{bucket}/checkpoint/{path.relative_to(tiny)}", path.read_bytes())
    sink = pa.BufferOutputStream()
    ids = [[10 + i, 20, 30 + i] for i in range(ROWS)]
    pq.write_table(pa.table({"prompt_token_ids": ids, "topic": ["x"] * ROWS}), sink)
    fs.pipe_file(f"{bucket}/prompts/a.parquet", sink.getvalue().to_pybytes())
    return World(bucket)
