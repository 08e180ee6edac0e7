"""The bill of a plan: what each machine costs, and how that is shown."""

import dataclasses
import io

import pytest
from rich.console import Console

from model.config import GROK_1
from model.engine.options import ACCELERATOR_SLOTS, EngineOptions
from model.fit import Fit
from model.machines import MACHINES
from model.room import Question, room_for
from pipeline.estimate.bill import money, print_bill, short
from pipeline.estimate.cost import Cost, Load, Rate, all_costs, cost_on, read_rates
from schemas.error import SetupError

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
