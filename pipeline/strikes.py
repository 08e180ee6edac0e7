"""Rows that may have killed a process: who was in the engine, who was there alone, what is saved.

``_strikes/`` of the output holds, for each chunk under way:

- ``PART.ATTEMPT.flight``: the rows in the engine, rewritten before more are let in. A process that
  dies leaves it behind, which makes suspects of them, and no more than that.
- ``PART.ATTEMPT.alone.ROW``: written before a suspect goes into the empty engine. Left behind by a
  process that died, it is a strike. Two strikes, and the row is not tried again.
- ``PART.ATTEMPT.saved.N``: answers of other rows, which later attempts need not ask again.

All is removed when the chunk is committed. An attempt whose process is still there on this machine
is no history: two runs of one job at once are not each other's dead.
"""

import dataclasses
import json
import threading
import uuid
import weakref
from collections.abc import Sequence
from typing import Any

from pipeline import process
from pipeline.saved import Saved, without
from pipeline.storage import Folder
from schemas.completion import OutputSchema

STRIKES = "_strikes"
"""The folder, below the output's."""

_attempts: "weakref.WeakSet[Attempt]" = weakref.WeakSet()
_attempts_lock = threading.Lock()
_ending = threading.Event()

QUARANTINE = 2
"""Strikes after which a row is not tried again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
    """What earlier attempts at a chunk left.

    Attributes:
      attempts: how many of them died, of those since the last start of the job.
      suspects: row -> strikes.
      saved: names of files with answers.
    """

    attempts: int = 0
    suspects: dict[int, int] = dataclasses.field(default_factory=dict)
    saved: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.suspects or self.saved)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ledger:
    """The strikes of a job. Small and picklable.

    Attributes:
      output: the output folder.
      schema: of the output's rows.
      run_seed: of the run.
      start: names this start of the job.
      attempts: how often its runner tries a chunk in one start; None if it does not try again.
    """

    output: Folder
    schema: OutputSchema
    run_seed: int
    start: str
    attempts: int | None = None

    @property
    def folder(self) -> Folder:
        """Where the records lie."""
        return Folder(self.output.at(STRIKES))

    def begin(self, part: str, row_uids: Sequence[str] = ()) -> "Attempt":
        """A new attempt at a chunk, which knows of the earlier ones."""
        return Attempt(self, part, row_uids)

    def forget(self, part: str) -> None:
        """Removes all that is recorded of a chunk, once it is committed."""
        folder = self.folder
        folder.remove([name for name in folder.names() if name.startswith(f"{part}.")])

    def parts(self) -> set[str]:
        """Names of the parts of which something is recorded."""
        return {name.rpartition(".parquet.")[0] + ".parquet" for name in self.folder.names()}


class Attempt:
    """One attempt at a chunk, by one thread; only ``pardon`` may come from another.

    Attributes:
      history: of the attempts before.
      last: whether the runner will not try again if this one dies.
    """

    def __init__(self, ledger: Ledger, part: str, row_uids: Sequence[str]) -> None:
        self._ledger, self._folder = ledger, ledger.folder
        self._row_uids = row_uids
        self._prefix = f"{part}.{uuid.uuid4().hex[:12]}"
        self._rows: list[int] = []
        self._accused: list[int] = []
        self._pieces = 0
        self._settled = False
        self._lock = threading.Lock()
        with _attempts_lock:
            _attempts.add(self)
            self._settled = _ending.is_set()
        names = [name for name in self._folder.names() if name.startswith(f"{part}.")]
        self.history = _history(self._folder, names, ledger.start) if names else History()
        self.last = ledger.attempts is not None and self.history.attempts + 1 >= ledger.attempts

    def admit(self, rows: Sequence[int]) -> None:
        """Records that these rows are in the engine from now on, and no others of the chunk."""
        self._rows = list(rows)
        self._write("flight", {"rows": self._rows})

    def accuse(self, rows: Sequence[int]) -> None:
        """Records that this row goes into the engine alone, or rows that are one question."""
        self._accused = list(rows)
        self._write(self._alone, {"rows": self._accused})

    def acquit(self) -> None:
        """What was alone in the engine has its answer, and that is saved."""
        self._folder.remove([f"{self._prefix}.{self._alone}"])
        self._accused = []

    def save(self, piece: Saved) -> None:
        """Keeps answers for later attempts."""
        self._folder.create(f"{self._prefix}.saved.{self._pieces}", piece.to_bytes())
        self._pieces += 1

    def saved(self) -> list[Saved]:
        """What earlier attempts kept, each input row once."""
        found = (self._folder.read(name) for name in self.history.saved)
        return without([Saved.from_bytes(data) for data in found if data is not None])

    def fail(self) -> None:
        """The engine died, not the process: this attempt is history for the next all the same."""
        if self._rows:
            self._write("flight", {"rows": self._rows, "dead": True})
        if self._accused:
            self._write(self._alone, {"rows": self._accused, "dead": True})
        self._settled = True

    def end(self) -> None:
        """Nothing of the chunk is in the engine any more, whether it was answered or given up."""
        names = [f"{self._prefix}.flight"] if self._rows else []
        if self._accused:
            names.append(f"{self._prefix}.{self._alone}")
        self._folder.remove(names)
        self._rows, self._accused = [], []

    def pardon(self) -> None:
        """The process is about to be ended by others: none of the rows is to blame for that."""
        with self._lock:
            if not self._settled:
                self._settled = True
                self.end()

    @property
    def in_flight(self) -> list[str]:
        """Ids of the chunk's rows that are in the engine."""
        return [self._row_uids[row] for row in [*self._rows, *self._accused]]

    @property
    def _alone(self) -> str:
        return f"alone.{self._accused[0]}"

    def _write(self, kind: str, record: dict[str, Any]) -> None:
        record = {"process": process.identity(), "start": self._ledger.start, **record}
        with self._lock:
            if self._settled:
                return
            # A machine that dies takes the record along, and then no row is to blame.
            self._folder.replace(f"{self._prefix}.{kind}", json.dumps(record).encode(), flush=False)


def pardon_all(*, ending: bool = False) -> None:
    """Pardons all attempts of this process.

    Args:
      ending: those that begin later as well: the process is about to be ended by others.
    """
    with _attempts_lock:
        if ending:
            _ending.set()
        attempts = list(_attempts)
    for attempt in attempts:
        attempt.pardon()


def in_flight() -> list[str]:
    """Ids of all rows that this process has in its engines."""
    return [row_uid for attempt in list(_attempts) for row_uid in attempt.in_flight]


def _history(folder: Folder, names: Sequence[str], start: str) -> History:
    suspects: dict[int, int] = {}
    dead: set[str] = set()
    saved = []
    for name in sorted(names):
        attempt, kind = name.partition(".parquet.")[2].split(".")[:2]
        if kind == "saved":
            saved.append(name)
            continue
        data = folder.read(name)
        if data is None:  # its chunk was committed, or the row acquitted, just now
            continue
        record = json.loads(data)
        if not record.get("dead") and process.is_alive(record["process"]):
            continue
        if record["start"] == start:
            dead.add(attempt)
        for row in record["rows"]:
            suspects[row] = suspects.get(row, 0) + (kind == "alone")
    return History(attempts=len(dead), suspects=suspects, saved=tuple(saved))
