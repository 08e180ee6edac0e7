import platform
import re
import subprocess
import sys

import pytest

from pipeline import cli, versions
from pipeline.cli import FAILED, SETUP, Failed, main
from pipeline.commands import inspect
from schemas import prompt
from schemas.error import SetupError
from schemas.sampling import PARAM_NAMES
from schemas.structured import SHORTHANDS


@pytest.fixture
def raising(monkeypatch, capsys):
    """Runs a command that raises; gives its exit code and what stands on stderr."""

    def run(error):
        def fail(*_):
            raise error

        monkeypatch.setattr(inspect, "run", fail)
        code = main(["inspect", "x"])
        return code, capsys.readouterr().err

    return run


def test_a_fault_is_one_sentence(raising):
    assert raising(SetupError("no such\nfolder")) == (SETUP, "grok1: no such folder\n")
    assert raising(Failed("it ended")) == (FAILED, "grok1: it ended\n")
    code, told = raising(ValueError("odd"))
    assert (code, told) == (FAILED, "grok1: ValueError: odd (more with --debug)\n")
    assert raising(KeyError())[1] == "grok1: KeyError: KeyError (more with --debug)\n"


def test_a_reader_that_has_gone_changes_no_exit_code():
    """As in ``grok1 generate … | head -1``, which must still tell of errored rows."""
    program = """
import sys
from pipeline import cli, versions
from pipeline.commands import inspect

def run(*_):
    for line in range(100_000):
        print(line)
    return cli.ROW_ERRORS

inspect.run = run
sys.exit(cli.main(["inspect", "x"]))
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == cli.ROW_ERRORS


def test_the_version_tells_what_a_bug_report_needs(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    told = capsys.readouterr().out.splitlines()
    names = ("grok1 ", "libraries: ", "system: ", "processor: ", "accelerators: ")
    assert [line[: len(name)] for line, name in zip(told, names, strict=True)] == [*names]
    assert f"code {versions.code_identity()[:12]}, python {platform.python_version()}" in told[0]
    for name in ("apache-beam ", "jax ", "jaxlib ", "pyarrow ", "fsspec "):
        assert name in told[1]
    assert platform.release() in told[2]
    assert " cores, " in told[3]


def test_the_version_tells_of_accelerators(monkeypatch, tmp_path):
    for index, (vendor, device) in enumerate([("0x1ae0", "0x0062")] * 4 + [("0x8086", "0x0062")]):
        folder = tmp_path / "pci" / str(index)
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(vendor + "\n")
        (folder / "device").write_text(device + "\n")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nfor i in 1 2; do echo NVIDIA H100 80GB HBM3, 570.86.15; done\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(versions, "_PCI", tmp_path / "pci")
    told = versions.facts()["accelerators"]
    assert told == "4 × TPU v5p, 2 × NVIDIA H100 80GB HBM3 (driver 570.86.15)"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert "does not answer" in versions.facts()["accelerators"]


@pytest.mark.parametrize("name", cli._COMMANDS)
def test_every_command_explains_itself(capsys, name):
    command = name.rstrip("_")
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: grok1 {command}" in text
    assert max(map(len, text.splitlines())) <= 100
    assert re.search(rf"^  .*grok1 {command}\b", text, re.MULTILINE), "it has no example"


def test_without_a_command_it_shows_the_help(capsys):
    assert main([]) == SETUP
    assert "usage: grok1" in capsys.readouterr().out


def test_a_process_that_is_interrupted_waits_for_nobody():
    """Its threads may be in the midst of anything."""
    code = (
        "import threading\n"
        "from pipeline import cli\n"
        "cli.main = lambda arguments: cli.INTERRUPTED\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "cli.entry()"
    )
    ran = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert ran.returncode == cli.INTERRUPTED


@pytest.mark.parametrize(
    ("word", "answer"), [("generat", "did you mean generate?"), ("xyz", "they are generate, ")]
)
def test_a_misspelt_command_is_answered_with_what_it_may_have_been(capsys, word, answer):
    with pytest.raises(SystemExit) as exit:
        main([word])
    assert exit.value.code == SETUP
    assert f"there is no command {word}; {answer}" in capsys.readouterr().err


def test_no_abbreviation_is_taken_for_an_option(capsys):
    with pytest.raises(SystemExit) as end:
        main(["generate", "--check", "c", "--input", "i", "--output", "o"])
    assert end.value.code == 2
    assert "--checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*PARAM_NAMES, *SHORTHANDS])
def test_every_sampling_parameter_is_a_flag_and_a_column(name, capsys):
    assert name in prompt.ROLES
    if name == "guided_json_object":  # as a flag --structured-outputs says it
        return
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    assert f"--{name.replace('_', '-')}" in capsys.readouterr().out
