import logging
import threading
import time
import types

import pytest

from pipeline import registry, watchdog
from pipeline.options import Limits


@pytest.fixture
def given_up(monkeypatch):
    """Why the process would have ended."""
    why, ended = [], threading.Event()

    def give_up(reason):
        why.append(reason)
        ended.set()

    monkeypatch.setattr(watchdog, "give_up", give_up)
    return why, ended


def test_a_load_without_a_sign_ends_the_process(given_up):
    why, ended = given_up
    with watchdog.watching_load(dict, 0.05):
        assert ended.wait(30)
    assert why[0].startswith("loading has made no progress for")


def test_a_load_that_gets_on_is_left_alone(given_up):
    why, _ = given_up
    steps = iter(range(10**9))
    with watchdog.watching_load(lambda: {"loading": (next(steps), 1e9, 0.0)}, 0.01):
        time.sleep(0.5)
    assert not why


def test_a_load_is_logged_while_it_goes_on(monkeypatch, caplog):
    monkeypatch.setattr(watchdog, "HEARTBEAT_SECONDS", 0.02)
    phases = {"loading": (3.0, 4.0, 0.0), "compiling": (1.0, 8.0, 0.0)}
    with (
        caplog.at_level(logging.INFO, "grok1.worker"),
        watchdog.watching_load(lambda: phases, None),
    ):
        deadline = time.monotonic() + 30
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
    assert caplog.messages[0] == (
        '{"event":"grok1.loading","grok1.loading.done":0.75,"grok1.compiling.done":0.125}'
    )


def test_the_process_s_engine_is_watched_as_it_is_made(monkeypatch):
    watched = []
    watching = watchdog.watching_load

    def spy(phases, seconds):
        watched.append((phases, seconds))
        return watching(phases, seconds)

    monkeypatch.setattr(watchdog, "watching_load", spy)
    monkeypatch.setattr(registry, "_held", {})

    class Engine:
        capacity = 1

    monkeypatch.setattr(registry, "factory", lambda settings: Engine())
    monkeypatch.setattr(watchdog, "watch", lambda engine, seconds: None)
    settings = registry.EngineSettings(checkpoint="somewhere", stall_seconds=7.0)
    registry.acquire(settings)
    assert watched == [(registry.phases, 7.0)]
    registry._held.clear()


def test_a_device_is_given_up_before_dataflow_calls_its_step_stuck():
    assert Limits().stall_seconds < 300


@pytest.mark.parametrize(
    ("silent", "compiling", "told"),
    [(2.0, 0.0, "no token from the device"), (0.0, 5.0, "a step has been compiling for 5 s")],
)
def test_an_engine_without_a_sign_ends_the_process(given_up, silent, compiling, told):
    why, ended = given_up
    engine = types.SimpleNamespace(is_open=True, silent_seconds=0.9, compiling_seconds=3.9)
    watchdog.watch(engine, 1.0)
    time.sleep(0.6)
    assert not why
    engine.silent_seconds, engine.compiling_seconds = silent, compiling
    assert ended.wait(30)
    engine.is_open = False
    assert told in why[0]
