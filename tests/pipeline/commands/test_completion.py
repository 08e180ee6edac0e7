"""Tab in shells that have the script: typed into a terminal, as a user does."""

import os
import pty
import select
import shutil
import subprocess
import time

import pytest

from pipeline.cli import OK, main, make_parser
from pipeline.commands.completion import SHELLS

STARTS = {
    "bash": (["--norc", "--noprofile", "-i"], "source ./_grok1"),
    "zsh": (["-f", "-i"], "fpath=($PWD $fpath) && autoload -Uz compinit && compinit -u -D"),
}
"""Arguments of a shell without settings of its own, and what makes it read the script."""

TYPED = {
    "ins": "grok1 inspect ",
    "gen": "grok1 generate ",
    "generate --few-shot-s": "grok1 generate --few-shot-sampling ",
    "generate --numerics fl": "grok1 generate --numerics float32 ",
    "generate --checkpoint my-ch": "grok1 generate --checkpoint my-checkpoint/",
    "inspect my-ch": "grok1 inspect my-checkpoint/",
    "convert --to my-ch": "grok1 convert --to my-checkpoint/",
}
"""What is typed before Tab, and what stands there then."""


class Terminal:
    """A shell in a terminal of its own."""

    def __init__(self, command, folder):
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "dumb", "PS1": "$ ", "HOME": str(folder)}
        self._shell = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment
        )
        os.close(theirs)
        self._seen = ""

    def type(self, text):
        os.write(self._ours, text.encode())

    def wait_for(self, text, seconds=30.0):
        """What has been shown since the last call, once ``text`` is in it."""
        end = time.monotonic() + seconds
        while text not in self._seen:
            ready, _, _ = select.select([self._ours], [], [], end - time.monotonic())
            assert ready, f"{text!r} is not in {self._seen!r}"
            self._seen += os.read(self._ours, 4096).decode(errors="replace")
        shown, self._seen = self._seen, ""
        return shown

    def close(self):
        self._shell.kill()
        self._shell.wait()
        os.close(self._ours)


@pytest.fixture(params=STARTS)
def terminal(request, tmp_path, capsys):
    shell = shutil.which(request.param)
    if shell is None:
        pytest.skip(f"{request.param} is not installed")
    assert main(["completion", request.param]) == OK
    (tmp_path / "_grok1").write_text(capsys.readouterr().out)
    (tmp_path / "my-checkpoint").mkdir()
    arguments, start = STARTS[request.param]
    terminal = Terminal([shell, *arguments], tmp_path)
    terminal.type(f"{start} && echo rea''dy\n")
    terminal.wait_for("ready")
    yield terminal
    terminal.close()


def test_tab_completes(terminal):
    for typed, whole in TYPED.items():
        terminal.type(f"grok1 {typed}\t")
        terminal.wait_for(whole)
        terminal.type("\x15")  # takes the line away


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_argument_is_known(shell, capsys):
    assert main(["completion", shell]) == OK
    script = capsys.readouterr().out
    commands = next(a.choices for a in make_parser()._actions if a.dest == "command")
    for name, command in commands.items():
        assert name in script
        for action in command._actions:
            for flag in action.option_strings:
                assert flag.lstrip("-") in script, (name, flag)
