"""Who runs next: requests become prompts and sequences, sequences get pages and slots. No JAX.

A sequence is admitted when its worst case, prompt and ``max_tokens``, can be reserved, so nothing
that runs is ever preempted. Slots exceed the rows of a decode step, so that prompts are computed
ahead and a row whose sequence ends takes the next at once. What is only scored takes no slot, and
is done with once its tokens are planned: the devices do things in that order.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

from model.engine.cache import PagePool
from model.engine.request import Request
from model.engine.scoring import ScoreRequest
from model.engine.sequence import Admission, Prompt, Round, Segment, Sequence

Take = Callable[[int], Any]
"""Told how many sequences are unfinished, gives the next request's ticket, or None."""


def take_none(unfinished: int) -> None:
    """There are no requests but those that were added."""


@dataclasses.dataclass(slots=True, eq=False)
class _Run:
    """Tokens to run in order: a prompt's, for some of its samples, or one ``sample``'s own."""

    prompt: Prompt
    admissions: list[Admission]
    tokens: tuple[int, ...]
    pages: list[int]
    sample: int | None
    first: int
    at: int

    @property
    def stop(self) -> int:
        return self.first + len(self.tokens)


class Scheduler:
    """Requests in order of arrival, onto slots and pages.

    Attributes:
      waiting: samples that wait for a slot.
      unfinished: sequences that wait or run.
      running: sequences by slot.
    """

    def __init__(self, pool: PagePool, slots: int, groups: int = 1) -> None:
        """``slots`` are dealt to ``groups`` equal ranges, which are kept equally full."""
        self._pool = pool
        self._group_size = size = slots // groups
        self._free_slots = [list(range(g * size, (g + 1) * size))[::-1] for g in range(groups)]
        self._queue: collections.deque[Prompt] = collections.deque()
        self._runs: collections.deque[_Run] = collections.deque()
        self.waiting = self.unfinished = 0
        self.running: dict[int, Sequence] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._queue and not self._runs and not self.running

    @property
    def admitted(self) -> bool:
        """Whether ``plan`` has anything to say."""
        return bool(self._runs)

    @property
    def tokens_to_compute(self) -> int:
        """Tokens of admitted sequences that have not been planned."""
        return sum(run.stop - run.at for run in self._runs)

    def add(self, request: Request | ScoreRequest, ticket: Any) -> Prompt:
        """Queues a request."""
        prompt = Prompt(request, ticket, request.cached_token_ids, request.samples)
        self.waiting += request.samples * request.slots
        self.unfinished += request.samples
        self._queue.append(prompt)
        return prompt

    def admit(self, take: Take = take_none) -> None:
        """Gives slots and pages to as many samples as there is room for, in order.

        Once none waits, more requests are taken.
        """
        self._admit_waiting()
        while not self._queue and (ticket := take(self.unfinished)) is not None:
            self.add(ticket.request, ticket)
            self._admit_waiting()

    def plan(self, rows: int, blocks: int) -> Round:
        """The next tokens to run: at most ``rows``, asking as much, in at most ``blocks`` segments.

        What several scored continuations have in common is run for all of them first; their own
        tokens come in a later round, when its last page can be copied.
        """
        round_ = Round()
        later: _Run | None = None
        while self._runs and self._runs[0] is not later:
            run = self._runs[0]
            if round_.segments and round_.segments[0].prompt.scored != run.prompt.scored:
                break
            while run.at < run.stop:
                segment = self._next_segment(run)
                size = max(len(segment.tokens), len(segment.asks))
                if len(round_.segments) == blocks or size > rows:
                    return round_
                if run.sample is not None and run.at == run.first:
                    round_.copies += [a.copy for a in run.admissions if a.copy is not None]
                round_.segments.append(segment)
                rows -= size
                run.at += len(segment.tokens)
            self._runs.popleft()
            if run.prompt.request.slots:
                round_.admissions += run.admissions
                continue
            for admission in run.admissions:
                own = self._own_run(run, admission)
                if own is None:
                    self.finish(admission.sequence)
                else:
                    self._runs.append(own)
                    later = later or own
        return round_

    def finish(self, sequence: Sequence) -> None:
        """Frees a sequence's slot and pages, and its prompt's with the last sample."""
        prompt = sequence.prompt
        self.unfinished -= 1
        if sequence.slot >= 0:
            del self.running[sequence.slot]
            self._free_slots[sequence.slot // self._group_size].append(sequence.slot)
        self._pool.release(sequence.pages[len(prompt.pages) :])
        prompt.running -= 1
        if prompt.running == 0 and prompt.waiting == 0:
            self._pool.release(prompt.pages)
            if prompt.tail is not None:
                self._pool.release([prompt.tail])

    def _admit_waiting(self) -> None:
        while self._queue:
            prompt = self._queue[0]
            admission = self._admit_sample(prompt)
            if admission is None:
                return
            prompt.waiting -= 1
            prompt.running += 1
            if prompt.request.slots:
                self.waiting -= 1
                self.running[admission.sequence.slot] = admission.sequence
            if prompt.waiting == 0:
                self._queue.popleft()

    def _admit_sample(self, prompt: Prompt) -> Admission | None:
        request, group = prompt.request, max(self._free_slots, key=len)
        if request.slots and not group:
            return None
        index = request.samples - prompt.waiting
        size = self._pool.block_size
        own = max(0, -(-request.longest(index) // size) - len(prompt.tokens) // size)
        known = len(prompt.tokens)
        if not prompt.placed:
            found = self._place_prompt(prompt, own)
            if found is None:
                return None
            known = found * size
        pages = self._pool.take(own)
        if pages is None:
            return None
        slot = group.pop() if request.slots else -1
        copy = (prompt.tail, pages[0]) if pages and prompt.tail is not None else None
        admission = Admission(Sequence(prompt, index, slot, prompt.pages + pages), copy)
        last = self._runs[-1] if self._runs else None
        if last is not None and last.prompt is prompt and last.sample is None:
            last.admissions.append(admission)
        else:
            # The tail's tokens are the only sample's own page's, if there is one sample.
            tail = pages if prompt.tail is None else [prompt.tail]
            run = _Run(prompt, [admission], prompt.tokens, prompt.pages + tail, None, 0, known)
            self._runs.append(run)
        return admission

    def _own_run(self, run: _Run, admission: Admission) -> _Run | None:
        """What a scored sample has to run after ``run``, or None."""
        prompt, sequence = run.prompt, admission.sequence
        tokens = prompt.request.own_token_ids(sequence.index) if run.sample is None else ()
        if not tokens:
            return None
        first = len(prompt.tokens)
        return _Run(prompt, [admission], tokens, sequence.pages, sequence.index, first, first)

    def _next_segment(self, run: _Run) -> Segment:
        size, start = self._pool.block_size, run.at
        stop = min(start // size * size + size, run.stop)
        tokens = run.tokens[start - run.first : stop - run.first]
        asks = run.prompt.request.asks(start, stop, run.sample) if run.prompt.scored else []
        return Segment(run.prompt, start, tokens, run.pages[: start // size + 1], asks)

    def _place_prompt(self, prompt: Prompt, own: int) -> int | None:
        """Takes the prompt's own pages, if there is room for them and ``own`` more of a sample.

        Its blocks can be found by others from now on: whatever they plan is planned after this
        prompt's segments, and a step writes all its rows' keys and values before any are read.

        Returns:
          How many of its blocks were found computed, or None if there is no room.
        """
        size, tokens = self._pool.block_size, prompt.tokens
        whole, shareable = len(tokens) // size, prompt.shareable_blocks(size)
        found = self._pool.find(tokens[: shareable * size])
        for page in found:
            self._pool.hold(page)
        tails = int(prompt.request.samples > 1 and len(tokens) % size > 0)
        fresh = whole - len(found)
        if self._pool.available < fresh + tails + own:
            self._pool.release(found)
            return None
        prompt.pages = found + (self._pool.take(fresh) or [])
        prompt.tail = next(iter(self._pool.take(tails) or ()), None)
        prompt.placed = True
        for i in range(len(found), shareable):
            before = prompt.pages[i - 1] if i else None
            self._pool.publish(before, prompt.pages[i], tokens[i * size : (i + 1) * size])
        return len(found)
