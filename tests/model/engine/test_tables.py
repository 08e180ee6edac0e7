"""Biases, penalties and masks against their plain definitions, slot by slot."""

import dataclasses
import functools
from concurrent.futures import Future

import hypothesis.strategies as st
import jax
import numpy as np
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from model.engine.batch import table_rows
from model.engine.request import Request
from model.engine.rules import Rules, pack_bits
from model.engine.sampler import Rows, change_logits, filter_logits
from model.engine.sequence import Prompt, Sequence
from model.engine.state import empty_knobs, set_knobs
from model.engine.tables import empty_masks, empty_rows, empty_tables, fill_tables, record_draws
from model.engine.ticket import open_ticket
from schemas.sampling import SamplingParams
from tests.model.engine import plain

VOCABULARY = 70  # no multiple of a mask's words
SLOTS = 6
FIRST_SLOT = 12  # of this device, as if it were the third
TOKENS = st.integers(0, VOCABULARY - 1)
FEW = st.integers(0, 3)  # so that bad words and repetitions come about
LOGITS = arrays(np.float32, VOCABULARY, elements=st.floats(-30, 30, width=32))

_fill, _record, _change, _filter = map(
    jax.jit, (fill_tables, record_draws, change_logits, filter_logits)
)


@st.composite
def requests(draw):
    """A request, and its bad words as ids."""
    numbers = functools.partial(st.floats, width=32)
    params = SamplingParams(
        temperature=draw(st.sampled_from([0.5, 1.0, 1.7])),
        top_k=draw(st.integers(0, VOCABULARY + 2)),
        top_p=draw(st.sampled_from([1.0, 0.9, 0.5, 0.05])),
        min_p=draw(st.sampled_from([0.0, 0.01, 0.3])),
        repetition_penalty=draw(st.just(1.0) | numbers(0.25, 4)),
        presence_penalty=draw(st.just(0.0) | numbers(-2, 2)),
        frequency_penalty=draw(st.just(0.0) | numbers(-2, 2)),
        logit_bias=draw(st.dictionaries(TOKENS, numbers(-100, 100), max_size=5)),
        allowed_token_ids=draw(st.none() | st.lists(TOKENS, min_size=1, max_size=30)),
    )
    words = draw(st.lists(st.lists(FEW, min_size=1, max_size=4).map(tuple), max_size=4))
    prompt = draw(st.lists(TOKENS, min_size=1, max_size=9).map(tuple))
    return Request(prompt_token_ids=prompt, params=params), tuple(dict.fromkeys(words))


class Device:
    """Tables and knobs of some slots, filled and recorded in as the engine does."""

    def __init__(self):
        self.tables = empty_tables(SLOTS, VOCABULARY)
        self.masks = empty_masks(SLOTS, VOCABULARY)
        self.knobs = empty_knobs(SLOTS)
        self.slots = np.arange(SLOTS, dtype=np.int32)

    def admit(self, slot, request, words):
        allowed = request.params.allowed_token_ids
        bits = None if allowed is None else pack_bits(allowed, VOCABULARY)
        rules = Rules(stop_ids=(), bad_words=words, first_mask=bits)
        ticket = open_ticket(request, rules, Future())
        prompt = Prompt(request, ticket, request.cached_token_ids, 1)
        if bits is not None:
            self.masks[slot] = bits
        rows = empty_rows(4 * SLOTS, VOCABULARY, 16)
        table_rows([Sequence(prompt, 0, slot + FIRST_SLOT, [])], rows)
        self.tables = _fill(self.tables, rows, FIRST_SLOT)
        set_knobs(self.knobs, slot, (1, 2), request.params, rules)

    def draw(self, tokens):
        """One token for each slot, None for a slot that is not in the step."""
        slot = [4 * SLOTS if t is None else FIRST_SLOT + s for s, t in enumerate(tokens)]
        token = [t or 0 for t in tokens]
        self.tables = _record(
            self.tables,
            np.array(slot, np.int32),
            np.array(token, np.int32),
            self.knobs.penalised,
            self.knobs.bad_tokens,
            FIRST_SLOT,
        )

    def rows(self, banned=()):
        ids = np.full((SLOTS, 128), -1, np.int32)
        ids[:, : len(banned)] = banned
        return Rows(self.knobs, self.slots * 0, ids, self.tables, self.masks, self.slots)


@settings(max_examples=25)
@given(
    st.lists(requests(), min_size=SLOTS, max_size=SLOTS),
    st.lists(st.lists(st.none() | FEW, min_size=SLOTS, max_size=SLOTS), max_size=7),
    st.lists(TOKENS, max_size=4, unique=True),
    LOGITS,
    st.data(),
)
def test_logits_are_changed_as_defined(asked, drawn, banned, logits, data):
    device = Device()
    # A slot that changes its owner keeps nothing of the former.
    device.admit(0, *data.draw(requests()))
    device.draw([3] * SLOTS)
    for slot, (request, words) in enumerate(asked):
        device.admit(slot, request, words)
    for tokens in drawn:
        device.draw(tokens)
    rows = device.rows(banned)
    result = np.asarray(_change(np.tile(logits, (SLOTS, 1)), rows))
    filtered = np.asarray(_filter(result, device.knobs))
    for slot, (request, words) in enumerate(asked):
        own = tuple(tokens[slot] for tokens in drawn if tokens[slot] is not None)
        wanted = plain.changed(
            logits, request.params, request.prompt_token_ids, own, words, tuple(banned)
        )
        np.testing.assert_allclose(result[slot], wanted, atol=2e-4, rtol=1e-6)
        check_chances(filtered[slot], wanted, request.params)


def check_chances(found, logits, params):
    """Probabilities are as defined; where rounding decides whether a token is kept, either is."""
    wanted = plain.filtered(logits, params)
    kept = wanted > -np.inf
    unclear = abs(logits - logits[kept].min()) < 1e-3
    for nudge in (-1e-4, 1e-4):
        near = dataclasses.replace(
            params,
            top_p=min(1.0, params.top_p + nudge) if params.top_p < 1 else 1.0,
            min_p=max(0.0, params.min_p + nudge) if params.min_p else 0.0,
        )
        unclear |= (plain.filtered(logits, near) > -np.inf) != kept
    differ = (found > -np.inf) != kept
    assert not (differ & ~unclear).any()
    if not differ.any():
        np.testing.assert_allclose(plain.softmax(found), plain.softmax(wanted), atol=3e-5)


def test_a_full_count_stays():
    device = Device()
    request = Request(
        prompt_token_ids=(5,), params=SamplingParams(frequency_penalty=0.5, presence_penalty=1)
    )
    device.admit(0, request, ())
    counts = np.array(device.tables.counts)
    counts[0, 7] = 2**15 - 1
    device.tables = dataclasses.replace(device.tables, counts=counts)
    device.draw([7, *[None] * (SLOTS - 1)])
    assert device.tables.counts[0, 7] == 2**15 - 1
    assert device.tables.counts[0, 5] == 2**15


def test_bans_yield_to_the_mask():
    device = Device()
    request = Request(prompt_token_ids=(5,), params=SamplingParams(allowed_token_ids=[9]))
    device.admit(0, request, ((9,),))
    result = _change(np.zeros((SLOTS, VOCABULARY), np.float32), device.rows(banned=[9, 10]))
    assert np.flatnonzero(np.asarray(result[0]) > -np.inf).tolist() == [9]
    assert np.flatnonzero(np.asarray(result[1]) == -np.inf).tolist() == [9, 10]
