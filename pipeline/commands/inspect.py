"""Say what is in a checkpoint or in the output folder of a run, and check it.

A checkpoint: every tensor's file is compared with what the model needs. An output folder: every
part is read and compared with the plan, and all rows are accounted for. Exits with 1 if anything is
wrong, and with 3 if rows are errored or parts are still missing.

  grok1 inspect gs://bucket/completions
  grok1 inspect grok-1 --json
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

HELP = "check a checkpoint or an output folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("path", metavar="PATH", help="a checkpoint's folder, or a run's output")
    parser.add_argument("--footers", action="store_true", help="of parts, read no more than these")
    parser.add_argument("--json", action="store_true", help="for a machine")


def run(given: argparse.Namespace, _: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    from pipeline.claim import JOB
    from pipeline.plan import is_part
    from pipeline.storage import Folder

    folder = Folder(given.path)
    names = folder.names()
    if JOB in names or any(map(is_part, names)):
        return _output(folder, given.json, read=not given.footers)
    return _checkpoint(given.path, given.json)


def _checkpoint(url: str, as_json: bool) -> int:
    from model.checkpoint.inspect import inspect_checkpoint
    from pipeline.cli import FAILED, OK

    found = inspect_checkpoint(url)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
        return OK if found.ok else FAILED
    tokenizer = found.tokenizer_fault or "none: prompts must be token ids"
    if found.tokenizer and not found.tokenizer_fault:
        tokenizer = f"{found.tokenizer['vocab_size']:,} pieces, {found.tokenizer['identity'][:12]}"
    shape = {key: value for key, value in found.config.items() if not key.endswith("_token")}
    dtypes = ", ".join(f"{count:,} {name}" for name, count in found.dtypes.items())
    _print(
        f"checkpoint {found.url}",
        {
            "layout": f"{found.kind}, {found.weights} weights",
            "identity": found.identity,
            "parameters": f"{found.parameters:,}, {found.active_parameters:,} active",
            "files": f"{found.present} of {found.tensors} tensors, {found.nbytes / 1e6:,.1f} MB",
            "numbers": dtypes,
            "shape": ", ".join(f"{key} {value:g}" for key, value in shape.items()),
            "tokenizer": tokenizer,
        },
        [
            *(f"missing: {name}" for name in found.missing),
            *found.faults,
            *(f"belongs to no tensor: {name}" for name in found.unexpected),
            *([found.tokenizer_fault] if found.tokenizer_fault else []),
        ],
    )
    return OK if found.ok else FAILED


def _output(folder: Any, as_json: bool, *, read: bool) -> int:
    from pipeline.cli import FAILED, OK, ROW_ERRORS
    from pipeline.finalize import survey
    from pipeline.report import terminal

    found, _ = survey(folder, read=read)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        totals, settings = found["totals"], found["settings"]
        _print(
            f"{terminal.RESULTS[settings['task']]} in {found['url']}",
            {
                "run": f"{found['run_id']}, {found['state']}",
                "parts": f"{found['parts_present']:,} of {_planned(found['parts'])}",
                "rows": f"{totals['rows_in']:,} of {_planned(found['rows'])} in = "
                f"{totals['succeeded']:,} "
                f"succeeded + {totals['errored']:,} errored; {totals['rows_out']:,} out",
                **terminal.token_facts(totals, settings["task"]),
                "errors": ", ".join(f"{k} {v:,}" for k, v in totals["errors"].items()) or "none",
                "files": f"{len(found['file_errors']):,} could not be read, or not wholly",
                "checkpoint": settings["checkpoint"],
                "numerics": settings["numerics"],
                **_sampling(settings),
                **({"not known": "\n".join(found["unknown"])} if found["unknown"] else {}),
            },
            found["faults"],
            "nothing wrong in what is there" if found["unknown"] else _SOUND,
        )
    if found["faults"]:
        return FAILED
    errored = found["totals"]["errored"] or found["file_errors"]
    return OK if found["state"] == "complete" and not errored else ROW_ERRORS


def _planned(number: int | None) -> str:
    return "an unknown number" if number is None else f"{number:,}"


def _sampling(settings: dict[str, Any]) -> dict[str, str]:
    if "temperature" not in settings:
        return {}
    return {
        "sampling": f"temperature {settings['temperature']:g}, top_p {settings['top_p']:g}, "
        f"max_tokens {settings['max_tokens']}, run_seed {settings['run_seed']}"
    }


_SOUND = "all as it should be"


def _print(title: str, facts: dict[str, str], faults: Sequence[str], sound: str = _SOUND) -> None:
    from rich import box
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    for name, fact in facts.items():
        table.add_row(name, Text(fact))
    verdict = Text(sound, "green")
    if faults:
        shown = [*faults[:20], *([f"and {len(faults) - 20} more"] if len(faults) > 20 else [])]
        verdict = Text("\n".join(shown), "red")
    table.add_row("verdict", verdict)
    Console().print(Panel(table, title=Text(title), box=box.ROUNDED, expand=False))
