"""The threads that make the masks of constrained samples.

What such a sample may draw depends on its last token, which the host must have seen. So the mask is
made while the devices run that very token through the network, and is needed only when that is
done. A slot whose mask takes longer draws nothing in that step; its neighbours do, and no result
depends on who waited for whom.
"""

import dataclasses
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from model.engine.tables import WORD_BITS
from model.engine.ticket import Sample
from schemas.error import ErrorCode, RowError

if TYPE_CHECKING:
    from llguidance import LLExecutor

_GROUP = 16
"""Masks that a thread makes at once: enough to share the cost of a call, few enough that one that
takes long holds few others up."""

_THREADS = 4
_LOOK_SECONDS = 0.001
"""How often a wait for masks looks whether the devices have finished."""


@dataclasses.dataclass(frozen=True, slots=True)
class NextMask:
    """What a sample may draw next [V / 32] uint32, or why it cannot be known."""

    sample: Sample
    mask: np.ndarray | RowError


class Masker:
    """Threads that make masks. ``ask`` and ``wait`` are the engine's thread's.

    Attributes:
      waiting: samples whose next mask is being made.
    """

    def __init__(self, vocabulary: int) -> None:
        """``vocabulary`` is V."""
        self._width = -(-vocabulary // WORD_BITS)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="grok1-masks")
        self._executor: LLExecutor | None = None
        self._made: queue.SimpleQueue[list[NextMask]] = queue.SimpleQueue()
        self.waiting: set[Sample] = set()

    def ask(self, samples: Sequence[Sample]) -> None:
        """Begins to make the masks after the last token of each."""
        if not samples:  # as ever where the library is not installed
            return
        if self._executor is None:
            from llguidance import LLExecutor

            self._executor = LLExecutor()
        self.waiting.update(samples)
        for start in range(0, len(samples), _GROUP):
            some = samples[start : start + _GROUP]
            self._pool.submit(self._make, some, [s.token_ids[-1] for s in some])

    def wait(self, running: Callable[[], bool], since: float, rows: int) -> list[NextMask]:
        """The masks that have been made: all, unless some take long.

        While ``running`` says that the devices are busy, waiting costs nothing. Then it costs every
        one of ``rows`` rows, and going on costs those that wait: so it lasts as long as the step,
        begun at ``since``, times the share of those; or to the end, if all wait.
        """
        made: list[NextMask] = []
        until: float | None = None
        while self.waiting:
            if until is None and len(self.waiting) < rows and not running():
                now = time.perf_counter()
                until = now + (now - since) * len(self.waiting) / rows
            try:
                some = self._made.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                if until is not None and time.perf_counter() >= until:
                    break
            else:
                self.waiting.difference_update(found.sample for found in some)
                made += some
        return made

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    def _make(self, samples: Sequence[Sample], tokens: list[int]) -> None:
        try:
            made = self._masks(samples, tokens)
        except Exception as error:
            fault = _fault(f"making the next mask failed: {type(error).__name__}: {error}")
            made = [NextMask(sample, fault) for sample in samples]
        self._made.put(made)

    def _masks(self, samples: Sequence[Sample], tokens: list[int]) -> list[NextMask]:
        from llguidance.numpy import consume_token_par, fill_next_token_bitmask_par

        executor: Any = self._executor
        matchers = [sample.matcher for sample in samples]
        consume_token_par(executor, list(zip(matchers, tokens, strict=True)))
        masks = np.zeros((len(samples), self._width), np.int32)
        following = [(m, i) for i, m in enumerate(matchers) if not m.is_error()]
        if following:  # the library refuses to fill none
            fill_next_token_bitmask_par(executor, following, masks)
        return [
            NextMask(sample, mask if not sample.matcher.is_error() else _lost(sample.matcher))
            for sample, mask in zip(samples, masks.view(np.uint32), strict=True)
        ]


def _lost(matcher: Any) -> RowError:
    line = " ".join(matcher.get_error().split())
    return _fault(f"structured_outputs became too complex to follow: {line[:200]}")


def _fault(message: str) -> RowError:
    return RowError(ErrorCode.INVALID_PARAMETER, message, "structured_outputs")
