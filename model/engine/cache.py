"""Pages of the cache, counted on the host: who holds which, and which hold a known prefix.

No JAX. A page holds C tokens of one sequence, or of all sequences that begin with the same tokens
up to its end. Only whole blocks that ``prefill`` computes are shared: a decode step adds in another
order, so pages that it wrote would give a neighbour other bits.
"""

import collections
import dataclasses
from collections.abc import Sequence

ROOT = 0
"""Block id of the empty prefix."""


@dataclasses.dataclass(slots=True)
class _Page:
    holders: int = 0
    block: int = ROOT
    key: tuple[int, tuple[int, ...]] | None = None


class PagePool:
    """Reference-counted pages, and an index of the prefixes they hold.

    Page 0 is nobody's: rows that are not in use write there. A page that nobody holds but whose
    prefix is known stays findable until its place is needed; the least recently held goes first.
    """

    def __init__(self, pages: int, block_size: int) -> None:
        """``pages`` in all, page 0 included, of ``block_size`` tokens each."""
        self.block_size = block_size
        self._pages = [_Page() for _ in range(pages)]
        self._free = list(range(pages - 1, 0, -1))
        self._known: dict[tuple[int, tuple[int, ...]], int] = {}
        self._idle: collections.OrderedDict[int, None] = collections.OrderedDict()
        self._blocks = ROOT

    @property
    def capacity(self) -> int:
        """Pages that can be held at once."""
        return len(self._pages) - 1

    @property
    def available(self) -> int:
        """Pages that nobody holds."""
        return len(self._free) + len(self._idle)

    def take(self, count: int) -> list[int] | None:
        """``count`` pages, held once each, or None if there are not so many."""
        if count > self.available:
            return None
        taken = []
        for _ in range(count):
            if not self._free:
                self._forget(next(iter(self._idle)))
            page = self._free.pop()
            self._pages[page].holders = 1
            taken.append(page)
        return taken

    def hold(self, page: int) -> None:
        """One more holder of a page that is held, or whose prefix is known."""
        self._pages[page].holders += 1
        self._idle.pop(page, None)

    def release(self, pages: Sequence[int]) -> None:
        """One holder less of each; the last pages of a prefix are forgotten before its first."""
        for page in reversed(pages):
            state = self._pages[page]
            state.holders -= 1
            if state.holders == 0:
                if state.key is None:
                    self._free.append(page)
                else:
                    self._idle[page] = None

    def find(self, tokens: Sequence[int]) -> list[int]:
        """Pages of the longest known prefix of ``tokens``, in whole blocks."""
        pages: list[int] = []
        block = ROOT
        for start in range(0, len(tokens) - self.block_size + 1, self.block_size):
            page = self._known.get((block, tuple(tokens[start : start + self.block_size])))
            if page is None:
                break
            pages.append(page)
            block = self._pages[page].block
        return pages

    def publish(self, before: int | None, page: int, tokens: tuple[int, ...]) -> None:
        """Makes a block findable: ``page`` holds ``tokens`` after those of page ``before``.

        The caller has found that no other page holds them.
        """
        parent = ROOT if before is None else self._pages[before].block
        key = (parent, tokens)
        assert key not in self._known, "published twice"
        self._blocks += 1
        self._pages[page].block, self._pages[page].key = self._blocks, key
        self._known[key] = page

    def _forget(self, page: int) -> None:
        state = self._pages[page]
        del self._idle[page]
        if state.key is not None:
            del self._known[state.key]
        state.block, state.key = ROOT, None
        self._free.append(page)


def shared_prefix_tokens(prompts: Sequence[Sequence[int]], block_size: int) -> list[int]:
    """For each prompt, the tokens in whole blocks that an earlier prompt begins with too.

    A function of the prompts alone, whatever the engine's cache happens to hold. The last token
    of a prompt is never counted, since it is run again to draw what follows.
    """
    seen: set[tuple[int, tuple[int, ...]]] = set()
    ids: dict[tuple[int, tuple[int, ...]], int] = {}
    shared = []
    for prompt in prompts:
        block, count, new = ROOT, 0, False
        for start in range(0, len(prompt) - block_size, block_size):
            key = (block, tuple(prompt[start : start + block_size]))
            if key not in seen:
                new = True
                seen.add(key)
                ids[key] = len(seen)
            elif not new:
                count += block_size
            block = ids[key]
        shared.append(count)
    return shared
