"""The plan of a job: counted by hand, forecast from a trial, and priced."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint.synth import synthesize
from model.checkpoint.synth_tokenizer import synthesize_tokenizer
from model.config import GROK_1, PRESETS
from model.machines import MACHINES
from model.tokenizer import Tokenizer
from pipeline.cli import OK, ROW_ERRORS, SETUP, main
from pipeline.estimate.cost import Load, Rate, all_costs, cost_on, read_rates, slots_that_fit
from pipeline.estimate.forecast import share_of_most
from schemas.error import SetupError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    config = dataclasses.replace(PRESETS["tiny"], num_layers=1)
    tokenizer = synthesize_tokenizer(config.vocab_size)
    synthesize(str(folder / "checkpoint"), config, tokenizer=tokenizer)
    shared = "import os\n" * 35
    prompts = [*(shared + f"x = {i}" for i in range(4)), "def f():", "def f():", None, "x" * 4000]
    rows = {"prompt": prompts, "max_tokens": [8] * 5 + [8, 8, 8], "n": [1, 2, 1, 1, 1, 1, 1, 1]}
    pq.write_table(pa.table(rows), folder / "in.parquet")
    return folder, Tokenizer(tokenizer), prompts


def plan(folder, capsys, *arguments: str) -> tuple[int, dict]:
    command = ["plan", "--checkpoint", folder / "checkpoint", "--input", folder / "in.parquet"]
    code = main([*map(str, command), "--json", "--workers", "1", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_every_row_is_counted_as_a_run_will_see_it(world, capsys):
    folder, tokenizer, prompts = world
    code, found = plan(folder, capsys, "--min-tokens", "2")
    assert code == ROW_ERRORS
    good = [tokenizer.encode(prompt) for prompt in prompts[:6]]
    assert (found["rows"], found["good"]) == (8, 6)
    assert found["errors"] == {"context_length_exceeded": 1, "prompt_missing": 1}
    assert found["over_context"] == 1
    (example,) = found["error_examples"]["prompt_missing"]
    assert (example["file"], example["row"]) == ("in.parquet", 6)
    assert found["prompt_tokens"] == sum(map(len, good))
    assert found["prompt_length"]["max"] == max(map(len, good))
    assert found["duplicates"] == 1
    # Whole blocks of 128 tokens that the second to fourth prompt share with the first.
    common = len(tokenizer.encode("import os\n" * 35)) // 128 * 128
    assert common > 0
    assert found["shared_prompt_tokens"] == 3 * common
    assert found["samples"] == 7
    tokens = found["completion_tokens"]
    assert (tokens["least"], tokens["most"], tokens["p50"]) == (14, 56, None)


def test_a_row_over_the_context_may_be_cut(world, capsys):
    folder, _, _ = world
    _, found = plan(folder, capsys, "--over-length", "truncate_left")
    assert (found["good"], found["over_context"]) == (7, 1)
    assert found["prompt_length"]["max"] == PRESETS["tiny"].sequence_len - 8


def test_a_pilot_forecasts_between_the_bounds(world, capsys):
    folder, _, _ = world
    arguments = ("--pilot", "3", "--slots", "8", "--max-context", "256", "--limit", "6")
    code, found = plan(folder, capsys, *arguments)
    tokens = found["completion_tokens"]
    assert code == OK
    assert found["pilot"]["rows"] == 3
    assert tokens["least"] <= tokens["p50"] <= tokens["p90"] <= tokens["most"]


def test_a_wrong_set_up_is_one_sentence(world, capsys):
    folder, _, _ = world
    assert main(["plan", "--checkpoint", str(folder / "checkpoint"), "--input", "nowhere"]) == SETUP
    assert "no input file matches nowhere" in capsys.readouterr().err


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(50, 60)), min_size=1, max_size=30))
def test_shares_are_ordered_and_within_what_was_seen(rows):
    drawn, asked = np.array(rows).T
    low, middle, high = share_of_most(drawn, asked)
    each = drawn / asked
    assert each.min() - 1e-9 <= low <= middle <= high <= each.max() + 1e-9
    assert share_of_most(drawn, asked) == (low, middle, high)


LOAD = Load(
    prompt_tokens=1_000_000_000,
    tokens_out_p50=200_000_000.0,
    tokens_out_p90=250_000_000.0,
    prompt_length=1000,
    output_length=200,
    max_context=2048,
)


def test_grok_1_is_priced_on_machines_that_hold_it():
    costs = {cost.machine: cost for cost in all_costs(GROK_1, LOAD, read_rates(None))}
    assert set(costs) == set(MACHINES)
    weights = {name: cost.weights for name, cost in costs.items()}
    assert weights["h100x8"] == weights["v5p-4"] == "int8"
    assert weights["v6e-8"] == "int4"
    assert weights["v5e-8"] is None
    for cost in costs.values():
        if cost.weights:
            assert 0 < cost.hours_p50 < cost.hours_p90
            assert cost.device_hours_p50 == cost.hours_p50 * MACHINES[cost.machine].devices
    ordered = [cost.usd_p50 for cost in all_costs(GROK_1, LOAD, read_rates(None)) if cost.weights]
    assert ordered == sorted(ordered)


def test_twice_the_tokens_cost_twice_as_much():
    rate = Rate(usd_per_hour=10.0, reach_p50=0.5, reach_p90=0.5)
    twice = dataclasses.replace(
        LOAD,
        prompt_tokens=2 * LOAD.prompt_tokens,
        tokens_out_p50=2 * LOAD.tokens_out_p50,
        tokens_out_p90=2 * LOAD.tokens_out_p90,
    )
    one, two = (cost_on(MACHINES["h100x8"], rate, GROK_1, load) for load in (LOAD, twice))
    assert two.usd_p50 == pytest.approx(2 * one.usd_p50)
    assert one.usd_p50 == pytest.approx(10 * one.hours_p50)


def test_longer_contexts_leave_fewer_slots():
    machine = MACHINES["h100x8"]
    fit = [slots_that_fit(machine, GROK_1, "int8", context) for context in (1024, 4096, 8192)]
    assert fit == sorted(fit, reverse=True)
    assert fit[0] == 512
    assert 64 < fit[2] < 256


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[h100x8]\nusd_per_hour = 1", "no table of rates"),
        ("[h100]\nusd_per_hour = 1\nreach_p50 = 1\nreach_p90 = 1", "no machine 'h100'"),
        ("[h100x8]\nusd_per_hour = -1\nreach_p50 = 1\nreach_p90 = 1", "positive"),
        ("[h100x8", "no table of rates"),
    ],
)
def test_a_wrong_table_of_rates_is_refused(tmp_path, text, says):
    path = tmp_path / "rates.toml"
    path.write_text(text)
    with pytest.raises(SetupError, match=says):
        read_rates(str(path))
