"""One copy of the model on devices of its own, driven by a thread of its own."""

import time
from functools import partial

from model.engine.desk import Desk
from model.engine.load import Copy, allocate
from model.engine.loop import Loop
from model.engine.output import Finisher
from model.engine.runner import Runner


class Replica:
    """What serves requests of a desk, beside others that do.

    Attributes:
      plan, compiled: of its steps.
      loop: its sequences; of the thread that calls ``serve``.
      busy_seconds: time with something to do.
    """

    def __init__(
        self, index: int, copy: Copy, desk: Desk, finisher: Finisher, row_deadline: float | None
    ) -> None:
        """``index`` is its place at the desk; ``finisher`` answers what ends."""
        self.plan, self.compiled = copy.plan, copy.compiled
        runner = Runner(copy.compiled, copy.plan, copy.params, *allocate(copy.plan))
        self.loop = Loop(runner, copy.plan, finisher, row_deadline)
        self.busy_seconds = 0.0
        self._index, self._desk = index, desk

    def serve(self) -> None:
        """Serves until the desk is closed and has no more, or is abandoned."""
        loop, desk = self.loop, self._desk
        take = partial(desk.take, self._index)
        while not desk.abandoned:
            if loop.idle:
                if not desk.wait(self._index):
                    return
                loop.beat = time.monotonic()
            for sample in desk.stopped(self._index):
                loop.stop(sample)
            started = time.perf_counter()
            loop.turn(take)
            self.busy_seconds += time.perf_counter() - started
