"""A device that hangs: the process says where it stands, and ends, so that the next can go on.

Nothing in a process can wake a device up that does not answer. A runner that retries, or the next
start of the command, begins with the rows that were in the engine as suspects.
"""

import contextlib
import faulthandler
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from pipeline import strikes

if TYPE_CHECKING:
    from model.engine.engine import Engine

_LOGGER = logging.getLogger("grok1.worker")

Phases = Mapping[str, tuple[float, float, float]]
"""As ``registry.phases`` gives them."""

EXIT_CODE = 1

COMPILE_FACTOR = 4
"""A load, or a step that is compiled when rows need it, may go on for so many times as long: a
compiler gives no sign until a step is done."""

HEARTBEAT_SECONDS = 30.0
"""Between two log lines of an engine in the making."""

_SHOWN = 1000
"""Row ids that are told at most."""


def watch(engine: "Engine", seconds: float) -> None:
    """Ends the process once the engine's devices have given nothing for so long while asked."""

    def look() -> None:
        while engine.is_open:
            if engine.silent_seconds > seconds:
                give_up(f"no token from the device for {seconds:g} s")
            if (compiling := engine.compiling_seconds) > COMPILE_FACTOR * seconds:
                give_up(f"a step has been compiling for {compiling:.0f} s")
            time.sleep(min(5.0, seconds / 4))

    threading.Thread(target=look, name="grok1-watchdog", daemon=True).start()


@contextlib.contextmanager
def watching_load(phases: Callable[[], Phases], seconds: float | None) -> Iterator[None]:
    """While an engine is made: logs how it gets on, and ends the process if it does not.

    Args:
      phases: what is done so far.
      seconds: how long a device may give nothing; None for ever.
    """
    made = threading.Event()

    def look() -> None:
        last, since, told = phases(), time.monotonic(), time.monotonic()
        step = HEARTBEAT_SECONDS if seconds is None else min(HEARTBEAT_SECONDS, seconds / 4)
        while not made.wait(min(5.0, step)):
            now, seen = time.monotonic(), phases()
            if seen != last:
                last, since = seen, now
            elif seconds is not None and now - since > COMPILE_FACTOR * seconds:
                give_up(f"loading has made no progress for {now - since:.0f} s")
            if now - told >= HEARTBEAT_SECONDS:
                told = now
                _LOGGER.info("%s", json.dumps(loading_event(seen), separators=(",", ":")))

    threading.Thread(target=look, name="grok1-load-watchdog", daemon=True).start()
    try:
        yield
    finally:
        made.set()


def loading_event(phases: Phases) -> dict[str, object]:
    """The fields of a heartbeat: the share of each phase that is done."""
    shares = {f"grok1.{name}.done": round(done / of, 4) for name, (done, of, _) in phases.items()}
    return {"event": "grok1.loading", **shares}


def give_up(why: str) -> None:
    """Tells where all threads stand and which rows were in the engine, never prompts, and ends."""
    rows = strikes.in_flight()
    told = ", ".join(rows[:_SHOWN]) + (f" and {len(rows) - _SHOWN} more" if rows[_SHOWN:] else "")
    error = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
    # Not print or logging: a thread that hangs may hold their locks. Stacks are long, so the
    # sentence for the user comes last, where a terminal shows it; a line may be alive above them.
    os.write(error, f"\ngrok1: rows in flight: {told or 'none'}\n".encode())
    faulthandler.dump_traceback(error, all_threads=True)
    message = f"grok1: {why}; this process ends, and starting again goes on"
    os.write(error, f"{message} (--stall-seconds N waits longer)\n".encode())
    os._exit(EXIT_CODE)
