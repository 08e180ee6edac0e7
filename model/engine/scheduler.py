"""Who runs next: requests become prompts and sequences, sequences get pages and slots. No JAX.

A sequence is admitted when its worst case, prompt and ``max_tokens``, can be reserved, so nothing
that runs is ever preempted. Slots exceed the rows of a decode step, so that prompts are computed
ahead and a row whose sequence ends takes the next at once.
"""

import collections
import dataclasses
from typing import Any

from model.engine.cache import PagePool
from model.engine.request import Request


@dataclasses.dataclass(slots=True, eq=False)
class Prompt:
    """A request's prompt in the cache, shared by its samples.

    Attributes:
      request: what was asked.
      ticket: what the engine wants to remember with it.
      pages: pages of its whole blocks, shared ones first; held by the prompt.
      tail: page of the tokens after the last whole block, copied for each sample; None if n is 1
        or there are none.
      computed: tokens that are in the cache or under way.
      waiting: samples not yet admitted.
      running: samples admitted and not finished.
    """

    request: Request
    ticket: Any
    pages: list[int] = dataclasses.field(default_factory=list)
    tail: int | None = None
    computed: int = -1
    waiting: int = 0
    running: int = 0

    @property
    def private(self) -> bool:
        """Whether it neither uses nor leaves shared prefixes: each of its tokens is scored."""
        return self.request.params.prompt_logprobs is not None

    @property
    def cached_length(self) -> int:
        """Prompt tokens that go into the cache: the last one is a decode step's."""
        return len(self.request.prompt_token_ids) - 1


@dataclasses.dataclass(slots=True, eq=False)
class Sequence:
    """One sample of a request.

    Attributes:
      prompt: what it continues.
      index: which sample.
      slot: where its state is on the device.
      pages: all its pages in order; it holds those after the prompt's whole blocks.
    """

    prompt: Prompt
    index: int
    slot: int
    pages: list[int]


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of one block of a prompt, to be run through the network together.

    Attributes:
      prompt: whose.
      start: position of the first.
      stop: position after the last.
      pages: the prompt's pages up to these tokens.
    """

    prompt: Prompt
    start: int
    stop: int
    pages: list[int]


@dataclasses.dataclass(frozen=True, slots=True)
class Admission:
    """A sequence that may decode once the segments planned with or before it have run.

    Attributes:
      sequence: which.
      copy: (source, target) pages to copy first, or None.
    """

    sequence: Sequence
    copy: tuple[int, int] | None


class Scheduler:
    """Requests in order of arrival, onto slots and pages.

    Attributes:
      waiting: samples that have no slot yet.
      running: sequences by slot.
    """

    def __init__(self, pool: PagePool, slots: int, groups: int = 1) -> None:
        """``slots`` are dealt to ``groups`` equal ranges, which are kept equally full."""
        self._pool = pool
        self._group_size = size = slots // groups
        self._free_slots = [list(range(g * size, (g + 1) * size))[::-1] for g in range(groups)]
        self._queue: collections.deque[Prompt] = collections.deque()
        self._to_compute: collections.deque[tuple[Prompt, list[Admission]]] = collections.deque()
        self.waiting = 0
        self.running: dict[int, Sequence] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._queue and not self.running

    @property
    def admitted(self) -> bool:
        """Whether ``plan`` has anything to say."""
        return bool(self._to_compute)

    @property
    def tokens_to_compute(self) -> int:
        """Prompt tokens of admitted sequences that have not been planned."""
        return sum(p.cached_length - max(p.computed, 0) for p, _ in self._to_compute)

    def pages_needed(self, request: Request) -> int:
        """Pages of one sample's worst case; the last token drawn is never run."""
        longest = len(request.prompt_token_ids) + request.params.max_tokens - 1
        return -(-longest // self._pool.block_size)

    def add(self, request: Request, ticket: Any) -> Prompt:
        """Queues a request."""
        prompt = Prompt(request, ticket, waiting=request.params.n)
        self.waiting += prompt.waiting
        self._queue.append(prompt)
        return prompt

    def admit(self) -> None:
        """Gives slots and pages to as many waiting samples as there is room for, in order."""
        while self._queue:
            prompt = self._queue[0]
            admission = self._admit_sample(prompt)
            if admission is None:
                return
            prompt.waiting -= 1
            prompt.running += 1
            self.waiting -= 1
            self.running[admission.sequence.slot] = admission.sequence
            if self._to_compute and self._to_compute[-1][0] is prompt:
                self._to_compute[-1][1].append(admission)
            else:
                self._to_compute.append((prompt, [admission]))
            if prompt.waiting == 0:
                self._queue.popleft()

    def plan(self, rows: int, blocks: int) -> tuple[list[Segment], list[Admission]]:
        """The next prompt tokens to run, at most ``rows`` in at most ``blocks`` segments.

        Prompts that are scored run in a step of their own kind, so a plan holds one kind only.

        Returns:
          Segments, and the sequences whose prompts are complete with them.
        """
        segments: list[Segment] = []
        admissions: list[Admission] = []
        while self._to_compute:
            prompt, waiting = self._to_compute[0]
            if segments and segments[0].prompt.private != prompt.private:
                break
            while prompt.computed < prompt.cached_length:
                segment = self._next_segment(prompt)
                if len(segments) == blocks or segment.stop - segment.start > rows:
                    return segments, admissions
                segments.append(segment)
                rows -= segment.stop - segment.start
                prompt.computed = segment.stop
            admissions += waiting
            self._to_compute.popleft()
        return segments, admissions

    def finish(self, sequence: Sequence) -> None:
        """Frees a sequence's slot and pages, and its prompt's with the last sample."""
        prompt = sequence.prompt
        del self.running[sequence.slot]
        self._free_slots[sequence.slot // self._group_size].append(sequence.slot)
        self._pool.release(sequence.pages[len(prompt.pages) :])
        prompt.running -= 1
        if prompt.running == 0 and prompt.waiting == 0:
            self._pool.release(prompt.pages)
            if prompt.tail is not None:
                self._pool.release([prompt.tail])

    def _admit_sample(self, prompt: Prompt) -> Admission | None:
        group = max(self._free_slots, key=len)
        if not group:
            return None
        size, request = self._pool.block_size, prompt.request
        whole = prompt.cached_length // size
        private = self.pages_needed(request) - whole
        if prompt.computed < 0 and not self._place_prompt(prompt, private):
            return None
        pages = self._pool.take(private)
        if pages is None:
            return None
        copy = None if prompt.tail is None else (prompt.tail, pages[0])
        index = request.params.n - prompt.waiting
        return Admission(Sequence(prompt, index, group.pop(), prompt.pages + pages), copy)

    def _next_segment(self, prompt: Prompt) -> Segment:
        size = self._pool.block_size
        start = prompt.computed
        stop = min(start // size * size + size, prompt.cached_length)
        pages = prompt.pages
        if start // size == len(pages):
            tail = prompt.tail
            if tail is None:  # the only sample's own page
                sequence = self._to_compute[0][1][0].sequence
                tail = sequence.pages[len(pages)]
            pages = [*pages, tail]
        return Segment(prompt, start, stop, pages[: start // size + 1])

    def _place_prompt(self, prompt: Prompt, private: int) -> bool:
        """Takes the prompt's own pages, if there is room for them and ``private`` more.

        Its blocks can be found by others from now on: whatever they plan is planned after this
        prompt's segments, and a step writes all its rows' keys and values before any are read.
        """
        size, tokens = self._pool.block_size, prompt.request.prompt_token_ids
        whole = prompt.cached_length // size
        found = [] if prompt.private else self._pool.find(tokens[: whole * size])
        for page in found:
            self._pool.hold(page)
        tails = int(prompt.request.params.n > 1 and prompt.cached_length % size > 0)
        fresh = whole - len(found)
        if self._pool.available < fresh + tails + private:
            self._pool.release(found)
            return False
        prompt.pages = found + (self._pool.take(fresh) or [])
        prompt.tail = next(iter(self._pool.take(tails) or ()), None)
        prompt.computed = len(found) * size
        if not prompt.private:
            for i in range(len(found), whole):
                before = prompt.pages[i - 1] if i else None
                self._pool.publish(before, prompt.pages[i], tokens[i * size : (i + 1) * size])
        return True
