"""Runs ``grok1`` and kills it: ``python -m tests.reliability.killed PHASE SEED ARGUMENT...``.

With ``poison`` as the phase, and token ids instead of a seed, it dies whenever a prompt of these
ids is decoded, as a row does that drives a kernel or a device into a fault.

The process sends SIGKILL to itself at a moment that the seed decides, within the phase that is
named. Nothing can catch that, no exception is raised, no file is closed. It prints ``killed`` just
before, so that a run that ended by itself is not taken for a killed one.
"""

import functools
import importlib
import os
import random
import signal
import sys
import threading
import time
from typing import Any

PHASES = {
    # Where the phase is entered, the most times it may be passed by before, and the longest delay.
    "load": ("model.engine.engine", "Engine.from_checkpoint", 0, 3.0),
    "prefill": ("model.engine.loop", "Loop._dispatch_prefill", 6, 0.02),
    "decode": ("model.engine.loop", "Loop._decode", 20, 0.02),
    "commit": ("pipeline.storage", "Folder.create", 4, 0.004),
    "manifest": ("pipeline.job", "finalize", 0, 0.05),
}

MORE_PHASES = {
    # Before there is anything to kill: the plan is being told, no runner has the job yet.
    "planned": ("pipeline.report.terminal", "set_up_line", 0, 0.0),
}


def arm(phase: str, seed: int, sign: int = signal.SIGKILL) -> None:
    """Makes this process send itself a signal in a phase."""
    # A shell has those that it starts in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module_name, path, most, longest = {**PHASES, **MORE_PHASES}[phase]
    chance = random.Random(f"{phase}{seed}")
    passes, delay = chance.randint(0, most), chance.uniform(0, longest)
    holder: Any = importlib.import_module(module_name)
    *classes, name = path.split(".")
    for attribute in classes:
        holder = getattr(holder, attribute)
    original = getattr(holder, name)
    calls = 0

    @functools.wraps(original)
    def entered(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        # The output's claim is created too; the phase is that of the parts.
        if phase != "commit" or args[1].startswith("part-"):
            calls += 1
            if calls == passes + 1:
                threading.Thread(target=_strike, args=(delay, sign), daemon=True).start()
        return original(*args, **kwargs)

    setattr(holder, name, entered)


def poison(prompts: set[tuple[int, ...]]) -> None:
    """Makes this process die at the decode step of any of these prompts."""
    from model.engine.loop import Loop

    decode = Loop._decode

    def lethal(self: Loop) -> None:
        running = self.scheduler.running.values()
        if any(sequence.request.prompt_token_ids in prompts for sequence in running):
            _strike(0, signal.SIGKILL)
        decode(self)

    Loop._decode = lethal  # type: ignore[method-assign]


def _strike(delay: float, sign: int) -> None:
    time.sleep(delay)
    os.write(1, b"killed\n")
    os.kill(os.getpid(), sign)


if __name__ == "__main__":
    from pipeline import cli

    if sys.argv[1] == "poison":
        poison({tuple(map(int, ids.split(","))) for ids in sys.argv[2].split(";")})
    else:
        arm(sys.argv[1], int(sys.argv[2]), signal.Signals[os.environ.get("SIGNAL", "SIGKILL")])
    cli.entry(sys.argv[3:])
