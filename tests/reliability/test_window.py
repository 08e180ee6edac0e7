"""Rows are let into the engine some at a time, over all chunks, and a suspect alone."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import pytest

from pipeline.window import Gate


class Room:
    """Stands for an engine: holds what is let in until it is told to answer."""

    def __init__(self) -> None:
        self.inside: dict[str, Future] = {}
        self.most = 0
        self.changed = threading.Condition()

    def start(self, name: str) -> Future:
        with self.changed:
            future = self.inside[name] = Future()
            self.most = max(self.most, len(self.inside))
            self.changed.notify_all()
        return future

    def answer(self, count: int = 1) -> list[str]:
        """Answers so many, oldest first, waiting for them to be there."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.inside) >= count, 20)
            names = list(self.inside)[:count]
            futures = [self.inside.pop(name) for name in names]
        for name, future in zip(names, futures, strict=True):
            future.set_result(name.upper())
        return names


def starts(room: Room, names: list[str]):
    return [partial(room.start, name) for name in names]


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as executor:
        yield executor


def test_no_more_than_the_window_and_each_is_told_of_before(pool):
    room, gate, told = Room(), Gate(8), []

    def admit(rows):
        # What is about to go in is not in yet: a record of it comes first.
        assert set(room.inside) <= {f"r{i}" for i in rows}
        told.append(list(rows))

    names = [f"r{i}" for i in range(30)]
    asked = pool.submit(gate.ask_all, starts(room, names), admit)
    for _ in range(30):
        room.answer()
    assert asked.result(20) == [name.upper() for name in names]
    assert room.most <= 8
    assert told[0] == list(range(8))
    assert {row for rows in told for row in rows} == set(range(30))
    assert all(len(rows) <= 8 for rows in told)


def test_chunks_share_the_window(pool):
    room, gate = Room(), Gate(6)
    asked = [
        pool.submit(gate.ask_all, starts(room, [f"{c}{i}" for i in range(9)]), lambda rows: None)
        for c in "abc"
    ]
    for _ in range(27):
        room.answer()
    assert [f.result(20) for f in asked] == [[f"{c}{i}" for i in range(9)] for c in "ABC"]
    assert room.most <= 6


def test_alone_waits_for_the_rest_and_keeps_others_out(pool):
    room, gate = Room(), Gate(4)
    some = pool.submit(gate.ask_all, starts(room, list("abcdef")), lambda rows: None)
    with room.changed:
        assert room.changed.wait_for(lambda: len(room.inside) == 4, 20)
    accused = threading.Event()
    answers, acquit = [], threading.Event()

    def settle(answer: str) -> None:
        answers.append(answer)
        assert acquit.wait(20)

    alone = pool.submit(gate.ask_alone, partial(room.start, "x"), accused.set, settle)
    while not gate._alone:
        pass
    room.answer(4)
    assert accused.wait(20)
    with room.changed:
        assert room.changed.wait_for(lambda: "x" in room.inside, 20)
        assert list(room.inside) == ["x"]
    assert room.answer() == ["x"]
    while not answers:
        pass
    assert gate._alone, "until it is acquitted, what comes next might be its doing"
    assert not room.inside
    acquit.set()
    alone.result(20)
    assert answers == ["X"]
    room.answer(2)
    assert some.result(20) == list("ABCDEF")


def test_a_failure_gives_back_what_was_taken(pool):
    room, gate = Room(), Gate(4)

    def broken() -> Future:
        raise RuntimeError("the engine is gone")

    with pytest.raises(RuntimeError, match="gone"):
        gate.ask_all([broken] * 3, lambda rows: None)

    def unwritable(rows) -> None:
        raise OSError("the store is gone")

    with pytest.raises(OSError, match="store"):
        gate.ask_all(starts(room, ["a"]), unwritable)
    asked = pool.submit(gate.ask_all, starts(room, list("abcd")), lambda rows: None)
    room.answer(4)
    assert asked.result(20) == list("ABCD")
    with pytest.raises(OSError, match="store"):
        gate.ask_alone(partial(room.start, "x"), partial(unwritable, []), unwritable)
    answers: list[str] = []
    asked = pool.submit(gate.ask_alone, partial(room.start, "y"), lambda: None, answers.append)
    room.answer()
    asked.result(20)
    assert answers == ["Y"]
