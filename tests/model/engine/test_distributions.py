"""The distributions that tokens are drawn from, against exact ones, at the released vocabulary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config import GROK_1
from model.engine.request import Request
from model.engine.rules import resolve
from model.engine.sampler import change_logits, draw, filter_logits, sample
from model.engine.state import set_knobs
from schemas.sampling import SamplingParams
from tests.model.engine import plain
from tests.model.engine.test_sampler import rows


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


@functools.partial(jax.jit, static_argnums=(2, 3))
def count_draws(logits, seed, rounds, kinds=1):
    """[kinds, V] how often each token is drawn by every so many-th row, with a key each."""
    kind = jnp.arange(len(logits)) % kinds

    def body(i, counts):
        row = jnp.arange(len(logits), dtype=jnp.uint32)
        key = jnp.stack([row, jnp.full_like(row, seed)], axis=-1)
        token = draw(logits, key, jnp.full(len(logits), i, jnp.int32))
        return counts.at[kind, token].add(1)

    return jax.lax.fori_loop(0, rounds, body, jnp.zeros((kinds, logits.shape[-1]), jnp.int32))


def test_draws_have_the_right_distribution_over_a_large_vocabulary():
    rng = np.random.default_rng(1)
    logits = np.tile(rng.normal(size=131072).astype(np.float32) * 2, (64, 1))
    counts = np.asarray(count_draws(logits, 3, 10000))[0]
    weights = np.exp(logits[0].astype(np.float64))
    assert abs(chi_square(counts, weights / weights.sum())) < 5


MIXED = [
    SamplingParams(temperature=1.7, top_k=100, top_p=0.8),
    SamplingParams(min_p=0.02),
    SamplingParams(temperature=0.7, presence_penalty=1.5, frequency_penalty=-0.2),
    SamplingParams(repetition_penalty=1.3, top_k=5000),
    SamplingParams(logit_bias={7: 9.5, 8: -100, 131071: 11}, top_p=0.97),
    SamplingParams(allowed_token_ids=range(100, 131072, 1000)),
    SamplingParams(temperature=1.3, min_p=1e-4, top_k=2000, top_p=0.99, repetition_penalty=0.8),
    SamplingParams(),
    SamplingParams(top_p=0.98, temperature=1.2),
    SamplingParams(allowed_token_ids=range(9, 131072, 500)),
]

DRAWN = (4, 4, 9, 100, 131070)
"""What rows have drawn before."""

WORDS = {
    8: ((17,), (131070, 11), (9, 100, 131070, 12), (4, 13), (100, 131070, 14, 18)),
    9: ((509,), (131070, 1009)),
}
"""Bad words by place in ``MIXED``: some one token long, some begun, one begun and not yet due, one
that does not follow what was drawn."""

BANNED = {8: (15, 16), 9: (1509,)}
"""Ids that may not be drawn now, such as EOS before ``min_tokens``, by place in ``MIXED``."""


def watch(tables, row, words):
    """Writes a row's bad words into tables, with how far each has been drawn."""
    at = 0
    for word in words:
        for i, token in enumerate(word):
            tables.words[row, at] = token
            tables.first[row, at], tables.last[row, at] = i == 0, i == len(word) - 1
            tables.matched[row, at] = DRAWN[-i - 1 :] == word[: i + 1]
            at += 1
    return at


@pytest.mark.slow
def test_mixed_filters_have_the_right_distributions_over_a_large_vocabulary():
    vocabulary, copies, rounds = 131072, 8, 3000
    rng = np.random.default_rng(2)
    logits = rng.normal(size=vocabulary).astype(np.float32) * 2.5
    # Banned tokens are likely ones, so that one that is drawn all the same is seen.
    logits[[11, 12, 13, 15, 16, 17, 18, 509, 1009, 1509]] = 9
    prompt, drawn = (3, 4, 5), DRAWN
    count = len(MIXED) * copies
    banned = np.full((count, 128), -1, np.int32)
    some = rows(count, vocabulary, banned=banned)
    for row in range(count):
        kind = row % len(MIXED)
        params = MIXED[kind]
        banned[row, : len(BANNED.get(kind, ()))] = BANNED.get(kind, ())
        rules = resolve(
            Request(prompt_token_ids=prompt, params=params), GROK_1, 8192, None, lambda: None
        )
        set_knobs(some.knobs, row, (row, 0), params, rules)
        tables = some.tables
        some.knobs.bad_tokens[row] = watch(tables, row, WORDS.get(kind, ()))
        tables.counts[row] = np.bincount(drawn, minlength=vocabulary)
        tables.counts[row, list(prompt)] |= 1 << 15
        if rules.first_mask is not None:
            some.masks[row] = rules.first_mask
        for column, (token_id, bias) in enumerate(params.logit_bias):
            tables.bias_ids[row, column], tables.biases[row, column] = token_id, bias
    every = np.tile(logits, (count, 1))
    filtered = filter_logits(change_logits(every, some), some.knobs)
    tokens = np.asarray(jax.jit(sample)(every, some).token)
    assert (tokens == np.asarray(draw(filtered, some.knobs.key, some.position))).all()
    counts = np.asarray(count_draws(filtered, 5, rounds, len(MIXED)))
    for kind, params in enumerate(MIXED):
        changed = plain.changed(
            logits, params, prompt, drawn, WORDS.get(kind, ()), BANNED.get(kind, ())
        )
        exact = plain.softmax(plain.filtered(changed, params))
        assert counts[kind].sum() == copies * rounds
        assert counts[kind][exact == 0].sum() == 0, params
        assert abs(chi_square(counts[kind], exact)) < 5, params


def test_draws_of_neighbouring_keys_and_positions_are_unrelated():
    logits = jnp.zeros((64, 1000))
    rows = jnp.arange(64, dtype=jnp.uint32)
    key = jnp.stack([rows, rows * 0], -1)
    tokens = np.array([draw(logits, key, jnp.full(64, i, jnp.int32)) for i in range(64)])
    assert len(np.unique(tokens)) > 950
    assert abs(np.corrcoef(tokens[:-1].ravel(), tokens[1:].ravel())[0, 1]) < 0.06
    assert abs(np.corrcoef(tokens[:, :-1].ravel(), tokens[:, 1:].ravel())[0, 1]) < 0.06
