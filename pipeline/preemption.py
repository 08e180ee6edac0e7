"""A process that is told to go: it gives up what is under way, and does so within bounded time.

Parts appear whole or not at all, so there is nothing to undo. What is being written is waited for,
and rows in the engine are cleared of suspicion: they did not kill anything.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType

from pipeline import strikes
from pipeline.commit import tally

GRACE_SECONDS = 10.0
"""Within which the process ends, whatever its store does. Clouds give 30 s."""

EXIT_CODE = 128 + signal.SIGTERM


def install(message: str = "", seconds: float | None = None) -> None:
    """Lets SIGTERM end this process so; without effect outside of the main thread.

    Args:
      message: printed on stderr then.
      seconds: within which it ends; by default ``GRACE_SECONDS``.
    """
    if threading.current_thread() is not threading.main_thread():
        return

    def leave(_: int, __: FrameType | None) -> None:
        if message:
            # Not print: what was interrupted may hold the stream's lock.
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{message}\n".encode())
        grace = GRACE_SECONDS if seconds is None else seconds
        leave_within(grace)
        settle(grace)
        os._exit(EXIT_CODE)

    signal.signal(signal.SIGTERM, leave)


def settle(seconds: float) -> None:
    """Waits for what is being written, and clears what is in the engine of suspicion.

    Args:
      seconds: for which it waits at most.
    """
    # In a thread: the store's client may need the very lock that the main thread holds.
    settling = threading.Thread(target=_settle, daemon=True)
    settling.start()
    settling.join(seconds)


def leave_within(seconds: float, code: int = EXIT_CODE) -> None:
    """Ends this process after so long, if it has not ended by itself."""

    def leave() -> None:
        time.sleep(seconds)
        os._exit(code)

    threading.Thread(target=leave, daemon=True, name="grok1-leaving").start()


def _settle() -> None:
    strikes.pardon_all(ending=True)
    while tally.under_way:
        time.sleep(0.02)
