"""A process that is told to go: it gives up what is under way, and does so within bounded time.

Parts appear whole or not at all, so there is nothing to undo. What is being written is waited for,
and rows in the engine are cleared of suspicion: they did not kill anything.
"""

import faulthandler
import functools
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

WORKER_GRACE_SECONDS = 4.0
"""The same of a runner's worker: Beam kills it 5 s after it has passed the signal on."""

EXIT_CODE = 128 + signal.SIGTERM

_WORKER = "apache_beam.runners.worker.sdk_worker"
"""Stands in the command of each process that Beam starts as a worker."""


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


@functools.cache
def install_in_worker() -> None:
    """The same in a worker that a runner started without plugins, from whichever thread.

    Beam's worker pool and its local runner's processes import none, and their main thread is
    Beam's own. Without effect in other processes, and where something handles SIGTERM already.
    """
    if not any(_WORKER in argument for argument in sys.orig_argv):
        return
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return
    told, tell = os.pipe()
    # What Python calls for a signal, only the main thread may set; this writes a stack to the pipe.
    faulthandler.register(signal.SIGTERM, tell, all_threads=False)

    def leave() -> None:
        os.read(told, 1)
        leave_within(WORKER_GRACE_SECONDS)
        settle(WORKER_GRACE_SECONDS)
        os._exit(EXIT_CODE)

    threading.Thread(target=leave, daemon=True, name="grok1-preemption").start()


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
