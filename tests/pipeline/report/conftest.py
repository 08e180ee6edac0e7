import dataclasses
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.checkpoint.synth import synthesize
from model.checkpoint.synth_tokenizer import synthesize_tokenizer
from model.config import PRESETS
from pipeline.cli import ROW_ERRORS, main

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run over hostile and broken prompts, and what was asked of it."""

    output: pathlib.Path
    prompts: list[str | None]

    @property
    def page(self) -> str:
        return (self.output / "_report.html").read_text()


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("report")
    config = dataclasses.replace(PRESETS["tiny"], num_layers=1)
    checkpoint = folder / "checkpoint"
    synthesize(str(checkpoint), config, tokenizer=synthesize_tokenizer(config.vocab_size))
    prompts = [HOSTILE, None, "=cmd|' /C calc'!A0", "needle in a haystack", *["import os\n"] * 20]
    table = pa.table({"prompt": prompts, "custom_id": [f"<b>{i}</b>" for i in range(len(prompts))]})
    pq.write_table(table, folder / "in.parquet")
    arguments = ["generate", "--checkpoint", checkpoint, "--input", folder / "in.parquet"]
    arguments += ["--output", folder / "out", "--max-tokens", "12", "--logprobs", "1"]
    arguments += ["--chunk-rows", "6", "--slots", "8", "--max-context", "256"]
    assert main([str(argument) for argument in arguments]) == ROW_ERRORS
    return Run(folder / "out", prompts)
