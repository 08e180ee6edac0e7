"""Searches on the devices: a beam is a slot that draws one token.

The devices tell which tokens are likeliest, ``search`` decides, and the host sets the slots anew.
Beams share the pages of what they have in common, and a page is copied when two beams go on in it.
"""

import dataclasses
import math
import time
from typing import Any

import numpy as np

from model.engine.request import Request, TokenLogprob
from model.engine.rules import Unanswerable
from model.engine.sampler import Draws
from model.engine.search import Search
from model.engine.sequence import Prompt, Sequence
from model.engine.shapes import Shapes
from model.engine.state import SlotState
from model.engine.ticket import Sample
from schemas.error import ErrorCode, RowError


def check_room(request: Request, shapes: Shapes) -> None:
    """Makes sure that all beams of a request fit the slots and the cache at once.

    Raises:
      Unanswerable: they do not.
    """
    width, size = request.params.beam_width, shapes.block_size
    if width is None:
        return
    cached = len(request.cached_token_ids)
    own = -(-request.longest(0) // size) - cached // size
    pages = cached // size + int(width > 1 and cached % size > 0) + width * own
    if width > shapes.slots or pages >= shapes.pages:
        message = (
            f"beam_width={width} takes {width} slots and {pages * size} tokens of the cache, which "
            f"has {shapes.slots} and {(shapes.pages - 1) * size}; lower it or max_tokens"
        )
        raise Unanswerable(RowError(ErrorCode.INVALID_PARAMETER, message, "beam_width"))


class Pages:
    """Which pages of the cache each beam of a search reads, and which it writes."""

    def __init__(self, sequences: list[Sequence], block_size: int) -> None:
        """The one beam there is goes on in the first sequence's pages; it may use them all."""
        prompt = sequences[0].prompt
        self._size, self._shared = block_size, prompt.pages
        self._own = [page for s in sequences for page in s.pages[len(prompt.pages) :]]
        self._tables = [self._own[:1]]

    def fork(self, parents: list[int], position: int) -> list[tuple[int, int]]:
        """Lets beams go on from their parents, writing at a position.

        Returns:
          (source, target) pages to be copied first.
        """
        at = position // self._size - len(self._shared)
        before = self._tables
        kept = [before[parent][:at] for parent in parents]
        free = set(self._own).difference(*kept)
        writers: set[int] = set()
        for table, parent in zip(kept, parents, strict=True):
            if len(before[parent]) > at and parent not in writers:
                writers.add(parent)
                table.append(before[parent][at])
                free.discard(before[parent][at])
        copies = []
        for table, parent in zip(kept, parents, strict=True):
            if len(table) == at:
                table.append(free.pop())
                if len(before[parent]) > at:
                    copies.append((before[parent][at], table[at]))
        self._tables = kept
        return copies

    def tables(self) -> list[list[int]]:
        """All pages of each beam, in order."""
        return [self._shared + table for table in self._tables]


@dataclasses.dataclass(eq=False)
class _Run:
    """A search on the devices: its slots, one a beam, and what they have told of this step.

    It begins once it has all its slots, and with them its pages.
    """

    search: Search
    sequences: list[Sequence]
    pages: Pages | None = None
    began: float = math.inf
    heard: dict[int, list[TokenLogprob]] = dataclasses.field(default_factory=dict)


class Beams:
    """The searches of an engine, as its thread deals with them."""

    def __init__(self, block_size: int) -> None:
        self._size = block_size
        self._runs: dict[Prompt, _Run] = {}
        self._to_place: dict[_Run, list[tuple[int, int]]] = {}

    def __bool__(self) -> bool:
        """Whether any search is under way."""
        return bool(self._runs)

    @property
    def moved(self) -> bool:
        """Whether slots are to be set."""
        return bool(self._to_place)

    def admit(self, sequence: Sequence) -> None:
        """One more slot; the search begins when it has all."""
        prompt = sequence.prompt
        run = self._runs.setdefault(prompt, _Run(Search(prompt.ticket), []))
        run.sequences.append(sequence)
        if len(run.sequences) == prompt.request.samples:
            run.pages, run.began = Pages(run.sequences, self._size), time.monotonic()
            self._to_place[run] = []

    def place(self, values: SlotState, changed: np.ndarray) -> list[tuple[int, int]]:
        """Writes the beams that go on into NumPy arrays, and which slots [S] they are.

        Returns:
          (source, target) pages to copy first.
        """
        copies = []
        for run, pairs in self._to_place.items():
            assert run.pages is not None
            copies += pairs
            beams = zip(run.sequences, run.search.beams, run.pages.tables(), strict=False)
            for sequence, beam, pages in beams:
                request, slot = sequence.request, sequence.slot
                last = beam.fact.token_id if beam.fact else request.prompt_token_ids[-1]
                changed[slot] = values.alive[slot] = True
                values.token[slot] = last
                values.position[slot] = len(request.prompt_token_ids) - 1 + beam.length
                values.max_tokens[slot] = 1
                values.knobs.logprobs[slot] = _candidates(request)
                values.pages[slot, : len(pages)] = pages
        self._to_place.clear()
        return copies

    def hear(self, sequence: Sequence, draws: Draws, at: Any) -> None:
        """What a row of a step found, if it is a beam's."""
        if run := self._runs.get(sequence.prompt):
            tokens, logprobs = draws.top_tokens[at].tolist(), draws.top_logprobs[at].tolist()
            count, wanted = _candidates(sequence.request), sequence.request.params.logprobs or 0
            top = tuple(tokens[:wanted]), tuple(logprobs[:wanted])
            run.heard[sequence.slot] = [
                TokenLogprob(token, logprob, sum(other >= logprob for other in logprobs), *top)
                for token, logprob in zip(tokens[:count], logprobs, strict=False)
            ]

    def advance(self) -> list[tuple[list[Sequence], Search]]:
        """Lets searches go on whose beams have all been heard.

        Returns:
          Those that are done, and the sequences that they need no more.
        """
        done = []
        for prompt, run in list(self._runs.items()):
            search, slots = run.search, [s.slot for s in run.sequences[: len(run.search.beams)]]
            if not run.heard or len(run.heard) < len(slots):
                continue
            parents = search.advance([run.heard[slot] for slot in slots])
            run.heard.clear()
            if search.done:
                del self._runs[prompt]
                done.append((run.sequences, search))
            else:
                assert run.pages is not None
                length = len(prompt.request.cached_token_ids) + search.beams[0].length
                self._to_place[run] = run.pages.fork(parents, length)
        return done

    def expire(self, since: float) -> list[tuple[list[Sequence], Sample]]:
        """Gives up the searches that began before then.

        Returns:
          What stands for each, and the sequences that it needs no more.
        """
        late = [prompt for prompt, run in self._runs.items() if run.began < since]
        runs = [self._runs.pop(prompt) for prompt in late]
        for run in runs:
            self._to_place.pop(run, None)
        return [(run.sequences, run.search.overdue(run.began)) for run in runs]


def _candidates(request: Request) -> int:
    """Tokens that each beam may go on with."""
    return 2 * (request.params.beam_width or 0)
