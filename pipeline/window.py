"""Rows on their way into the engine: enough to keep it full, and no more.

Whatever is in the engine when the process dies comes under suspicion, so a chunk's rows are not
handed over all at once, and a suspect can have the engine for itself.
"""

import collections
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

_BATCHES = 8
"""Rows are admitted in batches of such a share of the window, since each admission is recorded."""


class Gate:
    """Leave to be in the engine, for so many rows at once over all chunks. Thread-safe."""

    def __init__(self, rows: int) -> None:
        """``rows`` should be about twice what the engine decodes at once."""
        self._rows = self._free = rows
        self._batch = max(1, rows // _BATCHES)
        self._alone = False
        self._changed = threading.Condition()

    def ask_all(
        self, starts: Sequence[Callable[[], Future]], admit: Callable[[Sequence[int]], None]
    ) -> list[Any]:
        """Starts all, some at a time, and waits; returns their answers in order.

        Args:
          starts: each puts one row into the engine.
          admit: told, before some are started, which will then be in the engine.
        """
        waiting = collections.deque(range(len(starts)))
        flying: dict[int, Future] = {}
        ended: collections.deque[int] = collections.deque()
        answers: list[Any] = [None] * len(starts)

        def end(i: int, _: Future) -> None:
            with self._changed:
                self._free += 1
                ended.append(i)
                self._changed.notify_all()

        while waiting or flying:
            with self._changed:
                self._changed.wait_for(lambda: ended or self._room(len(waiting)))
                count = self._take(len(waiting))
                done = [ended.popleft() for _ in range(len(ended))]
            for i in done:
                answers[i] = flying.pop(i).result()
            taken = [waiting.popleft() for _ in range(count)]
            try:
                if taken:
                    admit(sorted([*flying, *taken]))
                while taken:
                    future = starts[taken[0]]()
                    i = taken.pop(0)
                    flying[i] = future
                    future.add_done_callback(functools.partial(end, i))
            finally:
                self._give(len(taken))
        return answers

    def ask_alone(
        self,
        start: Callable[[], Future],
        admit: Callable[[], None],
        settle: Callable[[Any], None],
    ) -> None:
        """Starts one when nothing else is in the engine, and lets nothing else in meanwhile.

        Args:
          start: puts it into the engine.
          admit: told before.
          settle: given the answer, before anything else is let in: what is in the engine next must
            not be taken for its doing.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._alone = True
            self._changed.wait_for(lambda: self._free == self._rows)
        try:
            admit()
            settle(start().result())
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()

    def _room(self, wanted: int) -> bool:
        return wanted > 0 and not self._alone and self._free >= min(self._batch, wanted)

    def _take(self, wanted: int) -> int:
        count = min(self._free, wanted) if self._room(wanted) else 0
        self._free -= count
        return count

    def _give(self, count: int) -> None:
        if count:
            with self._changed:
                self._free += count
                self._changed.notify_all()
