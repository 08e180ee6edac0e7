"""The Flex Template: its parameters, from the command's own arguments, and back again.

``python -m pipeline.dataflow.template`` writes ``deploy/metadata.json``.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from pipeline.commands import generate

_NOT_OFFERED = ("help", "explain", "rates", "detach", "report")
"""Arguments that make no sense for a job that nobody waits for at a terminal."""

_NEEDED = ("machine",)
"""Arguments that a job elsewhere does without."""

_BEAM = {
    "sdk_container_image": ("Worker image", "the image that make image built and pushed"),
    "max_num_workers": ("Most workers", "hosts with accelerators at once"),
    "experiments": ("Experiments", "Beam experiments, separated by commas"),
    "dataflow_service_options": (
        "Service options",
        "such as automatically_use_created_reservation, separated by commas",
    ),
}
"""Arguments of Beam's that a job needs beside our own; project, region and bucket are the run's."""


def parameters() -> list[dict[str, Any]]:
    """The template's parameters as ``metadata.json`` lists them."""
    described = []
    for action in _actions().values():
        name = _name(action)
        optional = not action.required and name not in _NEEDED
        parameter: dict[str, Any] = {
            "name": name,
            "label": name.replace("-", " ").capitalize(),
            "helpText": _help(action),
            "isOptional": optional,
        }
        if action.choices is not None:
            parameter["regexes"] = [f"^({'|'.join(map(str, action.choices))})$"]
        elif _is_flag(action):
            parameter["regexes"] = ["^(true|false)$"]
        elif action.type is int and action.nargs not in ("+", "*"):
            parameter["regexes"] = [r"^-?\d+$"]
        described.append(parameter)
    for name, (label, text) in _BEAM.items():
        optional = name != "sdk_container_image"
        described.append({"name": name, "label": label, "helpText": text, "isOptional": optional})
    return described


def metadata() -> str:
    """The text of ``deploy/metadata.json``."""
    return (
        json.dumps(
            {
                "name": "Batch generation with Grok-1",
                "description": "Completes the prompts of Parquet files with Grok-1, and writes "
                "the completions as Parquet.",
                "parameters": parameters(),
            },
            indent=2,
        )
        + "\n"
    )


def command(given: Sequence[str]) -> list[str]:
    """The launcher's ``--name=value`` arguments as the command line that they stand for.

    A launcher can only write one value behind a name: ``true`` and ``false`` become flags, and
    lists, which it writes with commas, become several values.
    """
    actions = {_name(action): action for action in _actions().values()}
    line = ["generate"]
    for argument in given:
        match = re.fullmatch(r"--([\w-]+)=(.*)", argument, flags=re.DOTALL)
        action = actions.get(match.group(1)) if match else None
        if match is None or action is None:
            line.append(argument)
            continue
        flag, value = f"--{match.group(1)}", match.group(2)
        if _is_flag(action) and value in ("true", "false"):
            negative = isinstance(action, argparse.BooleanOptionalAction)
            if value == "true":
                line.append(flag)
            elif negative:
                line.append(f"--no-{match.group(1)}")
        elif action.nargs == "+" and action.type is int:
            line += [flag, *value.split(",")]
        else:
            line.append(argument)
    return line


def _actions() -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    generate.add_arguments(parser)
    return {a.dest: a for a in parser._actions if a.dest not in _NOT_OFFERED}


def _name(action: argparse.Action) -> str:
    return action.option_strings[0].removeprefix("--")


def _is_flag(action: argparse.Action) -> bool:
    return action.nargs == 0


def _help(action: argparse.Action) -> str:
    text = (action.help or "") % {"default": action.default}
    return text[:1].upper() + text[1:] + "."


if __name__ == "__main__":
    root = pathlib.Path(__file__).parents[2]
    (root / "deploy" / "metadata.json").write_text(metadata())
    sys.exit(0)
