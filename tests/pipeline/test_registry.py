import threading
import time

import pytest

from model.engine.options import EngineStats
from pipeline import registry
from pipeline.registry import EngineSettings, ShutDown
from schemas.error import SetupError

SETTINGS = EngineSettings(checkpoint="somewhere")


class Engine:
    """Counts and closes; another implementation, as ``registry.factory`` lets a program bring."""

    capacity = 8

    def __init__(self, settings):
        self.settings = settings
        self.closed = self.abandoned = False
        self.tokens = 0

    def stats(self):
        return EngineStats(completion_tokens=self.tokens, load_seconds=2.0)

    def close(self, *, abandon=False):
        self.closed, self.abandoned = True, abandon


@pytest.fixture(autouse=True)
def made(monkeypatch):
    """The engines made in a test, by a registry of its own."""
    engines = []

    def make(settings):
        time.sleep(0.01)  # so that callers at once do meet
        engines.append(Engine(settings))
        return engines[-1]

    monkeypatch.setattr(registry, "factory", make)
    monkeypatch.setattr(registry, "_held", {})
    monkeypatch.setattr(registry, "_ended", threading.Event())
    return engines


def test_all_threads_share_one(made):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(registry.acquire(SETTINGS))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert {held.engine for held in found} == set(made)


def test_other_settings_get_another(made):
    one = registry.acquire(SETTINGS)
    other = registry.acquire(EngineSettings(checkpoint="elsewhere"))
    assert one.engine is not other.engine
    assert registry.acquire(SETTINGS) is one


def test_a_load_that_failed_is_tried_again(monkeypatch, made):
    make = registry.factory

    def fail(settings):
        raise SetupError("no such checkpoint")

    monkeypatch.setattr(registry, "factory", fail)
    with pytest.raises(SetupError):
        registry.acquire(SETTINGS)
    monkeypatch.setattr(registry, "factory", make)
    assert registry.acquire(SETTINGS).engine in made


def test_an_engine_that_failed_is_replaced(made):
    held = registry.acquire(SETTINGS)
    registry.discard(held)
    assert held.engine.closed
    again = registry.acquire(SETTINGS)
    assert again.engine is made[1]
    registry.discard(held)  # by a thread that had the old one
    assert not again.engine.closed
    assert registry.acquire(SETTINGS) is again


def test_gains_add_up_over_all_callers():
    held = registry.acquire(SETTINGS)
    held.engine.tokens = 5
    first = held.advance()
    assert (first.completion_tokens, first.load_seconds) == (5, 2.0)
    held.engine.tokens = 7
    assert held.advance() == EngineStats(completion_tokens=2)


def test_closing_all_closes_all_and_more_may_come(made):
    registry.acquire(SETTINGS)
    registry.close_all()
    assert [engine.closed for engine in made] == [True]
    registry.acquire(SETTINGS)
    assert len(made) == 2


def test_shutting_down_abandons_all_and_no_more_come(made):
    registry.acquire(SETTINGS)
    registry.shut_down()
    assert [engine.abandoned for engine in made] == [True]
    with pytest.raises(ShutDown):
        registry.acquire(SETTINGS)
    assert len(made) == 1


def test_shutting_down_does_not_wait_for_a_load(monkeypatch, made):
    loading, go_on = threading.Event(), threading.Event()
    make = registry.factory

    def slow(settings):
        loading.set()
        assert go_on.wait(30)
        return make(settings)

    monkeypatch.setattr(registry, "factory", slow)
    failures = []

    def ask():
        try:
            registry.acquire(SETTINGS)
        except ShutDown as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert loading.wait(30)
    registry.shut_down()
    registry.close_all()
    go_on.set()
    thread.join()
    assert len(failures) == 1


def test_a_checkpoint_that_changed_is_refused(talking):
    settings = EngineSettings(checkpoint=talking, identity="another")
    with pytest.raises(SetupError, match="has changed since the run began"):
        registry.load_engine(settings)
