import os

import jax
import pytest

from model.config import PRESETS
from model.engine.compiled import CompiledSteps
from model.engine.load import open_cache
from model.engine.options import EngineOptions
from model.engine.plan import make_plan
from model.engine.tuning import Tuning, prepare_gpu
from model.machines import GPU_MEMORY_SHARE
from model.sharding import make_mesh


def folder_of(tuning: Tuning) -> str:
    return tuning.options["xla_gpu_per_fusion_autotune_cache_dir"]


def choose(tuning: Tuning, name: str, text: str) -> None:
    """What the compiler does when it has measured."""
    with open(os.path.join(folder_of(tuning), name), "w") as file:
        file.write(text)


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path) -> str:
    return str(tmp_path / "_tuning") if request.param == "local" else f"memory://{tmp_path.name}"


def test_a_restart_finds_what_was_chosen(url):
    first = Tuning(url)
    choose(first, "a.textproto", "triton")
    first.keep()
    second = Tuning(url)
    assert os.listdir(folder_of(second)) == ["a.textproto"]
    assert second.identity() == first.identity()


def test_a_choice_that_is_kept_stays(url):
    first, late = Tuning(url), Tuning(url)
    choose(first, "a.textproto", "triton")
    first.keep()
    choose(late, "a.textproto", "cublas")
    choose(late, "b.textproto", "triton")
    late.keep()
    third = Tuning(url)
    assert third.identity() != late.identity()
    assert sorted(os.listdir(folder_of(third))) == ["a.textproto", "b.textproto"]
    with open(os.path.join(folder_of(third), "a.textproto")) as file:
        assert file.read() == "triton"


def test_steps_are_compiled_by_the_choices_and_new_ones_are_kept(url, monkeypatch):
    """The compiler gets the folder with every step; a CPU's has no choices to put there."""
    mesh = make_mesh(1, PRESETS["tiny"], jax.devices())
    plan = make_plan(PRESETS["tiny"], EngineOptions(slots=2), mesh)
    tuning = Tuning(url)
    compiled = CompiledSteps(plan, tuning)
    told = []
    compile_step = jax.stages.Lowered.compile

    def spy(lowered, compiler_options=None):
        told.append(compiler_options)
        choose(tuning, f"{len(told)}.textproto", "triton")
        return compile_step(lowered, compiler_options=compiler_options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", spy)
    assert callable(compiled["edit_slots"])
    assert told == [tuning.options]
    assert os.listdir(folder_of(Tuning(url))) == ["1.textproto"]


def test_a_gpu_gives_programs_what_fits_are_counted_on(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    prepare_gpu()
    assert float(os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"]) == GPU_MEMORY_SHARE
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    prepare_gpu()
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"


def test_a_compile_cache_that_a_gpu_does_not_use_is_told(url, caplog):
    """What another run compiled by its choices would not be what this one's choices say."""
    mesh = make_mesh(1, PRESETS["tiny"], jax.devices())
    named = EngineOptions(compile_cache="memory://compiled")
    assert open_cache(named, mesh, Tuning(url)) is None
    assert "--compile-cache memory://compiled is not used on a GPU" in caplog.text
    caplog.clear()
    assert open_cache(EngineOptions(), mesh, Tuning(url)) is None
    assert not caplog.text
