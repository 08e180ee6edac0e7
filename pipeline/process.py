"""Which process this is, and whether another one, of this machine, is still there."""

import functools
import os
import socket
from typing import Any


@functools.cache
def identity() -> dict[str, Any]:
    """This process, JSON-ready: its machine since it was booted, its id, and when it began."""
    return {"machine": _machine(), "pid": os.getpid(), "began": _began(os.getpid())}


def is_alive(process: dict[str, Any]) -> bool:
    """Whether a process runs here and now; False also if it runs elsewhere, where nobody can see.

    Args:
      process: what ``identity`` said there.
    """
    if process["machine"] != _machine():
        return False
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return process["began"] == _began(process["pid"])


os.register_at_fork(after_in_child=identity.cache_clear)


def _machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return socket.gethostname()


def _began(pid: int) -> str:
    """Clock ticks from boot to the process's start, without which a reused id would be taken for
    the process; empty where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            # The name, in parentheses, may hold anything; the state comes after it.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    # A zombie is dead, though not yet buried.
    return "" if fields[0] == "Z" else fields[19]
