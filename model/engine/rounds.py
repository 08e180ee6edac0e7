"""What the loop has given to the devices and not looked at yet."""

import dataclasses

from model.engine.score import Scores
from model.engine.sequence import Segment, Sequence
from model.engine.step import Pending, Rounds


@dataclasses.dataclass
class Counters:
    """What a loop has done; see ``EngineStats``."""

    prefilled_tokens: int = 0
    scored_tokens: int = 0
    decode_rows: int = 0
    decode_rows_used: int = 0
    decode_rows_waiting: int = 0
    decode_rows_wanted: int = 0


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
