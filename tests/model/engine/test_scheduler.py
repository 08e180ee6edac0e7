import hypothesis.strategies as st
from hypothesis import given, settings

from model.engine.cache import PagePool
from model.engine.request import Request
from model.engine.scheduler import Scheduler
from schemas.sampling import SamplingParams

SIZE = 4


def request(prompt, max_tokens=4, n=1, scored=False):
    params = SamplingParams(max_tokens=max_tokens, n=n, prompt_logprobs=0 if scored else None)
    return Request(prompt_token_ids=tuple(prompt), params=params)


def scheduler(pages=64, slots=4, groups=1):
    return Scheduler(PagePool(pages, SIZE), slots, groups)


requests = st.builds(
    request,
    st.lists(st.integers(0, 1), min_size=1, max_size=20),
    st.integers(1, 9),
    st.integers(1, 5),
    st.booleans(),
)


@settings(max_examples=200)
@given(st.lists(requests, max_size=12), st.randoms(use_true_random=False))
def test_every_token_is_computed_once_before_its_sequence_decodes(wanted, random):
    pool = PagePool(24, SIZE)
    s = Scheduler(pool, slots=4, groups=2)
    for i, r in enumerate(wanted):
        s.add(r, i)
    content: dict[int, tuple[int, ...]] = {}  # page -> the tokens up to its end
    running, done = [], []
    while not s.idle:
        s.admit()
        segments, admissions = s.plan(rows=8, blocks=3)
        assert segments or admissions or running, "stuck"
        assert sum(g.stop - g.start for g in segments) <= 8
        assert len(segments) <= 3
        assert len({g.prompt.private for g in segments}) <= 1
        for g in segments:
            tokens = g.prompt.request.prompt_token_ids
            assert g.start % SIZE == 0
            assert g.stop == min(g.start + SIZE, len(tokens) - 1)
            content[g.pages[-1]] = tokens[: g.stop]
            for i, page in enumerate(g.pages[:-1]):
                assert content[page] == tokens[: (i + 1) * SIZE]
        for a in admissions:
            if a.copy:
                content[a.copy[1]] = content[a.copy[0]]
            tokens = a.sequence.prompt.request.prompt_token_ids
            cached = tokens[:-1]
            for i in range(-(-len(cached) // SIZE)):
                assert content[a.sequence.pages[i]] == cached[: (i + 1) * SIZE]
            longest = len(tokens) + a.sequence.prompt.request.params.max_tokens - 1
            assert len(a.sequence.pages) == -(-longest // SIZE)
            running.append(a.sequence)
        private = [p for q in running for p in q.pages[len(q.prompt.pages) :]]
        assert len(private) == len(set(private)), "two sequences write one page"
        while running and (random.random() < 0.5 or not segments):
            sequence = running.pop(random.randrange(len(running)))
            s.finish(sequence)
            done.append((sequence.prompt.ticket, sequence.index))
    assert sorted(done) == [(i, k) for i, r in enumerate(wanted) for k in range(r.params.n)]
    assert pool.available == pool.capacity
    assert s.waiting == 0


def test_a_shared_prefix_is_computed_once():
    s = scheduler()
    for tail in range(3):
        s.add(request([7] * 8 + [tail, 1]), None)
    s.admit()
    segments, admissions = s.plan(rows=100, blocks=100)
    assert [(g.start, g.stop) for g in segments] == [(0, 4), (4, 8), (8, 9), (8, 9), (8, 9)]
    assert len(admissions) == 3


def test_scored_prompts_share_nothing():
    s = scheduler()
    for scored in (False, True, False):
        s.add(request([7] * 9, scored=scored), None)
    s.admit()
    first, _ = s.plan(rows=100, blocks=100)
    second, _ = s.plan(rows=100, blocks=100)
    third, admissions = s.plan(rows=100, blocks=100)
    assert [len(first), len(second), len(third)] == [2, 2, 0]
    assert len(admissions) == 1


def test_samples_share_their_prompt_and_copy_its_tail():
    s = scheduler()
    s.add(request([1, 2, 3, 4, 5, 6, 7], n=3), None)
    s.admit()
    segments, admissions = s.plan(rows=100, blocks=100)
    assert [(g.start, g.stop) for g in segments] == [(0, 4), (4, 6)]
    tail = segments[-1].pages[-1]
    assert [a.copy[0] for a in admissions] == [tail] * 3
    assert len({a.copy[1] for a in admissions}) == 3


def test_slot_groups_fill_evenly():
    s = scheduler(slots=8, groups=4)
    for _ in range(4):
        s.add(request([1]), None)
    s.admit()
    assert sorted(slot // 2 for slot in s.running) == [0, 1, 2, 3]


def test_a_long_request_waits_for_pages_and_is_not_overtaken():
    s = scheduler(pages=7, slots=4)
    s.add(request([1] * 9, max_tokens=8), "first")
    s.add(request([2] * 9, max_tokens=8), "second")
    s.add(request([3], max_tokens=1), "third")
    s.admit()
    assert [q.prompt.ticket for q in s.running.values()] == ["first"]
    s.plan(rows=100, blocks=100)
    s.finish(next(iter(s.running.values())))
    s.admit()
    assert [q.prompt.ticket for q in s.running.values()] == ["second", "third"]
