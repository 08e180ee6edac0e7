"""Drafted tokens change how soon a completion is there, and never what it is."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.engine.drafts import Histories, look_up
from model.engine.request import Request
from model.engine.rows import StepRows, choose_rows, right_rows
from model.engine.state import empty_slots
from schemas.sampling import SamplingParams
from tests.model.engine.test_invariance import answer

TRAINED = str(Path(__file__).parents[3] / "examples" / "demo-model")
"""A model that has learned enough to repeat itself."""

TEXTS = (
    "def load(path):\n    with open(path) as file:\n        return json.load(file)\n\n\n",
    "The name of the man is Peter Brown and he lives in the town of Oxford.\n",
    "name,age,city\nAnna,31,Berlin\nPeter,44,Oxford\nMaria,27,Madrid\n",
    "    assert response.status == 200\n    assert response.json() == {'ok': True}\n",
)
GREEDY = SamplingParams(temperature=0, max_tokens=120, ignore_eos=True)
PARAMS = (
    GREEDY,
    SamplingParams(temperature=0.4, max_tokens=60, n=2, logprobs=2),
    SamplingParams(temperature=0.3, top_p=0.8, max_tokens=53, ignore_eos=True, logprobs=0),
    SamplingParams(temperature=0, max_tokens=70, stop=["\n\n"], min_tokens=20),
    SamplingParams(temperature=0, max_tokens=70, stop_token_ids=list(range(300, 330))),
    SamplingParams(temperature=0, max_tokens=40, repetition_penalty=1.2),
    SamplingParams(temperature=0, max_tokens=40, bad_words=[" the", "list of"]),
    SamplingParams(temperature=0.5, max_tokens=40, logit_bias={270: 3.0}, frequency_penalty=0.4),
    SamplingParams(temperature=0, max_tokens=60, allowed_token_ids=range(3, 400)),
    SamplingParams(temperature=0.2, max_tokens=60, prompt_logprobs=1, seed=4),
)


def requests(engine, params):
    tokenizer = engine.tokenizer
    return [
        Request(
            prompt_token_ids=tuple(tokenizer.encode(text * 3 + text[:20])),
            params=params,
            address=f"{text} {i}",
        )
        for i, params in enumerate(params)
        for text in TEXTS
    ]


def answers(engine, params):
    before = engine.stats()
    futures = engine.submit_all(requests(engine, params))
    found = [answer(future.result()) for future in futures]
    after = engine.stats()
    return found, {
        name: getattr(after, name) - getattr(before, name)
        for name in ("drafted_tokens", "accepted_tokens", "completion_tokens", "decode_rows")
    }


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"numerics": "float32", "kv_cache_dtype": "int8"}, marks=pytest.mark.slow)],
)
def test_answers_are_the_same_with_drafts(engines, options):
    without, with_some = (
        engines(TRAINED, slots=16, draft_tokens=drafts, **options) for drafts in (0, 4)
    )
    # One kind of parameters after the other, so that rows are left for drafts, then all at once.
    for params in (*((p,) for p in PARAMS), PARAMS):
        expected, none = answers(without, params)
        found, some = answers(with_some, params)
        assert found == expected, params
        assert none["drafted_tokens"] == 0
        assert some["completion_tokens"] == none["completion_tokens"]
        if params[0].repetition_penalty != 1 or params[0].bad_words:
            assert some["drafted_tokens"] == 0 or len(params) > 1
    found, some = answers(with_some, PARAMS[:1])
    assert some["accepted_tokens"] > some["drafted_tokens"] / 2 > 50
    assert some["decode_rows"] < 0.8 * answers(without, PARAMS[:1])[1]["decode_rows"]


def test_a_constrained_row_and_a_beam_draft_nothing(engines):
    pytest.importorskip("llguidance")
    engine = engines(TRAINED, slots=16, draft_tokens=4)
    for params in (
        SamplingParams(temperature=0, max_tokens=30, structured_outputs={"regex": "(ab)+"}),
        SamplingParams(beam_width=2, max_tokens=20),
    ):
        assert answers(engine, [params])[1]["drafted_tokens"] == 0


@given(
    st.sampled_from([(1, 8, 8), (1, 16, 4), (2, 16, 8), (4, 16, 8)]),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_rows_hold_each_live_slot_and_drafts_where_rows_are_left(shape, data):
    devices, rows, tile_rows = shape
    slots = 20
    alive = np.array(data.draw(st.lists(st.booleans(), min_size=slots, max_size=slots)))
    wanted = np.array(data.draw(st.lists(st.integers(0, 5), min_size=slots, max_size=slots)))
    plain = choose_rows(jnp.array(alive), jnp.zeros(slots, int), rows, tile_rows, devices)
    chosen = choose_rows(jnp.array(alive), jnp.array(wanted), rows, tile_rows, devices)
    assert int(plain.tiles) == int(chosen.tiles)
    by_device = np.arange(rows).reshape(-1, devices, tile_rows // devices).swapaxes(0, 1)
    given_rows, used = np.asarray(chosen.slots), int(chosen.tiles) * tile_rows
    assert (given_rows[used:] == slots).all()
    for device, own in enumerate(by_device.reshape(devices, -1)):
        mine = [
            (int(given_rows[r]), int(chosen.offsets[r]), int(chosen.drafts[r]))
            for r in own
            if given_rows[r] < slots
        ]
        size = slots // devices
        live = [s for s in range(device * size, device * size + size) if alive[s]]
        live = live[: rows // devices]
        assert [s for s, offset, _ in mine if offset == 0] == live
        left = used // devices - len(live)
        assert len(mine) - len(live) == min(left, wanted[live].sum())
        expected = []
        for slot in live:
            few = min(left, wanted[slot])
            left -= few
            expected += [(slot, offset, few) for offset in range(few + 1)]
        assert mine == expected


@given(
    st.sampled_from([(1, 12, 4), (2, 12, 4)]),
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_a_draft_is_right_if_all_before_it_were(shape, sizes, data):
    devices, rows, tile_rows = shape
    order = np.arange(rows).reshape(-1, devices, tile_rows // devices).swapaxes(0, 1)
    slots, offsets = np.full(rows, 99), np.zeros(rows, int)
    spans = []
    for own in order.reshape(devices, -1):
        at = 0
        for slot, (drafts, _) in enumerate(sizes):
            if at + drafts < len(own):
                spans.append(own[at : at + drafts + 1])
                slots[spans[-1]], offsets[spans[-1]] = slot, np.arange(drafts + 1)
                at += drafts + 1
    some = st.lists(st.integers(0, 1), min_size=rows, max_size=rows)
    ran, drew, ended = (np.array(data.draw(some)) for _ in range(3))
    step_rows = StepRows(jnp.array(slots), jnp.array(offsets), jnp.zeros(rows), jnp.int32(3))
    arrays = (jnp.array(slots < 99), jnp.array(ran), jnp.array(drew), jnp.array(ended == 1))
    right, last = right_rows(step_rows, *arrays, tile_rows, devices)
    expected, ends = np.zeros(rows, bool), np.zeros(rows, bool)
    for span in spans:
        count = 1
        while count < len(span) and ran[span[count]] == drew[span[count - 1]]:
            if ended[span[count - 1]]:
                break
            count += 1
        expected[span[:count]] = True
        ends[span[count - 1]] = True
    assert (np.asarray(right) == expected).all()
    assert (np.asarray(last) == ends).all()


def drafts_by_hand(tokens: list[int], most: int) -> list[int]:
    """What followed the last place of the longest match of two or three tokens, read round."""
    for size in (3, 2):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                after = tokens[end:]
                return [after[i % len(after)] for i in range(most)]
    return []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_drafts_are_what_followed_the_last_tokens_before(tokens, most):
    state = empty_slots(2, 1)
    held = np.full((2, 40), 3, np.int32)
    held[0, : len(tokens)] = tokens
    state.alive[0] = True
    state.position[0] = len(tokens) - 1
    state.max_tokens[:] = 100
    histories = Histories(jnp.array(held), jnp.array([1.0, 1.0]))
    found, count = look_up(histories, jax.tree.map(jnp.array, state), most, 16)
    expected = drafts_by_hand(tokens, most)
    assert found[0, : int(count[0])].tolist() == expected


@pytest.mark.parametrize(
    ("share", "drawn", "count"), [(1.0, 0, 4), (0.5, 0, 2), (1.0, 7, 2), (1.0, 9, 0), (0.1, 0, 0)]
)
def test_how_many_drafts_go_by_what_was_right_of_late_and_what_is_left(share, drawn, count):
    state = empty_slots(1, 1)
    state.alive[0], state.position[0], state.max_tokens[0], state.drawn[0] = True, 5, 10, drawn
    histories = Histories(jnp.array([[1, 2, 3, 1, 2, 3, 0]]), jnp.array([share]))
    assert int(look_up(histories, jax.tree.map(jnp.array, state), 4, 16)[1][0]) == count
