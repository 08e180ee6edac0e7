"""Several completions of one prompt, and what their randomness derives from."""

import pytest

from model.engine.request import Request
from schemas.sampling import SamplingParams
from tests.model.engine.conftest import greedy, one

PROMPTS = [row["prompt"] for row in greedy("greedy_exact")]


def test_samples_differ_and_are_numbered(engine):
    output = one(engine, PROMPTS[1], n=5, max_tokens=10, temperature=1.0)
    assert [o.index for o in output.outputs] == list(range(5))
    assert len({o.token_ids for o in output.outputs}) == 5


def test_a_seed_replaces_the_address(engine):
    request = {"prompt_token_ids": tuple(PROMPTS[1])}
    seeded = SamplingParams(seed=3, max_tokens=10)
    a, b = (
        engine.submit(Request(**request, params=seeded, address=x)).result() for x in ("x", "y")
    )
    assert a.outputs == b.outputs
    plain = SamplingParams(max_tokens=10)
    c, d = (engine.submit(Request(**request, params=plain, address=x)).result() for x in ("x", "y"))
    assert c.outputs != d.outputs


@pytest.mark.parametrize("wish", [{"n": 1}, {"n": 5}, {"n": 20}, {"beam_width": 4, "n": 4}])
def test_samples_and_beams_share_one_prefill(engine, wish):
    prompt = [5 + len(wish), 5 + wish["n"], *(i * 31 % 1000 for i in range(70))]  # nobody else's
    before = engine.stats().prefilled_tokens
    output = one(engine, prompt, max_tokens=3, ignore_eos=True, **wish)
    assert len(output.outputs) == wish["n"]
    # The last token of a prompt is a decode step's.
    assert engine.stats().prefilled_tokens - before == len(prompt) - 1


def test_a_sample_is_the_same_however_many_there_are(engine):
    params = {"max_tokens": 8, "seed": 5, "logprobs": 1}
    few, many = (one(engine, PROMPTS[3], n=n, **params).outputs for n in (2, 9))
    assert many[:2] == few
    [alone] = one(engine, PROMPTS[3], **params).outputs
    assert alone == few[0]
    assert len({sample.token_ids for sample in many}) == 9
