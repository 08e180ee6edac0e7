import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from model.engine.sampler import (
    Knobs,
    describe,
    draw,
    filter_logits,
    keep_top_k,
    keep_top_p,
    sample,
)

LOGITS = arrays(
    np.float32,
    (4, 40),
    elements=st.floats(-30, 30, width=32, allow_subnormal=False)
    | st.sampled_from([-1.0, 0.0, -0.0, 2.0]),
)
CALLS = settings(max_examples=60, deadline=None)

keep_top_k = jax.jit(keep_top_k)
keep_top_p = jax.jit(keep_top_p)
describe = jax.jit(describe)
sample = jax.jit(sample)


def knobs(rows, **values):
    filled = {
        "key": np.zeros((rows, 2), np.uint32),
        "position": np.zeros(rows, np.int32),
        "temperature": np.ones(rows, np.float32),
        "top_k": np.zeros(rows, np.int32),
        "top_p": np.ones(rows, np.float32),
        "banned": np.full((rows, 4), -1, np.int32),
        "logprobs": np.full(rows, -1, np.int32),
        **values,
    }
    return Knobs(**{name: jnp.asarray(value) for name, value in filled.items()})


@CALLS
@given(LOGITS, arrays(np.int32, 4, elements=st.integers(1, 40)))
def test_top_k(logits, k):
    kept = np.asarray(keep_top_k(logits, k)) > -np.inf
    for row, count, mask in zip(logits, k, kept, strict=True):
        assert (mask == (row >= np.sort(row)[-count])).all()


@CALLS
@given(LOGITS, arrays(np.float32, 4, elements=st.floats(0.015625, 1, width=32)))
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


def test_temperature_zero_takes_the_first_of_the_likeliest():
    logits = np.array([[0, 3, 3, 1], [5, 0, 0, 5]], np.float32)
    draws = sample(logits, knobs(2, temperature=np.zeros(2, np.float32)))
    assert draws.token.tolist() == [1, 0]


def test_banned_tokens_are_not_drawn_but_keep_their_logprob():
    logits = np.zeros((2, 600), np.float32)
    logits[:, 7] = 50
    banned = np.array([[7, -1, -1, -1], [-1, -1, -1, -1]], np.int32)
    draws = sample(logits, knobs(2, banned=banned, logprobs=np.zeros(2, np.int32)))
    assert draws.token[0] != 7
    assert draws.token[1] == 7
    assert draws.rank[1] == 1
    assert draws.logprob[0] < -40


def test_a_row_draws_the_same_whatever_the_others_want():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 700)).astype(np.float32) * 3
    key = rng.integers(0, 2**32, (8, 2), np.uint32)
    alone = sample(logits, knobs(8, key=key))
    others = {
        "temperature": np.array([1, 0, 0.5, 2, 1, 1, 1, 1], np.float32),
        "top_k": np.array([0, 0, 5, 0, 7, 0, 0, 0], np.int32),
        "top_p": np.array([1, 1, 1, 0.3, 0.9, 1, 1, 1], np.float32),
        "logprobs": np.array([-1, 3, -1, 0, 20, -1, -1, -1], np.int32),
        "banned": np.array([[-1] * 4] * 6 + [[3, 4, 5, 6]] + [[-1] * 4], np.int32),
    }
    mixed = sample(logits, knobs(8, key=key, **others))
    for row in (0, 5, 7):
        assert alone.token[row] == mixed.token[row]
        assert alone.logprob[row] == mixed.logprob[row]


def chi_square(counts, probabilities):
    """Distance from the expected counts in standard deviations, cells under 5 put together."""
    expected = probabilities * counts.sum()
    small = expected < 5
    cells = np.append(counts[~small], counts[small].sum())
    wanted = np.append(expected[~small], expected[small].sum())
    keep = wanted > 0
    statistic = ((cells - wanted)[keep] ** 2 / wanted[keep]).sum()
    freedom = keep.sum() - 1
    return (statistic - freedom) / np.sqrt(2 * freedom)


@functools.partial(jax.jit, static_argnums=2)
def count_draws(logits, seed, rounds):
    """How often each token is drawn, over rows x rounds draws with a key each."""

    def body(i, counts):
        rows = jnp.arange(len(logits), dtype=jnp.uint32)
        key = jnp.stack([rows, jnp.full_like(rows, seed)], axis=-1)
        token = draw(logits, key, jnp.full(len(logits), i, jnp.int32))
        return counts.at[token].add(1)

    return jax.lax.fori_loop(0, rounds, body, jnp.zeros(logits.shape[-1], jnp.int32))


def test_draws_have_the_right_distribution_over_a_large_vocabulary():
    rng = np.random.default_rng(1)
    logits = np.tile(rng.normal(size=131072).astype(np.float32) * 2, (64, 1))
    counts = np.asarray(count_draws(logits, 3, 10000))
    weights = np.exp(logits[0].astype(np.float64))
    assert abs(chi_square(counts, weights / weights.sum())) < 5


def test_filtered_draws_have_the_right_distribution():
    rng = np.random.default_rng(2)
    row = rng.normal(size=1000).astype(np.float32) * 2
    logits = np.tile(row, (256, 1))
    some = knobs(
        256,
        temperature=np.full(256, 1.7, np.float32),
        top_k=np.full(256, 100, np.int32),
        top_p=np.full(256, 0.8, np.float32),
    )
    counts = np.asarray(count_draws(filter_logits(logits, some), 5, 400))
    scaled = row.astype(np.float64) / 1.7
    order = np.argsort(-scaled)[:100]
    weights = np.exp(scaled[order])
    weights /= weights.sum()
    kept = order[: (weights.cumsum() < 0.8).sum() + 1]
    probabilities = np.zeros(1000)
    probabilities[kept] = np.exp(scaled[kept])
    probabilities /= probabilities.sum()
    assert counts[probabilities == 0].sum() == 0
    assert abs(chi_square(counts, probabilities)) < 5


def test_draws_of_neighbouring_keys_and_positions_are_unrelated():
    logits = jnp.zeros((64, 1000))
    rows = jnp.arange(64, dtype=jnp.uint32)
    key = jnp.stack([rows, rows * 0], -1)
    tokens = np.array([draw(logits, key, jnp.full(64, i, jnp.int32)) for i in range(64)])
    assert len(np.unique(tokens)) > 950
    assert abs(np.corrcoef(tokens[:-1].ravel(), tokens[1:].ravel())[0, 1]) < 0.06
    assert abs(np.corrcoef(tokens[:, :-1].ravel(), tokens[:, 1:].ravel())[0, 1]) < 0.06
