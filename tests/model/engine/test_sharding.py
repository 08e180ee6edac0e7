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


def on_virtual_devices(options: dict, *how: str) -> list[dict]:
    """What an engine of these options says, in a process with 16 CPU devices; see ``sharded``."""
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.model.engine.sharded",
            json.dumps([options]),
            *(how or ("all",)),
        ],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[3],
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def alone(engines):
    """The answers of one device."""
    return answers_of(engines(numerics="float32"))


def answers_of(engine) -> tuple:
    """As ``sharded`` has them: log-probabilities, and greedy completions."""
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


@pytest.mark.slow
def test_stacks_of_integers_split_over_devices_answer_as_one(alone, steered_alone):
    """The golden model has the release's scale groups: eight, so that each device has one."""
    sizes = {**SIZES, "devices": 8, "numerics": "float32"}
    [answer] = on_virtual_devices(sizes, "all", "tpu")
    assert_same(answer, alone, 8, "ordered")
    assert answer["steered"] == steered_alone
    assert answer["per_layer"] == ORDERED


@pytest.mark.slow
def test_an_int8_cache_over_eight_devices_is_as_good_as_over_one(engines):
    """As good, not the same: sums over devices differ by float32 rounding, an int8 level does not.

    A number of a key or value that stands all but halfway between two levels takes the other one:
    151 of the 147,456 of the first golden sequence do, each by one level, none before the fifth
    layer, and more in each that follows, since a level is 1/127 of a vector's largest number, and
    moves what is computed after it past other halves. Up to the first such number a sequence's
    log-probabilities agree within float32 rounding; after it the cache's rounding is drawn anew,
    and what can agree is how far they are from the truth.
    """
    sizes = {"numerics": "float32", "kv_cache_dtype": "int8"}
    one_logprobs, one_tokens = answers_of(engines(**sizes))
    [answer] = on_virtual_devices({**SIZES, **sizes, "devices": 8}, "less")
    assert answer["provenance"]["devices"] == "8"
    assert answer["provenance"]["kv_cache_dtype"] == "int8"
    assert answer["greedy"] == one_tokens
    logprobs = np.array(answer["logprobs"])
    right = np.concatenate([logprob[1:] for logprob in truth("exact").logprob])
    error, one_error = (np.abs(found[:, 0] - right).mean() for found in (logprobs, one_logprobs))
    assert error <= 1.1 * one_error
    assert np.abs(logprobs - one_logprobs).mean() < 0.1 * one_error


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


WIDENED = """\
HloModule step

%fused (p: s8[8,64,32]) -> bf16[64,32] {
  %p = s8[8,64,32]{2,1,0} parameter(0)
  ROOT %c = bf16[64,32]{1,0} convert(%slice)
}

ENTRY %main (w: s8[8,64,32], x: f32[164,32]) -> f32[2,32,64] {
  %f = bf16[64,32]{1,0} fusion(%w), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/layer"}
  %t = f32[2,32,64]{2,1,0} transpose(%f), dimensions={0,2,1}
  %k = f32[8,64]{1,0} custom-call(%x, %w), custom_call_target="tpu_custom_call", \
operand_layout_constraints={f32[164,32]{1,0}, s8[8,64,32]{2,1,0}}, metadata={op_name="jit(f)"}
}
"""


def test_a_widened_weight_is_found_within_fusions_and_in_memory():
    inside = 2  # of the fused computation, as its result and by the operation
    outside = 3  # what the fusion gives, and its transpose, which is what the program gives too
    assert hlo.float_matrices(WIDENED, (64, 32)) == inside + outside
    assert hlo.float_matrices(hlo.held(WIDENED), (64, 32)) == outside
    assert hlo.float_matrices(WIDENED, (4, 32)) == 0


@pytest.mark.parametrize(
    "axes",
    ["64,32", "32,64", "3,8,64,32", "64,8,32", "2048", "512,32", "64,256", "16384", "4,16,32"],
)
def test_a_widened_weight_is_found_however_it_lies(axes):
    text = f"%c = bf16[{axes}]{{0}} convert(%w), s8[8,64,32] f32[64] f32[8,32] f32[164,32]"
    assert hlo.float_matrices(text, (8, 64, 32), groups=4) == 1


def test_kernels_are_known_by_what_they_read():
    assert hlo.kernels_on(WIDENED, (8, 64, 32)) == 1
    assert hlo.kernels_on(WIDENED, (64, 32)) == 0
