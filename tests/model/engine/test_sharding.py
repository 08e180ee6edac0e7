"""The same answers however many devices share the work, and no more exchanges than it takes."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from model import hlo
from schemas.sampling import MAX_LOGPROBS, SamplingParams
from tests.model.engine.conftest import greedy, truth
from tests.model.engine.steered import steered

SIZES = {"slots": 8, "prefill_rows": 64}
ORDERED = {"all-to-all": 2, "all-gather": 2}
PSUM = {"reduce-scatter": 2, "all-gather": 2}


def on_virtual_devices(options: dict, how_much: str = "all") -> list[dict]:
    """What an engine of these options says, in a process with 16 CPU devices."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.model.engine.sharded", json.dumps([options]), how_much],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[3],
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def alone(engines):
    """The answers of one device."""
    engine = engines(numerics="float32")
    scored = engine.generate(
        truth("exact").sequences, SamplingParams(max_tokens=1, prompt_logprobs=MAX_LOGPROBS)
    )
    completed = engine.generate(
        [row["prompt"] for row in greedy("greedy_exact")],
        SamplingParams(temperature=0, max_tokens=24, ignore_eos=True),
    )
    logprobs = [[t.logprob, *t.top_logprobs] for o in scored for t in o.prompt_logprobs[1:]]
    return np.array(logprobs), [list(o.outputs[0].token_ids) for o in completed]


@pytest.fixture(scope="module")
def steered_alone(engines):
    return steered(engines(numerics="float32"))


def assert_same(answer: dict, alone: tuple, devices: int, collectives: str) -> None:
    logprobs, tokens = alone
    np.testing.assert_allclose(answer["logprobs"], logprobs, rtol=1e-4, atol=1e-4)
    assert answer["greedy"] == tokens
    assert answer["provenance"]["devices"] == str(devices)
    assert answer["provenance"]["collectives"] == collectives


def assert_all_serve(answer: dict, replicas: int) -> None:
    assert answer["provenance"]["replicas"] == str(replicas)
    assert len(answer["rows_used"]) == replicas
    assert min(answer["rows_used"]) > sum(answer["rows_used"]) / replicas / 2


@pytest.mark.slow
def test_sixteen_devices_are_two_replicas_of_eight(alone, steered_alone):
    [answer] = on_virtual_devices({**SIZES, "numerics": "float32"})
    assert_same(answer, alone, 8, "ordered")
    assert answer["steered"] == steered_alone
    assert_all_serve(answer, 2)
    assert answer["per_layer"] == ORDERED


@pytest.mark.slow
@pytest.mark.parametrize(("replicas", "devices"), [(2, 2), (2, 4), (3, 1)])
def test_any_grid_of_devices_answers_as_one(alone, steered_alone, replicas, devices):
    sizes = {**SIZES, "devices": devices, "replicas": replicas}
    [answer] = on_virtual_devices({**sizes, "numerics": "float32"})
    assert_same(answer, alone, devices, "ordered")
    assert answer["steered"] == steered_alone
    assert_all_serve(answer, replicas)
    assert answer["per_layer"] == (ORDERED if devices > 1 else {})


def test_two_devices_answer_as_one(alone):
    [answer] = on_virtual_devices({**SIZES, "numerics": "float32", "devices": 2}, "less")
    assert_same(answer, alone, 2, "ordered")


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_fewer_devices_answer_as_one(alone, steered_alone, devices):
    [answer] = on_virtual_devices({**SIZES, "numerics": "float32", "devices": devices})
    assert_same(answer, alone, devices, "ordered")
    assert answer["steered"] == steered_alone
    assert_all_serve(answer, 1)
    assert answer["per_layer"] == (ORDERED if devices > 1 else {})


@pytest.mark.slow
def test_sums_in_any_order_answer_as_one(alone, steered_alone):
    [answer] = on_virtual_devices(
        {**SIZES, "numerics": "float32", "devices": 8, "collectives": "psum"}
    )
    assert_same(answer, alone, 8, "psum")
    assert answer["steered"] == steered_alone
    assert answer["per_layer"] == PSUM


PROGRAM = """\
HloModule step

%layer (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = f32[8]{0} all-to-all(%x), dimensions={0}, metadata={op_name="jit(f)/while/layer/all_to_all"}
  %g = f32[8]{0} all-gather-start(%a), metadata={op_name="jit(f)/while/layer/gather"}
  %d = f32[8]{0} all-gather-done(%g), metadata={op_name="jit(f)/while/layer/gather"}
  ROOT %t = (s32[], f32[8]) tuple(%i, %d)
}

%tile (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %g = f32[8]{0} all-gather(%x), dimensions={0}, metadata={op_name="jit(f)/while/layers/all_gather"}
  ROOT %t = (s32[], f32[8]) tuple(%i, %g)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %k = (s32[], f32[8]) while(%x), condition=%always, body=%layer
  %w = (s32[], f32[8]) while(%k), condition=%always, body=%tile
  %s = f32[8]{0} reduce-scatter(%w), to_apply=%sum
  ROOT %r = f32[8]{0} get-tuple-element(%w), index=1
}
"""


def test_exchanges_are_counted_by_what_they_are_for():
    assert hlo.layer_collectives(PROGRAM) == {"all-to-all": 1, "all-gather": 1}
    assert hlo.collectives(PROGRAM) == {"all-to-all": 1, "all-gather": 2, "reduce-scatter": 1}


def test_a_widened_weight_is_found_in_a_fusion():
    text = """\
%fused (p: s8[8,64,32]) -> bf16[64,32] {
  %p = s8[8,64,32]{2,1,0} parameter(0)
  ROOT %c = bf16[64,32]{1,0} convert(%slice)
}
ENTRY %main (w: s8[8,64,32], x: f32[164,32]) -> f32[2,32,64] {
"""
    assert hlo.float_arrays(text, (64, 32)) == 2
    assert hlo.float_arrays(text, (32, 64)) == 1
    assert hlo.float_arrays(text, (4, 32)) == 0
