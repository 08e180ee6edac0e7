"""Requests that wait for a replica of the model, and word of samples that need no more tokens."""

import collections
import heapq
import itertools
import threading
from collections.abc import Iterator

from model.engine.scoring import ScoreTicket
from model.engine.ticket import Sample, Ticket

LONGEST_LEAD = 16
"""How far the longest request goes before what came earlier, in sequences that a replica decodes at
once. What takes longest is to begin early, or the last rows of a job run alone; and what is short
is not to wait for ever."""


class Desk:
    """Where requests lie until a replica takes them. Thread-safe.

    A replica takes one when it has room, and no more than its share of all that is unfinished, so
    that none idles while another has its work waiting. Requests of one length are taken in order of
    arrival, longer ones before shorter ones that came a little earlier.

    Attributes:
      abandoned: whether everything is to be left as it is.
    """

    def __init__(self, replicas: int, lead: float = 0.0) -> None:
        """A request goes before so many earlier ones for each token that it may draw more."""
        self._lead = lead
        self._requests: list[tuple[float, int, Ticket | ScoreTicket]] = []
        self._arrivals = itertools.count()
        self._complete: list[collections.deque[Sample]] = [
            collections.deque() for _ in range(replicas)
        ]
        self._loads = [0] * replicas
        self._changed = threading.Condition()
        self._closed = False
        self.abandoned = False

    def put(self, ticket: Ticket | ScoreTicket, tokens: int = 0) -> None:
        """Leaves a request, which may draw so many tokens, to whichever replica has room next."""
        with self._changed:
            arrival = next(self._arrivals)
            heapq.heappush(self._requests, (arrival - self._lead * tokens, arrival, ticket))
            self._changed.notify_all()

    def stop(self, sample: Sample) -> None:
        """Tells the replicas, of which one knows it, that a sample is complete."""
        with self._changed:
            for complete in self._complete:
                complete.append(sample)
            self._changed.notify_all()

    def close(self, *, abandon: bool = False) -> None:
        """Lets replicas end once all is answered; with ``abandon`` at once."""
        with self._changed:
            self._closed = True
            self.abandoned |= abandon
            self._changed.notify_all()

    def take(self, replica: int, unfinished: int) -> Ticket | ScoreTicket | None:
        """The next request, unless the replica, with so many sequences, has its share by now."""
        with self._changed:
            self._loads[replica] = unfinished
            share = -(-(len(self._requests) + sum(self._loads)) // len(self._loads))
            if not self._requests or unfinished >= share:
                return None
            return heapq.heappop(self._requests)[-1]

    def stopped(self, replica: int) -> Iterator[Sample]:
        """Samples that were found complete since the last call."""
        complete = self._complete[replica]
        while complete:
            yield complete.popleft()

    def wait(self, replica: int) -> bool:
        """Waits until a replica that has nothing to do may have; False once it never will."""
        with self._changed:
            self._loads[replica] = 0
            self._changed.wait_for(
                lambda: self._requests or self._complete[replica] or self._closed
            )
            return not self._closed or (bool(self._requests) and not self.abandoned)
