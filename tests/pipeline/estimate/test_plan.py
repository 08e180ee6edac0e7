"""The plan of a job: counted by hand, and forecast from a trial."""

import dataclasses
import itertools
import json
import signal
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint.synth import synthesize
from model.checkpoint.synth_tokenizer import synthesize_tokenizer
from model.config import PRESETS
from model.tokenizer import Tokenizer
from pipeline.cli import OK, ROW_ERRORS, SETUP, main
from pipeline.estimate import census
from pipeline.estimate.census import Census
from pipeline.estimate.cost import read_rates
from pipeline.estimate.forecast import Pilot, share_of_most
from pipeline.estimate.summary import Estimate
from pipeline.options import GenerateOptions
from pipeline.prepare import check_job


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


@pytest.mark.parametrize("count", ["0", "-2"])
def test_workers_are_one_or_more(world, capsys, count):
    folder, _, _ = world
    command = ["plan", "--checkpoint", folder / "checkpoint", "--input", folder / "in.parquet"]
    assert main([*map(str, command), "--workers", count]) == SETUP
    assert capsys.readouterr().err == f"grok1: --workers must be at least 1, got {count}\n"


@pytest.mark.parametrize(
    "options",
    [
        ["--direct_num_workers=2", "--runner", "DirectRunner"],
        ["--runner=DataflowRunner", "--project=p", "--region=r"],
    ],
)
def test_beams_options_have_no_bearing_on_a_plan(world, capsys, options):
    folder, _, _ = world
    code, found = plan(folder, capsys, "--limit", "2", *options)
    assert (code, found["rows"]) == (OK, 2)


def test_a_misspelt_option_is_told_as_generate_tells_it(world, capsys):
    folder, _, _ = world
    command = ["plan", "--checkpoint", folder / "checkpoint", "--input", folder / "in.parquet"]
    for option, meant in (("--worker=1", "--workers"), ("--direct_num_worker=1", "--direct_num_")):
        assert main([*map(str, command), option]) == SETUP
        assert f"did you mean {meant}" in capsys.readouterr().err


def test_the_readers_of_rows_hear_no_interrupt():
    with census._processes(1) as pool:
        with census._interrupts_held():
            blocked = pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, [])
        assert signal.SIGINT in blocked.result()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_an_interrupted_plan_waits_for_nobody():
    def interrupted() -> None:
        with census._processes(1) as pool:
            pool.submit(time.sleep, 0).result()
            pool.submit(time.sleep, 600)
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - began < 300


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(50, 60)), min_size=1, max_size=30))
def test_shares_are_ordered_and_within_what_was_seen(rows):
    drawn, asked = np.array(rows).T
    low, middle, high = share_of_most(drawn, asked)
    each = drawn / asked
    assert each.min() - 1e-9 <= low <= middle <= high <= each.max() + 1e-9
    assert share_of_most(drawn, asked) == (low, middle, high)


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
