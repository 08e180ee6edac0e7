"""Tell whether the full model fits a machine, by compiling for it with nothing attached.

Compiles the very steps that the engine would run there, and shows for each device what weights,
cache and temporaries take, how many sequences fit, and what the machine's bandwidth and products
allow at best. Exits with 1 if it does not fit. Needs the extra [aot], and a few minutes.

  grok1 fit --machine v5p-4 --weights int8 --context 8192
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from model.config import GROK_1, Grok1Config
from model.engine.options import KV_CACHE_DTYPES, NUMERICS
from model.machines import MACHINES, WEIGHTS
from schemas.error import SetupError

HELP = "tell whether the full model fits a machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    machines = "; ".join(f"{name}: {machine.title}" for name, machine in MACHINES.items())
    add("--machine", required=True, choices=MACHINES, metavar="NAME", help=machines)
    add("--weights", choices=WEIGHTS, default="int8", help="as they are kept (%(default)s)")
    add("--numerics", choices=NUMERICS, default="bf16", help="(%(default)s)")
    add("--kv-cache-dtype", choices=KV_CACHE_DTYPES, default="auto", help="(%(default)s)")
    add(
        "--context",
        type=_positive,
        default=2048,
        metavar="N",
        help="tokens of each sequence (%(default)s)",
    )
    add("--slots", type=_positive, metavar="N", help="sequences (default: the most that fit)")
    add("--config", metavar="FILE", help="config.json of another model (default: Grok-1)")
    add("--json", action="store_true", help="for a machine")


def run(given: argparse.Namespace, _: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    from model.fit import find_fit
    from model.room import Question
    from pipeline.cli import FAILED, OK

    config = GROK_1 if given.config is None else _read(given.config)
    fit = find_fit(
        Question(
            machine=given.machine,
            config=config,
            weights=given.weights,
            numerics=given.numerics,
            kv_cache_dtype=given.kv_cache_dtype,
            context=given.context,
            slots=given.slots,
        )
    )
    found = fit.to_dict()
    if given.json:
        print(json.dumps(found, indent=1))
    else:
        _print(found, config)
    return OK if fit.fits else FAILED


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _read(path: str) -> Grok1Config:
    try:
        return Grok1Config.from_json(Path(path).read_bytes())
    except OSError as error:
        raise SetupError(f"--config {path}: {error.strerror}; give a config.json") from None


def _print(found: dict, config: Grok1Config) -> None:
    from rich import box
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    machine = MACHINES[found["machine"]]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    parts = ("weights", "cache", "slots", "temporaries", "code")
    shown = {"slots": "state of the sequences", "code": "programs"}
    facts = {
        "model": f"{config.num_params / 1e9:,.1f} B parameters, {found['weights']} weights, "
        f"{found['numerics']} numerics, {found['kv_cache_dtype']} cache",
        "sequences": f"{found['slots']:,} of {found['context']:,} tokens each",
        "a device": "\n".join(
            [f"{found[f'{part}_gib']:8.2f} GiB {shown.get(part, part)}" for part in parts]
            + [f"{found['peak_gib']:8.2f} GiB at most, of {found['limit_gib']:.2f}"]
        ),
        "most sequences": f"{found['max_slots']:,}",
        "exchanges": ", ".join(
            f"{count} {kind}" for kind, count in sorted(found["collectives_per_layer"].items())
        )
        + " a layer",
        "at best": f"{found['decode_floor_tokens_per_second']:,} tokens/s decoding, "
        f"{found['prefill_floor_tokens_per_second']:,} prompt tokens/s",
        "compiled": ", ".join(
            f"{name} {step['seconds']:.0f} s" for name, step in found["steps"].items()
        ),
    }
    if not found["collectives_per_layer"]:
        del facts["exchanges"]
    for name, fact in facts.items():
        table.add_row(name, Text(fact))
    verdict = Text("fits", "green")
    if not found["fits"]:
        why = "; the compiler refuses it" if found["refused_by_compiler"] else ""
        verdict = Text(f"does not fit{why}", "red")
    table.add_row("verdict", verdict)
    Console().print(Panel(table, title=machine.title, box=box.ROUNDED, expand=False))
