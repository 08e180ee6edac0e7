"""What the loop has given to the devices and not looked at yet."""

import dataclasses

import numpy as np

from model.engine.rows import Pending
from model.engine.score import Scores
from model.engine.sequence import Segment, Sequence
from model.engine.step import Rounds


@dataclasses.dataclass
class Counters:
    """What a loop has done; see ``EngineStats``."""

    prefilled_tokens: int = 0
    scored_tokens: int = 0
    decode_rows: int = 0
    decode_rows_used: int = 0
    decode_rows_waiting: int = 0
    decode_rows_wanted: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    def add(self, results: "Decoded", used: np.ndarray) -> None:
        """Counts a round, whose rows that drew a token are ``used`` [K, B]."""
        rows, drew = used.size, int(used.sum())
        self.decode_rows += rows
        self.decode_rows_used += drew
        self.drafted_tokens += int(np.asarray(results.rounds.drafted).sum())
        self.accepted_tokens += int(np.asarray(results.rounds.accepted).sum())
        if results.waiting:
            self.decode_rows_waiting += rows - drew
            self.decode_rows_wanted += rows


@dataclasses.dataclass(frozen=True)
class Ran:
    """Rows that are being run and not drawn yet, whose slots they are, and since when."""

    pending: Pending
    owners: dict[int, Sequence]
    since: float


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Tokens that are being drawn, whose slots they are, and whether anyone waits for a slot."""

    rounds: Rounds
    owners: dict[int, Sequence]
    waiting: bool


@dataclasses.dataclass(frozen=True)
class Scored:
    """Tokens that are being judged, as segments asked for it."""

    scores: Scores
    segments: list[Segment]
