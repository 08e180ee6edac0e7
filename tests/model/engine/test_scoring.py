"""Scores through the engine: exact, whatever the neighbours, and each context computed once."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from model import evaluation
from model.engine.request import Request
from model.engine.scoring import ScoreRequest
from schemas.error import ErrorCode
from schemas.sampling import SamplingParams
from tests.model.engine.conftest import truth

EXACT = truth("exact")


def pieces():
    """Golden sequences as context and continuation, with the truth about the latter."""
    for n, (tokens, logprob, top1, gap) in enumerate(
        zip(EXACT.sequences, EXACT.logprob, EXACT.top1, EXACT.gap, strict=True)
    ):
        cut = 1 + 7 * n % (len(tokens) - 1)
        greedy = top1[cut - 1 : -1] == np.array(tokens[cut:])
        clear = gap[cut - 1 : -1] > 1e-3
        yield tokens[:cut], tokens[cut:], logprob[cut:], greedy, clear


def test_float32_is_exact(engines):
    wanted = list(pieces())
    outputs = engines(numerics="float32").score([(c, k) for c, k, *_ in wanted])
    for output, (_, tokens, logprob, greedy, clear) in zip(outputs, wanted, strict=True):
        [score] = output.scores
        assert score.token_ids == tuple(tokens)
        np.testing.assert_allclose(score.token_logprobs, logprob, rtol=1e-4, atol=1e-4)
        assert score.logprob == pytest.approx(logprob.sum(), rel=1e-4)
        if not greedy[clear].all():
            assert not score.is_greedy
        elif clear.all():
            assert score.is_greedy


def test_greedy_completions_are_greedy(engines):
    engine = engines(numerics="float32")
    prompts = [tokens[:9] for tokens in EXACT.sequences[:6]]
    drawn = engine.generate(
        prompts, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
    )
    pairs = [(p, o.outputs[0].token_ids) for p, o in zip(prompts, drawn, strict=True)]
    pairs += [(p, (*ids[:-1], (ids[-1] + 1) % 1000)) for p, ids in pairs]
    outputs = engine.score(pairs)
    assert [o.scores[0].is_greedy for o in outputs] == [True] * 6 + [False] * 6
    for output, completion in zip(outputs, drawn, strict=False):
        logprobs = [t.logprob for t in completion.outputs[0].logprobs]
        np.testing.assert_allclose(output.scores[0].token_logprobs, logprobs, atol=1e-4)


def test_a_context_is_computed_once(engines):
    engine = engines(numerics="float32")
    context = [i * 37 % 1000 for i in range(45)]
    choices = [[5], [6], [7, 8], [7, 8, 9], [i % 1000 for i in range(60)]]
    before = engine.stats()
    outputs = engine.score([(context, choice) for choice in choices])
    after = engine.stats()
    own = sum(len(choice) - 1 for choice in choices)
    assert after.prefilled_tokens - before.prefilled_tokens == len(context) + own
    assert after.scored_tokens - before.scored_tokens == sum(map(len, choices))
    assert after.decode_rows == before.decode_rows
    apart = [engine.score([(context, choice)])[0].scores for choice in choices]
    assert [output.scores for output in outputs] == apart


@pytest.mark.parametrize("numerics", ["float32", "bf16"])
def test_scores_do_not_depend_on_what_runs_beside_them(engines, numerics):
    engine = engines(numerics=numerics)
    pairs = [(c, k) for c, k, *_ in pieces()] + [
        (EXACT.sequences[0][:cut], EXACT.sequences[n][-cut:])
        for cut in (16, 17, 31)
        for n in (1, 2)
    ]
    alone = [engine.score([pair])[0].scores for pair in pairs]
    assert [o.scores for o in engine.score(pairs)] == alone
    assert [o.scores for o in engine.score(pairs[::-1])][::-1] == alone
    prompts = [
        engine.submit(Request(prompt_token_ids=tuple(c), params=SamplingParams(max_tokens=9)))
        for c, _ in pairs
    ]
    assert [o.scores for o in engine.score(pairs)] == alone
    assert all(p.result().error is None for p in prompts)


def test_rank_and_alternatives_are_there_if_asked(engines):
    engine = engines(numerics="float32")
    [request] = [
        ScoreRequest(context_token_ids=tuple(c), continuations=(tuple(k),), logprobs=3)
        for c, k, *_ in list(pieces())[:1]
    ]
    [future] = engine.submit_scores([request])
    [score] = future.result().scores
    for fact, logprob in zip(score.logprobs, score.token_logprobs, strict=True):
        assert fact.logprob == logprob
        assert len(fact.top_token_ids) == 3
        assert (fact.rank == 1) == (fact.top_token_ids[0] == fact.token_id)
        assert (fact.rank <= 3) == (fact.token_id in fact.top_token_ids)
    assert (
        engine.score([(request.context_token_ids, score.token_ids)])[0].scores[0].logprobs is None
    )


def test_what_cannot_be_scored_is_its_own_error(engines):
    engine = engines(numerics="float32")
    most = engine.max_context
    good = ([5, 6], [7])
    outputs = engine.score(
        [good, ([], [7]), ([5], []), ([5], [4000]), ([5] * most, [5, 5]), ([5] * most, [5]), good]
    )
    codes = [o.error and o.error.code for o in outputs]
    assert codes == [
        None,
        ErrorCode.PROMPT_EMPTY,
        ErrorCode.CONTINUATION_EMPTY,
        ErrorCode.TOKEN_ID_OUT_OF_RANGE,
        ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        None,
        None,
    ]
    assert outputs[0].scores == outputs[-1].scores != ()


@pytest.mark.slow
def test_many_continuations_and_little_room(engines):
    """More continuations than a step answers, more pages than the cache has."""
    engine = engines(numerics="float32", slots=4, max_context=64, cache_tokens=128)
    context = EXACT.sequences[0][:20]
    choices = [[i, i + 1] for i in range(150)]
    outputs = engine.score([(context, choice) for choice in choices])
    assert all(len(o.scores[0].token_logprobs) == 2 for o in outputs)
    some = [0, 63, 64, 149]
    again = engine.score([(context, choices[i]) for i in some])
    assert [o.scores for o in again] == [outputs[i].scores for i in some]


@pytest.mark.slow
def test_documents_longer_than_the_context(engines):
    engine = engines(numerics="float32", max_context=32)
    document = EXACT.sequences[0]
    assert len(document) > 2 * 32
    eos = engine.config.eos_token
    for stride in (None, 8):
        [result] = evaluation.score_documents(engine, [document], stride)
        assert result.token_ids == tuple(document)
        pairs = list(evaluation.windows(document, eos, 32, stride or 32))
        by_hand = [x for o in engine.score(pairs) for x in o.scores[0].token_logprobs]
        assert list(result.token_logprobs) == by_hand
        assert result.logprob == math.fsum(by_hand)
        perplexity = evaluation.perplexity(result.logprob, len(document))
        assert perplexity == pytest.approx(math.exp(-np.mean(by_hand)))
    whole = engines(numerics="float32")
    [result] = evaluation.score_documents(whole, [document])
    [pair] = whole.score([([eos], document)])
    assert result.token_logprobs == pair.scores[0].token_logprobs
    [nothing] = evaluation.score_documents(engine, [[]])
    assert evaluation.perplexity(nothing.logprob, 0) == 1
    assert evaluation.perplexity(-1e9, 1) == math.inf


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 12))
def test_windows_score_each_token_once_with_all_context_that_fits(count, most, stride):
    stride = min(stride, most)
    document = list(range(1, count + 1))
    at = 0
    for context, scored in evaluation.windows(document, 0, most, stride):
        assert scored == document[at : at + len(scored)]
        assert len(scored) <= (most if at == 0 else stride)
        assert context == ([0, *document][: at + 1])[-len(context) :]
        assert len(context) + len(scored) - 1 == min(most, at + len(scored))
        at += len(scored)
    assert at == count


def test_windows_are_those_of_the_harness():
    """The example of its documentation."""
    found = list(evaluation.windows(list(range(10)), -1, 4, 4))
    assert found == [([-1], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]


def test_spaces_move_to_the_continuation(trained):
    pairs = [("The answer is ", "yes"), ("The answer is", " yes"), ("", "yes"), ("a \n", "b")]
    encoded = evaluation.encode_pairs(trained, pairs, prefix=1)
    assert encoded[0] == encoded[1]
    assert encoded[2] == ([1], trained.encode("yes"))
    for (context, continuation), (left, right) in zip(pairs, encoded, strict=True):
        assert trained.decode(left + right) == context + continuation
    assert encoded[3][0] == trained.encode("a")
    with_bos = evaluation.encode_pairs(trained, pairs, prefix=1, bos=True)
    assert [left for left, _ in with_bos][2:] == [
        [trained.bos_id],
        [trained.bos_id, *encoded[3][0]],
    ]
