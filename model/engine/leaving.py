"""Engines that nobody closed, ended before the interpreter ends."""

import atexit
import weakref
from typing import Protocol


class Closable(Protocol):
    """What has threads inside the devices' runtime."""

    def close(self, *, abandon: bool) -> None:
        """Ends them."""


_open: "weakref.WeakSet[Closable]" = weakref.WeakSet()


def close_at_exit(engine: Closable) -> None:
    """Closes an engine, unless that was done, when the interpreter ends.

    One that ends while a thread is inside the runtime's own code aborts the process.
    """
    _open.add(engine)


@atexit.register
def _close_all() -> None:
    for engine in list(_open):
        engine.close(abandon=True)
