"""Tokens and hours that a job may take: looked at before each chunk, over all its workers.

Each process of a job with a budget of tokens notes in ``_budget/`` what it has committed. A chunk
that has begun is finished, so a budget is passed by at most the chunks under way.
"""

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

from pipeline.claim import STOPPED
from pipeline.counts import Counts
from pipeline.storage import Folder

if TYPE_CHECKING:
    from pipeline.prepare import Job

_LOOK_SECONDS = 5.0
"""Between two looks at what other processes have noted."""

_process = uuid.uuid4().hex
_noted: dict[str, int] = {}
_seen: dict[str, tuple[float, int]] = {}


def tokens(counts: Counts) -> int:
    """What a budget counts of a part."""
    return counts.prompt_tokens + counts.completion_tokens + counts.scored_tokens


def spend(job: "Job", counts: Counts) -> None:
    """Notes a part that this process has committed."""
    if job.options.limits.max_total_tokens is None:
        return
    total = _noted[job.start] = _noted.get(job.start, 0) + tokens(counts)
    _folder(job).replace(f"{job.start}.{_process}", str(total).encode(), flush=False)


def reached(job: "Job") -> str | None:
    """Which limit the job has reached, in words; None if it may go on."""
    limits = job.options.limits
    if limits.max_hours is not None and time.time() > job.began + 3600 * limits.max_hours:
        return f"--max-hours {limits.max_hours:g} have passed"
    if limits.max_total_tokens is not None:
        spent = job.tokens_before + _spent(job)
        if spent >= limits.max_total_tokens:
            return f"--max-total-tokens {limits.max_total_tokens:,} are reached with {spent:,}"
    return None


def stop(job: "Job", why: str) -> None:
    """Notes that the job ends before its last chunk."""
    record = {"start": job.start, "why": why}
    job.folder.replace(STOPPED, (json.dumps(record) + "\n").encode())


def stopped(folder: Folder) -> dict[str, Any] | None:
    """What ``stop`` noted, until the job is started again; None if it was not stopped."""
    data = folder.read(STOPPED)
    return None if data is None else json.loads(data)


def clear(folder: Folder) -> None:
    """Forgets what earlier starts noted."""
    notes = Folder(folder.at(_FOLDER))
    notes.remove(notes.names())
    folder.remove([STOPPED])


_FOLDER = "_budget"


def _folder(job: "Job") -> Folder:
    return Folder(job.folder.at(_FOLDER))


def _spent(job: "Job") -> int:
    """Tokens committed since the start by all processes, as far as they can be seen."""
    at, total = _seen.get(job.start, (0.0, 0))
    if time.monotonic() - at > _LOOK_SECONDS:
        folder = _folder(job)
        names = [name for name in folder.names() if name.startswith(f"{job.start}.")]
        others = [name for name in names if not name.endswith(_process)]
        total = sum(int(folder.read(name) or 0) for name in others)
        _seen[job.start] = time.monotonic(), total
    return total + _noted.get(job.start, 0)
