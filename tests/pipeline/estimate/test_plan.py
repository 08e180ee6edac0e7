"""The plan of a job: counted by hand, forecast from a trial, and priced."""

import dataclasses
import io
import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from model.checkpoint.synth import synthesize
from model.checkpoint.synth_tokenizer import synthesize_tokenizer
from model.config import GROK_1, PRESETS
from model.engine.options import ACCELERATOR_SLOTS, EngineOptions
from model.fit import Fit
from model.machines import MACHINES
from model.room import Question, room_for
from model.tokenizer import Tokenizer
from pipeline.cli import OK, ROW_ERRORS, SETUP, main
from pipeline.estimate.bill import money, print_bill, short
from pipeline.estimate.census import Census
from pipeline.estimate.cost import Cost, Load, Rate, all_costs, cost_on, read_rates
from pipeline.estimate.forecast import Pilot, share_of_most
from pipeline.estimate.summary import Estimate
from pipeline.options import GenerateOptions
from pipeline.prepare import check_job
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


@pytest.mark.parametrize("source", ["in.parquet", "*.parquet", "."])
def test_the_input_may_lie_where_one_stands(world, capsys, monkeypatch, source):
    monkeypatch.chdir(world[0])
    command = ["plan", "--checkpoint", "checkpoint", "--input", source, "--json", "--workers", "1"]
    assert main(command) == ROW_ERRORS
    assert json.loads(capsys.readouterr().out)["rows"] == 8


def test_every_row_is_counted_as_a_run_will_see_it(world, capsys):
    folder, tokenizer, prompts = world
    code, found = plan(folder, capsys, "--min-tokens", "2")
    assert code == ROW_ERRORS
    good = [tokenizer.encode(prompt) for prompt in prompts[:6]]
    assert (found["rows"], found["good"]) == (8, 6)
    assert [*found["errors"]] == [*found["error_examples"]] == sorted(found["errors"])
    assert found["errors"] == {"context_length_exceeded": 1, "prompt_missing": 1}
    assert found["over_context"] == 1
    (example,) = found["error_examples"]["prompt_missing"]
    assert (example["file"], example["row"]) == ("in.parquet", 6)
    assert found["prompt_tokens"] == sum(map(len, good))
    assert found["prompt_length"]["max"] == max(map(len, good))
    bars = found["prompt_length_histogram"]
    assert [bar["rows"] for bar in bars if bar["rows"]] == [2, 4]
    assert all(before["to"] + 1 == after["from"] for before, after in itertools.pairwise(bars))
    assert sum(bar["from"] <= len(ids) <= bar["to"] for bar in bars for ids in good) == 6
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


def test_a_forecast_stays_within_what_the_rows_allow(world):
    folder, _, _ = world
    options = GenerateOptions(
        checkpoint=str(folder / "checkpoint"), input=str(folder / "in.parquet"), output="."
    )
    job, _, chunks = check_job(options)
    census = Census(rows=2, samples=2, tokens_out_least=50, tokens_out_most=100)
    pilot = Pilot(rows=1, tokens_out=1, share=(0.1, 0.2, 2.0), seconds=1.0, tokens_per_second=1.0)
    found = Estimate.of(job, chunks, census, pilot, read_rates(None), 1.0)
    assert found.tokens_out == (50, 50, 100, 100)


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
    weights="int8",
    engine=EngineOptions(max_context=2048),
    prompt_tokens=1_000_000_000,
    tokens_out_p50=200_000_000.0,
    tokens_out_p90=250_000_000.0,
    samples=1_000_000,
    prompt_length=1000,
    output_length=200,
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


RATE = Rate(usd_per_hour=10.0, reach_p50=0.5, reach_p90=0.5)


def cost(machine: str = "h100x8", rate: Rate = RATE, engine: EngineOptions | None = None, **load):
    if engine is not None:
        load["engine"] = engine
    return cost_on(MACHINES[machine], rate, GROK_1, dataclasses.replace(LOAD, **load))


def test_twice_the_tokens_cost_twice_as_much_but_for_the_start():
    twice = {
        name: 2 * getattr(LOAD, name)
        for name in ("prompt_tokens", "tokens_out_p50", "tokens_out_p90")
    }
    one, two = cost(), cost(**twice)
    assert two.hours_p50 - two.start_hours == pytest.approx(2 * (one.hours_p50 - one.start_hours))
    assert one.start_hours == two.start_hours > 0
    assert one.usd_p50 == pytest.approx(10 * one.hours_p50)


def test_the_start_is_loading_and_compiling():
    rate = dataclasses.replace(RATE, load_gb_per_second=4.0, compile_minutes=6.0)
    # 315.7 B parameters, one byte each, and the embedding's two.
    assert cost(rate=rate).start_hours == pytest.approx(317 / 4 / 3600 + 0.1, rel=0.01)


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
@pytest.mark.parametrize("machine", ["h100x8", "v5p-4"])
def test_slots_and_floors_are_those_that_fit_tells(machine, kv_cache_dtype):
    engine = EngineOptions(max_context=8192, kv_cache_dtype=kv_cache_dtype)
    question = Question(
        machine=machine, config=GROK_1, context=8192, kv_cache_dtype=kv_cache_dtype, slots=32
    )
    plain = cost(machine, engine=engine)
    assert plain.max_slots == room_for(question).max_slots
    assert plain.slots == min(ACCELERATOR_SLOTS, plain.max_slots)
    asked = dataclasses.replace(engine, slots=32)
    # Fit's sequences are full; a mean one of so many tokens reads as much.
    found = cost(machine, engine=asked, prompt_length=8192, output_length=0)
    step = {"refused": False, "peak_bytes": 0, "seconds": 1.0}
    told = Fit(
        question=question,
        weights_bytes=0,
        cache_bytes=0,
        slots_bytes=0,
        steps={"prefill": step, "decode": step},
    ).to_dict()
    assert round(found.decode_floor) == told["decode_floor_tokens_per_second"]
    assert round(found.prefill_floor) == told["prefill_floor_tokens_per_second"]
    assert found.decode_rate == found.decode_floor * RATE.reach_p50


def test_a_store_is_priced_as_what_it_holds():
    stored, wider = cost("v6e-8", weights="int4"), cost("v6e-8", weights="int8")
    assert (stored.weights, stored.convert) == ("int4", False)
    assert (wider.weights, wider.convert) == ("int4", True)
    assert cost(weights="int4").decode_floor > cost(weights="int8").decode_floor
    assert cost("h200x8", weights="bf16").weights == "bf16"
    assert cost("h200x8", weights="bf16").decode_floor < cost("h200x8").decode_floor


LARGE = Cost(
    machine="h100x8",
    title="eight of them",
    weights="int8",
    convert=True,
    slots=256,
    max_slots=256,
    prefill_rate=123_456.0,
    decode_rate=12_345.0,
    hours_p50=12_345.6,
    hours_p90=19_345.6,
    device_hours_p50=98_765.4,
    device_hours_p90=154_765.4,
    usd_p50=608_904.1,
    usd_p90=971_234.567,
)
NONE_FIT = Cost(machine="v5e-8", title="too small", weights=None)


@pytest.mark.parametrize(
    ("width", "absent"),
    [(120, ()), (80, ("tokens",)), (70, ("tokens", "device-")), (20, ("tokens", "device-"))],
)
def test_a_narrow_bill_leaves_columns_out_and_cuts_no_figure(width, absent):
    console = Console(width=width, file=io.StringIO())
    print_bill(console, [LARGE, NONE_FIT])
    text = console.file.getvalue()
    table = text.partition("A wider")[0]
    assert "…" not in table
    assert "12.3k–19.3k" in table
    assert "608,904.10–971,234.57" in table
    assert ("98.8k–155k" in table) == ("device-" not in absent)
    assert ("123k" in table) == ("tokens" not in absent)
    assert table.count("p50–p90") == (2 if "device-" in absent else 3)
    assert "none fit" in table
    note = "A wider terminal and --json have: prompt tokens/s, tokens"
    assert (note in " ".join(text.split())) == bool(absent)
    if width >= 70:
        assert max(map(len, table.splitlines())) <= width


def test_a_bill_where_nothing_fits_names_the_machines():
    console = Console(width=80, file=io.StringIO())
    print_bill(console, [NONE_FIT])
    assert "v5e-8    none fit" in console.file.getvalue()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.001, "< 0.01"),
        (0.125, "0.125"),
        (99.96, "100"),
        (1234, "1,234"),
        (9999.7, "10.0k"),
        (99_960, "100k"),
        (999_960, "1M"),
        (12.34e6, "12.34M"),
    ],
)
def test_figures_are_short(value, told):
    assert short(value) == told


def test_prices_have_two_decimals():
    prices = [0.001, 0.005, 3.0, 108_904.1, 1_234_567.0]
    assert [*map(money, prices)] == ["< 0.01", "0.01", "3.00", "108,904.10", "1.23M"]


def test_examples_are_the_first_in_the_input_whoever_tells_first():
    some = [
        Census(examples={"b": [("f", 9, ""), ("g", 0, "")]}),
        Census(examples={"a": [("f", 3, "")], "b": [("f", 7, ""), ("f", 8, "")]}),
        Census(examples={"b": [("f", 10, ""), ("f", 2, "")]}),
    ]
    for order in itertools.permutations(some):
        total = Census()
        for one in order:
            total.merge(one, 0)
        assert total.examples["b"] == [("f", 2, ""), ("f", 7, ""), ("f", 8, "")]


def test_few_completions_cannot_fill_the_slots():
    assert cost(samples=8).decode_floor < cost().decode_floor


def test_each_machine_has_rates_of_its_own():
    costs = [c for c in all_costs(GROK_1, LOAD, read_rates(None)) if c.weights]
    assert len({c.decode_rate for c in costs}) == len(costs)
    assert not any(c.measured for c in costs)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[h100x8]\nusd_per_hour = 1", r"\[h100x8\] has no reach_p50 and no reach_p90; add that"),
        ("usd_per_hour = 1", r"usd_per_hour must be a table of its own, \[usd_per_hour\], with"),
        (
            "[h100x8]\nusd_per_hour = 1\nreach_p50 = 1\nreach_p90 = 1\nreach = 1",
            r"\[h100x8\] has an unknown key 'reach'; the keys are usd_per_hour, ",
        ),
        ("[h100]\nusd_per_hour = 1\nreach_p50 = 1\nreach_p90 = 1", "no machine 'h100'"),
        ("[h100x8]\nusd_per_hour = -1\nreach_p50 = 1\nreach_p90 = 1", "positive"),
        ("[h100x8]\nusd_per_hour = 1\nreach_p50 = 1\nreach_p90 = 1\nmeasured = 1", "true or false"),
        ("[h100x8", "no table of rates"),
    ],
)
def test_a_wrong_table_of_rates_is_refused(tmp_path, text, says):
    path = tmp_path / "rates.toml"
    path.write_text(text)
    with pytest.raises(SetupError, match=says):
        read_rates(str(path))
