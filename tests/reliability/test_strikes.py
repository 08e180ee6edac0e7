"""What a dead process's records say, and what a living one's do not."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pyarrow as pa
import pytest

from pipeline import process, strikes
from pipeline.counts import Counts
from pipeline.saved import Saved, merge
from pipeline.storage import Folder
from pipeline.strikes import History, Ledger
from schemas.completion import OutputSchema

PART = "part-000000-000000000000-0123456789ab.parquet"
SCHEMA = OutputSchema(schema=pa.schema([("x", pa.int64())]), inputs=0)
OTHER = "part-000000-000000000016-0123456789ab.parquet"


@pytest.fixture
def ledger(store) -> Ledger:
    return Ledger(output=Folder(store), schema=SCHEMA, run_seed=0, start="now", attempts=4)


def piece(*sources: int) -> Saved:
    table = pa.table({"x": [i * 10 for i in sources]})
    return Saved.of(sources, table, Counts(rows_in=len(set(sources)), errors={"e": 1}))


def die(monkeypatch) -> None:
    """From now on, the process that wrote the records is taken for dead."""
    monkeypatch.setattr(process, "is_alive", lambda other: False)


def test_a_process_is_alive_until_it_is_dead():
    code = (
        "import json, time; from pipeline import process; "
        "print(json.dumps(process.identity()), flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    other = json.loads(child.stdout.readline())
    assert other["pid"] == child.pid
    assert process.is_alive(other)
    assert process.is_alive(process.identity())
    assert not process.is_alive({**other, "machine": "another"})
    # The id was given to a process that began later.
    assert not process.is_alive({**other, "began": "1"})
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not process.is_alive(other), "a zombie is dead"
    child.wait()
    assert not process.is_alive(other)


def test_nothing_happened(ledger):
    attempt = ledger.begin(PART)
    assert not attempt.history
    assert not attempt.last
    attempt.admit([1, 2])
    attempt.admit([2, 3])
    attempt.end()
    assert ledger.folder.names() == {}


def test_rows_in_flight_are_suspects_without_a_strike(ledger, monkeypatch):
    attempt = ledger.begin(PART)
    attempt.admit([1, 2])
    attempt.admit([2, 3])
    ledger.begin(OTHER).admit([7])
    die(monkeypatch)
    assert ledger.begin(PART).history == History(attempts=1, suspects={2: 0, 3: 0})
    assert ledger.begin(OTHER).history.suspects == {7: 0}
    assert ledger.parts() == {PART, OTHER}


def test_a_living_process_is_no_history(ledger):
    ledger.begin(PART).admit([1])
    assert not ledger.begin(PART).history


def test_an_engine_that_died_is_history_in_the_same_process(ledger):
    attempt = ledger.begin(PART)
    attempt.admit([4])
    attempt.fail()
    assert ledger.begin(PART).history == History(attempts=1, suspects={4: 0})


def test_dying_alone_is_a_strike(ledger, monkeypatch):
    die(monkeypatch)
    ledger.begin(PART).admit([1, 2])
    second = ledger.begin(PART)
    second.accuse([1])
    second.acquit()
    second.accuse([2])
    third = ledger.begin(PART)
    assert third.history == History(attempts=2, suspects={1: 0, 2: 1})
    third.accuse([2])
    fourth = ledger.begin(PART)
    assert fourth.history.suspects[2] == strikes.QUARANTINE
    assert (fourth.history.attempts, fourth.last) == (3, True)


def test_attempts_of_another_start_do_not_use_up_this_one(ledger, monkeypatch):
    die(monkeypatch)
    for _ in range(5):
        ledger.begin(PART).admit([1])
    later = dataclasses.replace(ledger, start="later").begin(PART)
    assert (later.history.attempts, later.last) == (0, False)
    assert later.history.suspects == {1: 0}
    assert ledger.begin(PART).last
    assert not dataclasses.replace(ledger, attempts=None).begin(PART).last


def test_saved_answers_are_found_and_forgotten(ledger, monkeypatch):
    attempt = ledger.begin(PART)
    one, two, twice = piece(0, 0, 3), piece(1), piece(2, 3)
    for each in (one, two, twice):
        attempt.save(each)
    ledger.begin(OTHER).save(two)
    again = ledger.begin(PART)
    # Row 3 was answered twice, by two attempts at once: it counts once.
    assert again.saved() == [one, two]
    ledger.forget(PART)
    assert not ledger.begin(PART).history
    assert ledger.parts() == {OTHER}


def test_a_pardon_leaves_no_suspect(ledger, monkeypatch):
    attempt = ledger.begin(PART)
    attempt.admit([1])
    alone = ledger.begin(OTHER)
    alone.accuse([5])
    strikes.pardon_all()
    # The thread that runs the chunk may not know yet.
    attempt.admit([1, 2])
    die(monkeypatch)
    assert not ledger.begin(PART).history
    assert not ledger.begin(OTHER).history


def test_pieces_are_joined_in_the_order_of_the_input():
    assert merge([piece(1, 1, 5), piece(0, 4), piece(3)]).column("x").to_pylist() == [
        0,
        10,
        10,
        30,
        40,
        50,
    ]
    assert merge([piece(), piece()]).num_rows == 0
