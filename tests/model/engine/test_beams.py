"""Beam search: by its plain definition, on any numbers and on the golden model's truth."""

import functools
import threading
import time
import zlib
from concurrent.futures import Future

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from model.checkpoint.source import open_checkpoint
from model.engine import loop
from model.engine.beams import Pages
from model.engine.request import Request, TokenLogprob
from model.engine.rules import Rules
from model.engine.search import Search
from model.engine.sequence import Prompt, Sequence
from model.engine.ticket import open_ticket
from schemas.error import ErrorCode
from schemas.sampling import MAX_LOGPROBS, InvalidParameter, SamplingParams
from tests.model import reference
from tests.model.engine import plain
from tests.model.engine.conftest import GOLDEN, greedy

PROMPTS = [tuple(row["prompt"]) for row in greedy("greedy_exact")]


@st.composite
def searches(draw):
    """A vocabulary, what seeds its numbers, a prompt's length and parameters."""
    width = draw(st.integers(1, 4))
    params = SamplingParams(
        beam_width=width,
        n=draw(st.integers(1, width)),
        max_tokens=draw(st.integers(1, 6)),
        length_penalty=draw(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 3.0])),
    )
    return draw(st.integers(1, 12)), draw(st.integers(0, 999)), draw(st.integers(1, 5)), params


@given(searches(), st.sets(st.integers(0, 3), max_size=2))
def test_a_search_finds_what_its_definition_says(given, stop_ids):
    vocabulary, seed, length, params = given
    prompt, stops = tuple(range(length)), tuple(sorted(stop_ids))

    def logprobs(tokens):
        rng = np.random.default_rng([seed, zlib.crc32(repr(tokens).encode())])
        logits = rng.integers(-3, 3, vocabulary).astype(float)  # so that there are ties
        return logits - np.log(np.exp(logits).sum())

    request = Request(prompt_token_ids=prompt, params=params)
    search = Search(open_ticket(request, Rules(stop_ids=stops), Future()))
    while not search.done:
        told = []
        for beam in search.beams:
            after = logprobs((*prompt, *(fact.token_id for fact in beam.facts())))
            best = np.argsort(-after, kind="stable")[: 2 * params.beam_width]
            told.append([TokenLogprob(int(t), float(after[t]), 0) for t in best])
        search.advance(told)
    found = [(tuple(f.token_id for f in b.facts()), b.total) for b in search.best()]
    assert found == plain.beam_search(logprobs, prompt, params, stops)


@settings(max_examples=50)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(2, 4), st.data())
def test_beams_read_what_they_wrote(prompt_tokens, width, size, data):
    """Whatever goes on from whatever, and no more pages are touched than were reserved."""
    steps = data.draw(st.integers(1, 12))
    whole = (prompt_tokens - 1) // size
    own = -(-(prompt_tokens + steps) // size) - whole
    shared = list(range(100, 100 + whole))
    request = Request(prompt_token_ids=tuple(range(prompt_tokens)), params=SamplingParams())
    prompt = Prompt(request, None, request.cached_token_ids, 0, pages=shared)
    sequences = [
        Sequence(prompt, i, i, shared + list(range(i * own, (i + 1) * own))) for i in range(width)
    ]
    pages = Pages(sequences, size)
    memory = {page: [None] * size for page in [*range(width * own), *shared]}

    def write(table, position, token):
        memory[table[position // size]][position % size] = token

    for position, token in enumerate(request.cached_token_ids):
        write(pages.tables()[0], position, token)
    beams = [list(request.prompt_token_ids)]
    write(pages.tables()[0], prompt_tokens - 1, beams[0][-1])
    for step in range(steps):
        parents = data.draw(st.lists(st.integers(0, len(beams) - 1), min_size=1, max_size=width))
        copies = pages.fork(parents, prompt_tokens + step)
        for source, target in copies:
            memory[target] = list(memory[source])
        beams = [[*beams[parent], (step, i)] for i, parent in enumerate(parents)]
        for beam, table in zip(beams, pages.tables(), strict=True):
            write(table, prompt_tokens + step, beam[-1])
        for beam, table in zip(beams, pages.tables(), strict=True):
            assert [memory[table[p // size]][p % size] for p in range(len(beam))] == beam


@pytest.fixture(scope="module")
def true_logprobs():
    checkpoint = open_checkpoint(str(GOLDEN))
    weights = reference.dequantized(checkpoint)

    @functools.cache
    def after(tokens: tuple[int, ...]) -> np.ndarray:
        logits = reference.logits(checkpoint.config, weights, list(tokens))[-1]
        return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()

    return after


def found(output) -> list[tuple[tuple[int, ...], float]]:
    assert output.error is None
    return [(o.token_ids, o.cumulative_logprob) for o in output.outputs]


@pytest.mark.parametrize(
    "wish",
    [
        {"beam_width": 3, "n": 3},
        {"beam_width": 4, "n": 2, "length_penalty": 0.0},
        # Half the vocabulary ends a completion, so that many do early.
        {"beam_width": 2, "n": 2, "stop_token_ids": range(0, 1024, 2), "length_penalty": 2.0},
    ],
)
def test_the_engine_finds_what_truth_says(engine, true_logprobs, wish):
    params = SamplingParams(max_tokens=4, **wish)
    prompts = PROMPTS[:5]
    stops = (engine.config.eos_token, *params.stop_token_ids)
    for prompt, output in zip(prompts, engine.generate(prompts, params), strict=True):
        expected = plain.beam_search(true_logprobs, prompt, params, stops)
        assert [tokens for tokens, _ in found(output)] == [tokens for tokens, _ in expected]
        np.testing.assert_allclose(
            [total for _, total in found(output)], [t for _, t in expected], atol=1e-4
        )


def test_one_beam_is_greedy(engine):
    [searched] = engine.generate([PROMPTS[0]], SamplingParams(beam_width=1, max_tokens=20))
    [taken] = engine.generate([PROMPTS[0]], SamplingParams(temperature=0, max_tokens=20))
    assert searched.outputs == taken.outputs


def test_what_is_told_of_each_token(engine):
    """Log-probabilities as when the same tokens are scored, ends as when they are drawn."""
    params = SamplingParams(beam_width=4, n=4, max_tokens=40, logprobs=3, stop_token_ids=[5, 9])
    [output] = engine.generate([PROMPTS[2]], params)
    for completion in output.outputs:
        ids = completion.token_ids
        assert len(completion.logprobs) == len(ids)
        assert completion.cumulative_logprob == sum(t.logprob for t in completion.logprobs)
        for fact in completion.logprobs:
            assert len(fact.top_token_ids) == 3
            assert fact.rank <= MAX_LOGPROBS
            if fact.rank <= 3:
                assert fact.token_id == fact.top_token_ids[fact.rank - 1]
        [scored] = engine.score([(PROMPTS[2], ids)])
        assert scored.scores[0].logprob == pytest.approx(completion.cumulative_logprob, abs=1e-4)
        if completion.finish_reason == "stop":
            assert ids[-1] in (engine.config.eos_token, 5, 9)
            assert completion.stop_reason == (None if ids[-1] not in (5, 9) else ids[-1])
        else:
            assert len(ids) == 40


def test_searches_share_an_engine_with_all_else(engine):
    """More of them than there are slots for, one after another; nothing is left behind."""
    wide = SamplingParams(beam_width=5, n=5, max_tokens=12, ignore_eos=True)
    prompts = [(7, i) for i in range(9)]
    alone = [found(engine.generate([prompt], wide)[0]) for prompt in prompts[:3]]
    free = SamplingParams(max_tokens=30, ignore_eos=True)
    mixed = engine.generate([*prompts, *prompts], [wide] * 9 + [free] * 9)
    assert [found(output) for output in mixed[:3]] == alone
    assert [o.outputs[0].finish_reason for o in mixed[9:]] == ["length"] * 9
    deadline = time.monotonic() + 30
    while not engine._replicas[0].loop.idle and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine._replicas[0].loop.idle
    assert not engine._replicas[0].loop._beams


@pytest.mark.slow
def test_a_search_must_fit(engines):
    small = engines(numerics="float32", slots=2, max_context=64)
    wide = SamplingParams(beam_width=9, max_tokens=8)
    [output] = small.generate([[5, 6]], wide)
    assert output.error.code is ErrorCode.INVALID_PARAMETER
    assert output.error.param == "beam_width"
    assert "takes 9 slots" in output.error.message
    tight = engines(numerics="float32", slots=8, max_context=128, cache_tokens=256, block_size=16)
    [output] = tight.generate([[5, 6]], SamplingParams(beam_width=8, max_tokens=100))
    assert output.error.param == "beam_width"
    [output] = tight.generate([[5, 6]], SamplingParams(beam_width=2, max_tokens=100))
    assert output.error is None


class Clock:
    """The time, or a time to come."""

    ahead = 0.0
    perf_counter = staticmethod(time.perf_counter)

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


def test_a_search_that_takes_too_long(engines, monkeypatch):
    """Its row is an error, its slots are free for others, which go on as ever."""
    engine = engines(numerics="float32", slots=8, max_context=256, row_deadline=1000.0)
    short = SamplingParams(beam_width=3, max_tokens=4, ignore_eos=True)
    expected = found(engine.generate([[5, 6]], short)[0])
    clock, begun = Clock(), threading.Event()
    runner, run = engine._replicas[0].loop._runner, engine._replicas[0].loop._runner.run

    def slow():
        begun.set()
        time.sleep(0.03)
        return run()

    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(runner, "run", slow)
    wide = SamplingParams(beam_width=3, max_tokens=200, ignore_eos=True)
    future = engine.submit(Request(prompt_token_ids=(5, 6), params=wide))
    assert begun.wait(60)
    clock.ahead = 1001.0
    assert future.result(60).error.code is ErrorCode.DEADLINE_EXCEEDED
    monkeypatch.undo()
    assert [found(o) for o in engine.generate([[5, 6]] * 4, short)] == [expected] * 4


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"n": 3}, "n"),
        ({"stop": "a"}, "stop"),
        ({"min_tokens": 2}, "min_tokens"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"allowed_token_ids": [5]}, "allowed_token_ids"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ],
)
def test_what_does_not_go_together(wish, param):
    with pytest.raises(InvalidParameter) as raised:
        SamplingParams(beam_width=2, **wish)
    assert raised.value.param == param
    assert "beam_width" in str(raised.value)
