import collections

import hypothesis.strategies as st
from hypothesis import given, settings

from model.engine.cache import PagePool
from model.engine.request import Request
from model.engine.scheduler import Scheduler
from model.engine.scoring import ScoreRequest
from schemas.sampling import SamplingParams

SIZE = 4


def request(prompt, max_tokens=4, n=1, scored=False):
    params = SamplingParams(max_tokens=max_tokens, n=n, prompt_logprobs=0 if scored else None)
    return Request(prompt_token_ids=tuple(prompt), params=params)


def scores(context, *continuations):
    return ScoreRequest(
        context_token_ids=tuple(context), continuations=tuple(map(tuple, continuations))
    )


def scheduler(pages=64, slots=4, groups=1):
    return Scheduler(PagePool(pages, SIZE), slots, groups)


def spans(segments):
    return [(g.start, g.start + len(g.tokens)) for g in segments]


tokens = st.lists(st.integers(0, 1), min_size=1, max_size=20)
requests = st.one_of(
    st.builds(request, tokens, st.integers(1, 9), st.integers(1, 5), st.booleans()),
    tokens.flatmap(
        lambda context: st.builds(
            scores,
            st.just(context),
            *[st.lists(st.integers(0, 1), min_size=1, max_size=9)] * (1 + len(context) % 4),
        )
    ),
)


@settings(max_examples=200)
@given(st.lists(requests, max_size=12), st.randoms(use_true_random=False))
def test_every_token_is_computed_once_before_its_sequence_goes_on(wanted, random):
    pool = PagePool(24, SIZE)
    s = Scheduler(pool, slots=4, groups=2)
    for i, r in enumerate(wanted):
        s.add(r, i)
    content: dict[int, tuple[int, ...]] = {}  # page -> the tokens up to its end
    running, done, asked = [], [], collections.Counter()
    while not s.idle:
        s.admit()
        round_ = s.plan(rows=8, blocks=3)
        segments = round_.segments
        assert segments or round_.admissions or running or s.admitted, "stuck"
        assert sum(len(g.tokens) for g in segments) <= 8
        assert sum(len(g.asks) for g in segments) <= 8
        assert len(segments) <= 3
        assert len({g.prompt.scored for g in segments}) <= 1
        for source, target in round_.copies:
            content[target] = content[source]
        written = [
            (g.pages[-1], (g.start + i) % SIZE) for g in segments for i, _ in enumerate(g.tokens)
        ]
        assert len(written) == len(set(written)), "two rows write one place"
        for g in segments:
            for i, page in enumerate(g.pages[:-1]):
                assert len(content[page]) == (i + 1) * SIZE
            before = content[g.pages[-1]] if g.start % SIZE else ()
            if not before and g.pages[:-1]:
                before = content[g.pages[-2]]
            assert len(before) >= g.start
            content[g.pages[-1]] = before[: g.start] + g.tokens
            for position, target, sample in g.asks:
                known = content[g.pages[-1]][: position + 1]
                asked[g.prompt.ticket, sample, (*known, target)] += 1
        for a in round_.admissions:
            if a.copy:
                content[a.copy[1]] = content[a.copy[0]]
            r = a.sequence.request
            cached = r.prompt_token_ids[:-1]
            for i in range(-(-len(cached) // SIZE)):
                assert content[a.sequence.pages[i]] == cached[: (i + 1) * SIZE]
            longest = len(r.prompt_token_ids) + r.params.max_tokens - 1
            assert len(a.sequence.pages) == -(-longest // SIZE)
            running.append(a.sequence)
        private = [p for q in running for p in q.pages[len(q.prompt.pages) :]]
        assert len(private) == len(set(private)), "two sequences write one page"
        while running and (random.random() < 0.5 or not segments):
            sequence = running.pop(random.randrange(len(running)))
            s.finish(sequence)
            done.append((sequence.prompt.ticket, sequence.index))
    drawn = [(i, r) for i, r in enumerate(wanted) if isinstance(r, Request)]
    assert sorted(done) == [(i, k) for i, r in drawn for k in range(r.params.n)]
    due = collections.Counter()
    for i, r in enumerate(wanted):
        if isinstance(r, ScoreRequest):
            for k, continuation in enumerate(r.continuations):
                whole = r.context_token_ids + continuation
                first = len(r.context_token_ids)
                due.update((i, k, whole[: at + 1]) for at in range(first, len(whole)))
        elif r.params.prompt_logprobs is not None:
            ids = r.prompt_token_ids
            due.update((i, 0, ids[: at + 1]) for at in range(1, len(ids)))
    assert asked == due
    assert pool.available == pool.capacity
    assert s.waiting == 0


def test_a_shared_prefix_is_computed_once():
    s = scheduler()
    for tail in range(3):
        s.add(request([7] * 8 + [tail, 1]), None)
    s.admit()
    round_ = s.plan(rows=100, blocks=100)
    assert spans(round_.segments) == [(0, 4), (4, 8), (8, 9), (8, 9), (8, 9)]
    assert len(round_.admissions) == 3


def test_scored_prompts_share_nothing():
    s = scheduler()
    for scored in (False, True, False):
        s.add(request([7] * 9, scored=scored), None)
    s.admit()
    rounds = [s.plan(rows=100, blocks=100) for _ in range(3)]
    assert [len(r.segments) for r in rounds] == [2, 2, 0]
    assert len(rounds[-1].admissions) == 1


def test_samples_share_their_prompt_and_copy_its_tail():
    s = scheduler()
    s.add(request([1, 2, 3, 4, 5, 6, 7], n=3), None)
    s.admit()
    round_ = s.plan(rows=100, blocks=100)
    assert spans(round_.segments) == [(0, 4), (4, 6)]
    tail = round_.segments[-1].pages[-1]
    assert [a.copy[0] for a in round_.admissions] == [tail] * 3
    assert len({a.copy[1] for a in round_.admissions}) == 3


def test_a_scored_context_is_computed_once():
    s = scheduler()
    context = [1, 2, 3, 4, 5, 6]
    s.add(scores(context, [7], [8, 9], [8, 9, 9, 9]), "choices")
    s.add(scores([1, 2, 3, 4, 0], [7, 7]), "shares a block")
    s.admit()
    first, second = (s.plan(rows=100, blocks=100) for _ in range(2))
    assert spans(first.segments) == [(0, 4), (4, 6), (4, 6)]
    assert first.copies == []
    assert first.segments[1].asks == [(5, 7, 0), (5, 8, 1), (5, 8, 2)]
    assert first.segments[2].asks == [(4, 7, 0), (5, 7, 0)]
    assert spans(second.segments) == [(6, 7), (6, 8), (8, 9)]
    assert [source for source, _ in second.copies] == [first.segments[1].pages[-1]] * 2
    assert s.idle


def test_a_prompt_takes_the_blocks_that_scoring_left():
    s = scheduler()
    s.add(scores([7] * 9, [1]), None)
    s.admit()
    s.plan(rows=100, blocks=100)
    s.add(request([7] * 10), None)
    s.admit()
    assert spans(s.plan(rows=100, blocks=100).segments) == [(8, 9)]


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
