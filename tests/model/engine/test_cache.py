import hypothesis.strategies as st
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from model.engine.cache import PagePool, shared_prefix_tokens

SIZE = 2
PROMPTS = st.lists(st.integers(0, 2), max_size=9)


class Pool(RuleBasedStateMachine):
    """Prompts are placed and released at random; a model of the pool says what must hold."""

    def __init__(self):
        super().__init__()
        self.pool = PagePool(9, SIZE)
        self.held: list[list[int]] = []
        self.content: dict[int, tuple[int, ...]] = {}

    @rule(prompt=PROMPTS, private=st.integers(0, 2))
    def place(self, prompt, private):
        whole = prompt[: len(prompt) // SIZE * SIZE]
        found = self.pool.find(whole)
        for i, page in enumerate(found):
            assert self.content[page] == tuple(whole[: (i + 1) * SIZE])
            self.pool.hold(page)
        fresh = len(whole) // SIZE - len(found)
        taken = self.pool.take(fresh + private)
        if taken is None:
            assert fresh + private > self.pool.available
            self.pool.release(found)
            return
        pages = found + taken
        for page in taken:
            self.content.pop(page, None)
        for i in range(len(found), len(whole) // SIZE):
            block = tuple(whole[i * SIZE : (i + 1) * SIZE])
            self.pool.publish(pages[i - 1] if i else None, pages[i], block)
            self.content[pages[i]] = tuple(whole[: (i + 1) * SIZE])
        self.held.append(pages)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @invariant()
    def no_page_is_lost_or_given_twice(self):
        held = {page for pages in self.held for page in pages}
        assert 0 not in held
        assert self.pool.available == self.pool.capacity - len(held)
        private = [p for pages in self.held for p in pages if p not in self.content]
        assert len(private) == len(set(private))


TestPool = Pool.TestCase


def test_a_known_prefix_outlives_its_holder_until_its_place_is_needed():
    pool = PagePool(4, SIZE)
    [page] = pool.take(1)
    pool.publish(None, page, (5, 6))
    pool.release([page])
    assert pool.find([5, 6, 7]) == [page]
    assert len(pool.take(3)) == 3
    assert pool.find([5, 6]) == []


def test_the_end_of_a_prefix_is_forgotten_before_its_beginning():
    pool = PagePool(4, SIZE)
    pages = pool.take(3)
    for i, page in enumerate(pages):
        pool.publish(pages[i - 1] if i else None, page, (i, i))
    pool.release(pages)
    pool.take(1)
    assert pool.find([0, 0, 1, 1, 2, 2]) == pages[:2]


@given(st.lists(PROMPTS, max_size=6))
def test_shared_prefix_tokens(prompts):
    for i, count in enumerate(shared_prefix_tokens(prompts, SIZE)):
        want = 0
        for earlier in prompts[:i]:
            usable = min(len(earlier) - 1, len(prompts[i]) - 1) // SIZE * SIZE
            same = 0
            while same < usable and earlier[: same + SIZE] == prompts[i][: same + SIZE]:
                same += SIZE
            want = max(want, same)
        assert count == want
