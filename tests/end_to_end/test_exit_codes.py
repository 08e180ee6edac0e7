"""0 all rows accounted for and none errored, 1 failed, 2 wrong set-up or usage, 3 rows errored."""

import json

import pytest

from pipeline import cli
from pipeline.cli import main
from pipeline.commands import inspect, retry
from pipeline.report import terminal
from tests.jobs import write

GOOD = {"prompt": ["a", "b", "c", "d"]}
ONE_BAD = {"prompt": ["a", None, "c", "d"]}


def test_0_all_is_well(generate):
    assert generate("--max-tokens", 2, table=GOOD).code == 0


def test_3_some_rows_are_errored(generate):
    outcome = generate("--max-tokens", 2, table=ONE_BAD)
    assert outcome.code == 3
    assert (outcome.folder / "_SUCCESS").exists()
    assert outcome.err == ""
    # Started again, there is nothing to do, and the answer is the same.
    assert generate("--max-tokens", 2).code == 3


@pytest.mark.parametrize(
    ("allowed", "code"),
    [(["--allow-errors"], 0), (["--allow-errors", 0.25], 0), (["--allow-errors", 0.2], 3)],
)
def test_errored_rows_may_be_allowed(generate, allowed, code):
    assert generate("--max-tokens", 2, *allowed, table=ONE_BAD).code == code


def test_2_wrong_set_up(generate):
    outcome = generate(table={"text": ["a"]})
    assert outcome.code == 2
    assert "has no column 'prompt' or 'prompt_token_ids', only 'text'" in outcome.sentence()
    assert outcome.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["generate"],
        ["generate", "--checkpoint", "c", "--input", "i"],
        ["generate", "--max-tokens", "many"],
        ["inspect"],
        ["inspect", "x", "--what"],
        ["nothing"],
    ],
)
def test_2_wrong_usage(capsys, arguments):
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 2
    captured = capsys.readouterr()
    assert "usage: grok1" in captured.out + captured.err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--top-p", 2], "--top-p must be above 0 and at most 1, got 2.0"),
        (["--n", 2, "--temperature", 0], "--n must be 1 when temperature is 0 (greedy), got 2"),
        (["--max-tokens", 0], "--max-tokens must be at least 1, or -1, got 0"),
        (["--allow-errors", 2], "--allow-errors must be a share between 0 and 1, got 2.0"),
        (["--slots", 0], "--slots must be a positive integer, got 0"),
        (["--devices", 3], "--devices must be 1, 2, 4 or 8, got 3"),
        (["--columns", "prompt"], "--columns takes pairs such as prompt=question, got 'prompt'"),
        (["--temprature", 1], "unknown argument --temprature; did you mean --temperature?"),
    ],
)
def test_2_wrong_values_are_told_by_their_flags(generate, flags, told):
    outcome = generate(*flags, table=GOOD)
    assert outcome.code == 2
    assert told in outcome.sentence()


def test_1_strict_stops_at_the_first_errored_row(generate, tmp_path):
    write(tmp_path / "in" / "b.parquet", ONE_BAD)
    flags = ("--max-tokens", 2, "--direct_num_workers", 1)
    outcome = generate(*flags, "--strict", table=GOOD)
    assert outcome.code == 1
    assert outcome.sentence().startswith("row 1 of b.parquet: prompt is null (")
    assert outcome.sentence().endswith("are kept, and starting again does the rest")
    assert not (outcome.folder / "_SUCCESS").exists()
    [kept] = outcome.folder.glob("part-*")
    data = kept.read_bytes()
    again = generate(*flags)
    assert again.code == 3
    assert len(again.parts) == 2
    assert kept.read_bytes() == data


def test_1_a_run_whose_folder_is_taken_over_writes_no_more(generate, monkeypatch):
    set_up = terminal.set_up_line

    def take_over(job):
        there = json.loads(job.folder.read("_job.json"))
        job.folder.replace("_job.json", json.dumps({**there, "run_id": "another"}).encode())
        return set_up(job)

    monkeypatch.setattr(terminal, "set_up_line", take_over)
    outcome = generate("--max-tokens", 2, table=GOOD)
    assert outcome.code == 1
    assert "was taken over by another run; this one writes no more" in outcome.sentence()
    assert outcome.parts == []


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (retry, "\ngrok1: interrupted; start the same command again to go on\n"),
        (inspect, "\ngrok1: interrupted\n"),
    ],
)
def test_130_an_interrupt_is_told(monkeypatch, capsys, command, told):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupt)
    assert main([command.__name__.rpartition(".")[2], "x"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == told


def test_the_codes_stand_in_the_help(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    codes = (cli.OK, cli.FAILED, cli.SETUP, cli.ROW_ERRORS, cli.BUDGET, cli.INTERRUPTED)
    for code in codes:
        assert f"\n  {code}  " in text
