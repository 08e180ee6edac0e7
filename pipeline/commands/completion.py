"""Print the script that lets a shell complete grok1's commands, arguments, choices and paths.

  bash   mkdir -p ~/.local/share/bash-completion/completions
         grok1 completion bash > ~/.local/share/bash-completion/completions/grok1
  zsh    grok1 completion zsh > "${fpath[1]}/_grok1"
  fish   mkdir -p ~/.config/fish/completions
         grok1 completion fish > ~/.config/fish/completions/grok1.fish

A shell that is started after that knows it. The script is complete in itself: no Tab runs grok1.
"""

import argparse
from collections.abc import Iterator, Sequence

from schemas.error import SetupError

HELP = "print the script that lets a shell complete this command"

SHELLS = ("bash", "zsh", "fish")

_FILES = ("FILE", "FILE|TEXT", "PATH")
_FOLDERS = ("DIR", "OUTPUT")
"""By how the arguments that are paths show their value."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("shell", choices=SHELLS, help="bash, zsh or fish")


def run(given: argparse.Namespace, _: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    try:
        import shtab
    except ImportError:
        raise SetupError(
            "grok1 completion needs shtab: pip install 'grok1-batch[completion]'"
        ) from None
    from pipeline.cli import OK, make_parser

    parser = make_parser()
    for action in _actions(parser):
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(parser, given.shell))
    return OK


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
