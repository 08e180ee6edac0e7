"""Completions that are caught in a loop, told by their tokens alone."""

from collections.abc import Sequence

import numpy as np

from schemas.repetition import RepetitionDetection


class RepetitionWatcher:
    """Looks for a pattern that repeats at the end of a growing completion.

    A pattern of p tokens stands there n times once (n - 1) p tokens in a row have equalled the one
    p before them, so the length of that run, for each p at once, is all there is to know.
    """

    def __init__(self, wanted: RepetitionDetection, min_tokens: int, max_tokens: int) -> None:
        """No end before ``min_tokens``; at most ``max_tokens`` will come."""
        sizes = np.arange(wanted.max_pattern_size, wanted.min_pattern_size - 1, -1)
        self._needed = sizes * (wanted.min_count - 1)
        self._runs = np.zeros(len(sizes), np.int64)
        self._min_tokens = min_tokens
        # The tokens so far, after as many of no token as the longest pattern is long.
        self._longest = wanted.max_pattern_size
        self._tokens = np.full(self._longest + max_tokens, -1, np.int64)
        self._count = 0

    def feed(self, token_ids: Sequence[int]) -> int | None:
        """How many tokens the completion had when the pattern was complete, once it is."""
        for token_id in token_ids:
            # What stood there the longest pattern before, up to the shortest pattern before.
            before = self._tokens[self._count : self._count + len(self._runs)]
            self._runs = np.where(before == token_id, self._runs + 1, 0)
            self._tokens[self._longest + self._count] = token_id
            self._count += 1
            if self._count >= self._min_tokens and (self._runs >= self._needed).any():
                return self._count
        return None
