import dataclasses
import re

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from jax.extend.random import threefry_2x32

from model.engine.rules import Rules
from model.engine.sampler import (
    Rows,
    change_logits,
    describe,
    draw,
    filter_logits,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    sample,
)
from model.engine.state import empty_knobs, set_knobs
from model.engine.tables import empty_masks, empty_tables
from schemas.sampling import MAX_REPETITION_PENALTY, SamplingParams
from tests.model.engine import plain

LOGITS = arrays(
    np.float32,
    (4, 40),
    elements=st.floats(-30, 30, width=32, allow_subnormal=False)
    | st.sampled_from([-1.0, 0.0, -0.0, 2.0]),
)
CALLS = settings(max_examples=60, deadline=None)

keep_min_p = jax.jit(keep_min_p)
keep_top_k = jax.jit(keep_top_k)
keep_top_p = jax.jit(keep_top_p)
describe = jax.jit(describe)
sample = jax.jit(sample)


def rows(count, vocabulary=1, key=None, position=None, banned=None, **values):
    """Rows of slots 0, 1, …, that do nothing but what ``values`` say."""
    filled = dataclasses.replace(empty_knobs(count), temperature=np.ones(count, np.float32))
    if key is not None:
        values["key"] = key
    return Rows(
        knobs=dataclasses.replace(filled, **values),
        position=np.zeros(count, np.int32) if position is None else position,
        banned=np.full((count, 128), -1, np.int32) if banned is None else banned,
        tables=empty_tables(count, vocabulary),
        masks=empty_masks(count, vocabulary),
        slot=np.arange(count, dtype=np.int32),
    )


@CALLS
@given(LOGITS, arrays(np.int32, 4, elements=st.integers(1, 40)))
def test_top_k(logits, k):
    kept = np.asarray(keep_top_k(logits, k)) > -np.inf
    for row, count, mask in zip(logits, k, kept, strict=True):
        assert (mask == (row >= np.sort(row)[-count])).all()


@CALLS
@given(LOGITS, arrays(np.float32, 4, elements=st.floats(2**-40, 1, width=32)))
def test_top_p(logits, p):
    kept = np.asarray(keep_top_p(logits, p)) > -np.inf
    for row, share, mask in zip(logits.astype(np.float64), p, kept, strict=True):
        weights = np.exp(row - row.max())
        weights /= weights.sum()
        # The probability of all tokens that are at most as likely, itself included.
        reached = np.array([weights[row <= x].sum() for x in row])
        clear = abs(reached - (1 - share)) > 1e-5
        assert (mask == (reached >= 1 - share))[clear].all()
        assert mask[row.argmax()]


@CALLS
@given(LOGITS, st.integers(0, 39))
def test_describe(logits, token):
    draws = describe(logits, np.full(4, token, np.int32), np.full(4, 20, np.int32))
    exact = logits.astype(np.float64)
    logprobs = exact - np.log(np.exp(exact - exact.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logprobs -= exact.max(-1, keepdims=True)
    np.testing.assert_allclose(draws.logprob, logprobs[:, token], atol=1e-4)
    assert (np.asarray(draws.rank) == (logits >= logits[:, token : token + 1]).sum(-1)).all()
    for row, top, values in zip(logprobs, draws.top_tokens, draws.top_logprobs, strict=True):
        np.testing.assert_allclose(values, np.sort(row)[::-1][:20], atol=1e-4)
        np.testing.assert_allclose(values, row[np.asarray(top)], atol=1e-4)


@CALLS
@given(LOGITS, arrays(np.float32, 4, elements=st.floats(0, 1, width=32)))
def test_min_p(logits, p):
    kept = np.asarray(keep_min_p(logits, p)) > -np.inf
    for row, share, mask in zip(logits.astype(np.float64), p, kept, strict=True):
        likely = plain.softmax(row)
        clear = abs(likely - share * likely.max()) > 1e-6 * likely.max()
        assert (mask == (likely >= share * likely.max()))[clear].all()
        assert mask[row.argmax()]


@pytest.mark.parametrize("top_p", [1e-38, 1e-9, 6e-8, 1e-6])
def test_the_smallest_top_p_keeps_the_likeliest(top_p):
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(4, 131072)).astype(np.float32)
    kept = np.asarray(keep_top_p(logits, np.full(4, top_p, np.float32))) > -np.inf
    assert (kept.sum(-1) == 1).all()
    assert kept[range(4), logits.argmax(-1)].all()


def test_temperature_zero_takes_the_first_of_the_likeliest():
    logits = np.array([[0, 3, 3, 1], [5, 0, 0, 5]], np.float32)
    draws = sample(logits, rows(2, 4, temperature=np.zeros(2, np.float32)))
    assert draws.token.tolist() == [1, 0]


def test_banned_tokens_are_not_drawn_but_keep_their_logprob():
    logits = np.zeros((2, 600), np.float32)
    logits[:, 7] = 50
    banned = np.full((2, 128), -1, np.int32)
    banned[0, 0] = 7
    draws = sample(logits, rows(2, 600, banned=banned, logprobs=np.zeros(2, np.int32)))
    assert draws.token[0] != 7
    assert draws.token[1] == 7
    assert draws.rank[1] == 1
    assert draws.logprob[0] < -40


def test_a_row_draws_the_same_whatever_the_others_want():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 700)).astype(np.float32) * 3
    key = rng.integers(0, 2**32, (8, 2), np.uint32)
    alone = sample(logits, rows(8, 700, key=key))
    banned = np.full((8, 128), -1, np.int32)
    banned[6, :4] = 3, 4, 5, 6
    others = rows(
        8,
        700,
        key=key,
        banned=banned,
        temperature=np.array([1, 0, 0.5, 2, 1, 1, 1, 1], np.float32),
        top_k=np.array([0, 0, 5, 0, 7, 0, 0, 0], np.int32),
        top_p=np.array([1, 1, 1, 0.3, 0.9, 1, 1, 1], np.float32),
        min_p=np.array([0, 0, 0, 0.1, 0, 0, 0.2, 0], np.float32),
        repetition=np.array([1, 1.5, 1, 1, 1, 1, 0.7, 1], np.float32),
        presence=np.array([0, 0, 1, 0, 0, 0, 0, 0], np.float32),
        frequency=np.array([0, 0, 0, 0, -1, 0, 0, 0], np.float32),
        masked=np.array([0, 1, 0, 0, 0, 0, 1, 0], bool),
        biases=np.array([0, 0, 0, 3, 0, 0, 0, 0], np.int32),
        bad_tokens=np.array([0, 0, 3, 0, 0, 0, 0, 0], np.int32),
        logprobs=np.array([-1, 3, -1, 0, 20, -1, -1, -1], np.int32),
    )
    # What is left in the tables of a slot from its former owner is nobody's.
    tables = others.tables
    tables.counts[:] = rng.integers(0, 2**16, tables.counts.shape, np.uint16)
    others.masks[:] = rng.integers(0, 2**32, others.masks.shape, np.uint32)
    tables.bias_ids[:], tables.biases[:] = rng.integers(0, 700, tables.bias_ids.shape), 5.0
    tables.words[:], tables.first[:], tables.last[:] = tables.bias_ids, True, True
    mixed = sample(logits, others)
    for row in (0, 5, 7):
        assert alone.token[row] == mixed.token[row]
        assert alone.logprob[row] == mixed.logprob[row]


def test_what_no_row_asks_for_stands_behind_a_branch():
    """Features cost nothing unused: on the way that is always taken, no row is edited or masked."""
    jaxpr = jax.make_jaxpr(sample)(np.zeros((4, 600), np.float32), rows(4, 600))

    def always(jaxpr):
        for eqn in jaxpr.eqns:
            inner = [p.jaxpr for p in eqn.params.values() if hasattr(p, "jaxpr")]
            if eqn.primitive.name == "cond":
                continue
            if inner:
                yield from (found for j in inner for found in always(j))
            else:
                yield eqn.primitive.name, max(v.aval.size for v in eqn.outvars)

    whole_rows = {name for name, size in always(jaxpr.jaxpr) if size >= 4 * 600}
    assert whole_rows <= {
        "max",
        "reduce_max",
        "sub",
        "exp",
        "pad",
        "reshape",
        "ge",
        "eq",
        "is_finite",
        "select_n",
        "broadcast_in_dim",
        "stop_gradient",
    }, whole_rows


def test_no_vocabulary_is_sorted():
    """Whatever is asked: filters count, and the likeliest few are selected."""
    lowered = jax.jit(sample).lower(np.zeros((4, 131072), np.float32), rows(4, 131072))
    program = lowered.compile().as_text()
    assert "TopK" in program
    assert not re.search(r"\bsort\(", program)


@CALLS
@given(
    arrays(np.float32, (3, 1300), elements=st.floats(-9, 9, width=32) | st.just(-np.inf)),
    arrays(np.uint32, (3, 2), elements=st.integers(0, 2**32 - 1)),
    st.integers(0, 8191),
)
def test_a_draw_is_the_inverse_of_the_running_sum(logits, key, position):
    """Of blocks of 512 tokens, then within the block: a word of the position's two for each."""
    logits[:, 7] = 0.0
    drawn = np.asarray(draw(logits, key, np.full(3, position, np.int32)))
    for row, own, token in zip(logits, key, drawn, strict=True):
        words = np.asarray(threefry_2x32(own, np.array([position, 0], np.uint32))) >> 8
        weights = np.exp(np.append(row, np.full(236, -np.inf)).astype(np.float64)).reshape(3, 512)
        block, place = divmod(int(token), 512)
        for some, at, word in (
            (weights.sum(-1), block, words[0]),
            (weights[block], place, words[1]),
        ):
            running = np.cumsum(some) / some.sum()
            before = running[at] - some[at] / some.sum()
            assert some[at] > 0
            assert before - 1e-5 <= word / 2**24 <= running[at] + 1e-5


@pytest.mark.parametrize("penalty", [MAX_REPETITION_PENALTY, 1 / MAX_REPETITION_PENALTY])
def test_the_largest_penalties_leave_numbers(penalty):
    params = SamplingParams(repetition_penalty=penalty, temperature=0.01)
    some = rows(1, 4)
    with np.errstate(all="raise"):
        set_knobs(some.knobs, 0, (0, 0), params, Rules(stop_ids=()))
    some.tables.counts[0, :2] = 1
    logits = np.array([[1000, -1000, 0, 5]], np.float32)
    kept = np.asarray(filter_logits(change_logits(logits, some), some.knobs))
    assert np.isfinite(kept).all()
