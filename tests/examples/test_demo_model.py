"""The small model that comes with the project: what it says looks like Python."""

import pathlib
import random
import subprocess
import sys

import pytest

from model.checkpoint.inspect import inspect_checkpoint
from model.engine.engine import Engine
from model.engine.options import EngineOptions
from schemas.sampling import SamplingParams

ROOT = pathlib.Path(__file__).parents[2]
MODEL = str(ROOT / "examples" / "demo-model")

SOURCE = """\
def read_settings(path, default=None):
    \"\"\"Return the settings in a file.\"\"\"
    if not os.path.exists(path):
        return default
    with open(path) as file:
        return json.load(file)
"""


@pytest.fixture(scope="module")
def engine():
    with Engine.from_checkpoint(MODEL, options=EngineOptions(slots=8)) as engine:
        yield engine


def nats_a_token(engine, text):
    ids = engine.encode(text)
    [found] = engine.score([([engine.config.eos_token], ids)])
    return -found.scores[0].logprob / len(ids)


def test_it_is_whole_and_small():
    report = inspect_checkpoint(MODEL)
    assert report.ok
    assert report.nbytes < 6e6


def test_it_expects_python_where_it_was_never_seen(engine):
    """In nats a token, as the table in examples/README.md has them."""
    lines = SOURCE.splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    unordered = "".join(lines)
    assert nats_a_token(engine, SOURCE) < 2.5
    assert nats_a_token(engine, SOURCE) < nats_a_token(engine, unordered) - 0.3
    assert nats_a_token(engine, SOURCE) < nats_a_token(engine, SOURCE[::-1]) - 3


def test_it_ends_a_definition_and_indents_its_body(engine):
    params = SamplingParams(temperature=0, max_tokens=64)
    [output] = engine.generate(["def read_lines(path):\n    with open(path) as file:\n"], params)
    [completion] = output.outputs
    assert completion.finish_reason == "stop"
    code = "def read_lines(path):\n    with open(path) as file:\n" + completion.text
    compile(code, "completion", "exec")


@pytest.mark.slow
def test_the_demo_does_what_make_says(tmp_path):
    """Its commands, in this environment instead of one that they make."""
    bin = pathlib.Path(sys.executable).parent
    # No stamp to make, so no environment; make test itself may have made this process.
    flags = ["-n", "-o", ".venv/.runtime", "--no-print-directory"]
    command = ["make", *flags, "demo", f"DEMO={tmp_path}", f"BIN={bin}"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    done = subprocess.run(["sh", "-ec", shown.stdout], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "12 in = 10 succeeded + 2 errored; 12 out" in done.stdout
    assert done.stdout.count("def read_lines(path):") == 2
    assert (tmp_path / "completions" / "_report.html").exists()
