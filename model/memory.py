"""How much memory the process has taken."""

import resource
import sys


def peak_bytes() -> int:
    """The most that was resident at once since the program began.

    Linux keeps it for the program itself; the figure of ``getrusage``, taken elsewhere, outlives an
    ``exec``, so that it may be that of a parent.
    """
    try:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10
