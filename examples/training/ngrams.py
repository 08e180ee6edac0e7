"""What a model must be better than: the frequency of tokens, and of what follows four of them."""

import numpy as np


class NGrams:
    """An interpolated Kneser-Ney model of the order given, one discount an order.

    The longest order counts occurrences, the shorter ones the different tokens seen before, as
    Kneser and Ney have it (https://doi.org/10.1109/ICASSP.1995.479394; the interpolated form is
    Chen and Goodman's, https://doi.org/10.1006/csla.1999.0128).
    """

    def __init__(self, tokens: np.ndarray, order: int, vocab_size: int) -> None:
        """Args: [N] ids to count, n, and V; V ** n must fit in 64 bits."""
        self._order, self._size = order, vocab_size
        if vocab_size**order >= 1 << 64:
            raise ValueError(f"{order}-grams of {vocab_size} tokens do not fit in 64 bits")
        keys, counts = np.unique(_windows(tokens, order, vocab_size), return_counts=True)
        self._levels = [_Level(keys, counts, vocab_size)]
        for _ in range(order - 1):
            # An n-gram without its first token; how many differ in that token is its count.
            keys = keys % np.uint64(vocab_size ** (order - len(self._levels)))
            keys, counts = np.unique(keys, return_counts=True)
            self._levels.append(_Level(keys, counts, vocab_size))

    def logprobs(self, tokens: np.ndarray) -> np.ndarray:
        """[N - n + 1] float64 natural logarithms for the tokens after the first n - 1."""
        probability = np.full(len(tokens) - self._order + 1, 1 / self._size)
        for level, length in zip(reversed(self._levels), range(1, self._order + 1), strict=True):
            keys = _windows(tokens, length, self._size)[self._order - length :]
            probability = level.interpolate(keys, probability)
        return np.log(probability)


def unigram_logprobs(train: np.ndarray, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """[N] natural logarithms of each token's frequency in training, one added to each count."""
    counts = np.bincount(train, minlength=vocab_size) + 1
    return np.log(counts / counts.sum())[tokens]


class _Level:
    """Counts of one order's n-grams, and of their contexts."""

    def __init__(self, keys: np.ndarray, counts: np.ndarray, vocab_size: int) -> None:
        self._keys, self._counts, self._size = keys, counts, np.uint64(vocab_size)
        once, twice = (int((counts == n).sum()) for n in (1, 2))
        self._discount = once / (once + 2 * twice) if once else 0.5
        self._contexts, first = np.unique(keys // self._size, return_index=True)
        self._totals = np.add.reduceat(counts, first)
        self._different = np.diff([*first, len(keys)])

    def interpolate(self, keys: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """The probability of each n-gram's last token, given the next shorter order's."""
        count = _look_up(self._keys, self._counts, keys)
        context = keys // self._size
        total = _look_up(self._contexts, self._totals, context)
        different = _look_up(self._contexts, self._different, context)
        seen = total > 0
        total = np.where(seen, total, 1)
        share = np.maximum(count - self._discount, 0) / total
        return np.where(seen, share + self._discount * different / total * lower, lower)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def _windows(tokens: np.ndarray, length: int, vocab_size: int) -> np.ndarray:
    """[N - length + 1] each run of tokens as one number, the last token its lowest digit."""
    keys = np.zeros(len(tokens) - length + 1, np.uint64)
    for i in range(length):
        keys = keys * np.uint64(vocab_size) + tokens[i : len(keys) + i].astype(np.uint64)
    return keys
