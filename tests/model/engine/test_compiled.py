import jax

from model.config import PRESETS
from model.engine.compiled import CompiledSteps
from model.engine.options import EngineOptions
from model.engine.plan import make_plan
from model.sharding import make_mesh


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
