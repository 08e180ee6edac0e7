import threading
import time

import jax
import pytest

from model.config import PRESETS
from model.engine.compiled import CompiledSteps
from model.engine.engine import Engine
from model.engine.options import EngineOptions
from model.engine.plan import make_plan
from model.engine.request import Request
from model.sharding import make_mesh
from schemas.sampling import SamplingParams


@pytest.mark.slow
def test_it_is_told_which_steps_are_being_compiled():
    plan = make_plan(
        PRESETS["tiny"], EngineOptions(slots=2), make_mesh(1, PRESETS["tiny"], jax.devices())
    )
    told = []
    CompiledSteps(plan).prepare(lambda *step: told.append(step), scores_only=True)
    assert told[0][0] == 0
    assert told[-1] == (2, 2, ())
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert {name for _, _, names in told for name in names} == {"score", "copy_pages"}


@pytest.mark.slow
def test_devices_are_not_silent_while_a_step_is_compiled(tiny, monkeypatch):
    """A request may be the first that needs a step, and a large one takes minutes to compile."""
    options = EngineOptions(numerics="float32", slots=4, max_context=64)
    params = SamplingParams(max_tokens=2, prompt_logprobs=0)
    began, go_on, silent = threading.Event(), threading.Event(), []
    with Engine.from_checkpoint(tiny, options=options) as engine:
        compiled = engine._replicas[0].compiled
        compile_ = compiled._compile

        def slow(name):
            step = compile_(name)
            began.set()
            go_on.wait(300)

            def run(*arguments):
                silent.append(engine.silent_seconds)
                return step(*arguments)

            return run

        monkeypatch.setattr(compiled, "_compile", slow)
        future = engine.submit(Request(prompt_token_ids=(5, 6, 7), params=params))
        assert began.wait(300)
        while engine.compiling_seconds < 0.5:
            assert engine.silent_seconds == 0
            time.sleep(0.01)
        go_on.set()
        assert future.result(300).error is None
        assert silent[0] < 0.5
        assert engine.compiling_seconds == 0
