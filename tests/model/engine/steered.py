"""Completions whose tables, masks and hidden states lie split over the devices of a mesh."""

from model.engine.engine import Engine
from schemas.sampling import SamplingParams
from tests.model.engine.conftest import greedy

STEERED = [
    SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, **wish)
    for wish in (
        {"repetition_penalty": 1.5},
        {"frequency_penalty": 1.2, "presence_penalty": 0.4},
        {"logit_bias": {7: 6.5, 1023: 5.0}, "frequency_penalty": 0.7},
        {"allowed_token_ids": range(500, 540)},
        {"beam_width": 3},
    )
]
"""Parameters whose tables and masks are split over the devices by slots, and a search, which runs
and draws in steps of their own."""


def steered(engine: Engine) -> list[list[int]]:
    """Completions of the golden prompts with each of the parameters."""
    prompts = [row["prompt"] for row in greedy("greedy_exact")]
    params = [STEERED[i % len(STEERED)] for i in range(len(prompts))]
    return [list(o.outputs[0].token_ids) for o in engine.generate(prompts, params)]
