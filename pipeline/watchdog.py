"""A device that hangs: the process says where it stands, and ends, so that the next can go on.

Nothing in a process can wake a device up that does not answer. A runner that retries, or the next
start of the command, begins with the rows that were in the engine as suspects.
"""

import faulthandler
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from pipeline import strikes

if TYPE_CHECKING:
    from model.engine.engine import Engine

EXIT_CODE = 1

_SHOWN = 1000
"""Row ids that are told at most."""


def watch(engine: "Engine", seconds: float) -> None:
    """Ends the process once the engine's devices have given nothing for so long while asked."""

    def look() -> None:
        while engine.is_open:
            if engine.silent_seconds > seconds:
                give_up(f"no token from the device for {seconds:g} s")
            time.sleep(min(5.0, seconds / 4))

    threading.Thread(target=look, name="grok1-watchdog", daemon=True).start()


def give_up(why: str) -> None:
    """Tells where all threads stand and which rows were in the engine, never prompts, and ends."""
    rows = strikes.in_flight()
    told = ", ".join(rows[:_SHOWN]) + (f" and {len(rows) - _SHOWN} more" if rows[_SHOWN:] else "")
    error = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
    message = f"grok1: {why}; this process ends, and starting again goes on"
    # Not print or logging: a thread that hangs may hold their locks.
    os.write(error, f"{message}\ngrok1: rows in flight: {told or 'none'}\n".encode())
    faulthandler.dump_traceback(error, all_threads=True)
    os._exit(EXIT_CODE)
