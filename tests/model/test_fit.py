import dataclasses
import json

import pytest
from jax.sharding import AbstractMesh

from model import topology
from model.config import GROK_1
from model.engine.options import EngineOptions
from model.engine.programs import Plan, steps
from model.engine.shapes import Machine, choose_shapes
from model.fit import Fit, compile_for, find_fit
from model.layout import abstract_params, choose_layout
from model.machines import MACHINES
from model.numerics import MODES
from model.room import Question
from model.sharding import MODEL
from pipeline.cli import FAILED, SETUP, main
from schemas.error import SetupError

GIB = 1 << 30
QUESTION = Question(machine="h100x8", config=GROK_1, context=2000, slots=128)


def step(temporaries: float, peak: float = 0, refused: bool = False) -> dict:
    return {
        "refused": refused,
        "peak_bytes": int(peak * GIB),
        "temporaries_bytes": int(temporaries * GIB),
        "code_bytes": GIB // 100,
        "layer_collectives": {"all-to-all": 2},
        "seconds": 1.0,
    }


def fit(**changes) -> Fit:
    values = {
        "question": QUESTION,
        "weights_bytes": 40 * GIB,
        "cache_bytes": 8 * GIB,
        "slots_bytes": 0,
        "steps": {"prefill": step(0.75, 48.75), "decode": step(0.5, 48.5)},
    }
    return Fit(**{**values, **changes})


def test_an_engine_for_it_holds_every_sequence_at_full_length():
    options = QUESTION.options()
    assert options.slots == 128
    assert options.max_context == 2000
    assert options.cache_tokens == 128 * 2048


def test_the_peak_is_that_of_the_hungriest_step_and_all_programs():
    found = fit()
    assert found.peak_bytes == pytest.approx(48.77 * GIB)
    assert found.temporaries_bytes == 0.75 * GIB
    assert found.fits


def test_a_refusal_says_how_much_it_would_take_at_least():
    found = fit(steps={"decode": step(0, 12, refused=True)})
    assert not found.fits
    assert found.peak_bytes >= 48 * GIB


def test_too_much_does_not_fit_even_if_the_compiler_does_not_mind():
    assert not fit(steps={"decode": step(1, 79)}).fits


def test_json_has_what_scripts_ask_for():
    found = json.loads(json.dumps(fit(max_slots=200).to_dict()))
    assert found["fits"] is True
    assert found["peak_gib"] == pytest.approx(48.77)
    assert found["limit_gib"] == pytest.approx(MACHINES["h100x8"].usable_bytes / GIB, abs=1e-3)
    assert found["max_slots"] == 200
    assert found["collectives_per_layer"] == {"all-to-all": 2}
    # 316.6 GB of weights and 128 x 2000 tokens of 256 KiB, at 8 x 3.352 TB/s.
    seconds = (316.6e9 + 128 * 2000 * 2**18) / (8 * 3.352e12)
    assert found["decode_floor_tokens_per_second"] == pytest.approx(128 / seconds, rel=2e-3)


def test_an_int8_cache_has_a_higher_floor():
    smaller = dataclasses.replace(QUESTION, kv_cache_dtype="int8")
    floor = "decode_floor_tokens_per_second"
    assert fit(question=smaller).to_dict()[floor] > fit().to_dict()[floor]


def test_all_that_serves_is_compiled_unless_names_are_given(monkeypatch):
    options = dataclasses.replace(QUESTION, machine="v6e-8").options()
    mesh = AbstractMesh((8,), (MODEL,))
    shapes = choose_shapes(GROK_1, options, Machine(platform="tpu", devices=8, cache_bytes=0))
    plan = Plan(GROK_1, MODES["bf16"], choose_layout("tpu", MODES["bf16"]), shapes, mesh)
    monkeypatch.setattr(topology, "plan_for", lambda *asked: plan)
    monkeypatch.setattr(topology, "compile_step", lambda step, *more: step.name)

    def compiled(names):
        found = topology.answer(MACHINES["v6e-8"], GROK_1, options, "int8", names)["steps"]
        return list(found.values())

    assert compiled(None) == list(steps(plan))
    assert compiled(["draw", "decode"]) == ["draw", "decode"]


@pytest.mark.parametrize(
    ("platform", "read"),
    # A GPU's kernel takes 4-bit weights as bytes, two to each.
    [("tpu", "s4[64,8,6144,4096]"), ("gpu", "s8[64,8,6144,2048]")],
)
def test_kernels_on_4_bit_weights_are_counted(platform, read):
    numerics, mesh = MODES["bf16"], AbstractMesh((8,), (MODEL,))
    layout = choose_layout(platform, numerics, "int4")
    machine = Machine(platform=platform, devices=8, cache_bytes=0)
    plan = Plan(GROK_1, numerics, layout, choose_shapes(GROK_1, QUESTION.options(), machine), mesh)
    target = {"tpu": "tpu_custom_call", "gpu": "__gpu$xla.gpu.triton"}[platform]
    text = (
        f'%k = bf16[64,4096]{{1,0}} custom-call(%x, %w), custom_call_target="{target}", '
        f"operand_layout_constraints={{bf16[64,6144]{{1,0}}, {read}{{3,2,1,0}}}}, metadata={{}}"
    )
    params = abstract_params(GROK_1, mesh, numerics, layout)
    assert topology._kernels(text, plan, params) == {"attention": 0, "gate": 1, "down": 0}


@pytest.mark.parametrize("hungry", ["score", "draw"])
def test_the_most_that_fit_do_with_every_step(monkeypatch, hungry):
    """Be it a step that the search looks at, or one that is compiled only at its end."""

    def compile_for(question, names=None):
        kept = 40 + question.slots / 16
        temporaries = dict.fromkeys(names or ("prefill", "score", "decode", "draw"), 0.1)
        if hungry in temporaries:
            temporaries[hungry] = 2
        return fit(
            question=question,
            cache_bytes=question.slots * GIB // 16,
            steps={name: step(more, kept + more) for name, more in temporaries.items()},
        )

    monkeypatch.setattr("model.fit.compile_for", compile_for)
    found = find_fit(dataclasses.replace(QUESTION, slots=None))
    assert found.fits
    assert found.max_slots == found.question.slots
    more = dataclasses.replace(QUESTION, slots=found.max_slots + QUESTION.profile.devices)
    assert not compile_for(more).fits


def test_a_step_that_breaks_is_no_refusal(monkeypatch):
    monkeypatch.setattr("model.fit._require_compiler", lambda machine: None)
    # No mesh splits three heads, and without the compilers there is none at all.
    impossible = dataclasses.replace(GROK_1, num_kv_heads=3)
    with pytest.raises(RuntimeError, match="compiling for v5p-4 failed: "):
        compile_for(dataclasses.replace(QUESTION, machine="v5p-4", config=impossible))


def test_the_command_names_the_package_that_is_missing(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["fit", "--machine", "v5p-4"]) == SETUP
    assert "libtpu" in capsys.readouterr().err
    with pytest.raises(SetupError, match="jax-cuda13-plugin and nvidia-cuda-nvcc"):
        compile_for(QUESTION)


def test_the_command_shows_and_judges(monkeypatch, capsys):
    pytest.importorskip("rich")
    found = fit(max_slots=200, steps={"decode": step(0.5, 80)})
    monkeypatch.setattr("model.fit.find_fit", lambda question: found)
    assert main(["fit", "--machine", "h100x8"]) == FAILED
    text = capsys.readouterr().out
    assert "does not fit" in text
    assert "75.14" in text
    assert main(["fit", "--machine", "h100x8", "--json"]) == FAILED
    assert json.loads(capsys.readouterr().out)["fits"] is False


def test_a_cache_dtype_that_is_none_is_refused():
    with pytest.raises(SetupError, match="--kv-cache-dtype must be one of auto, int8"):
        EngineOptions(kv_cache_dtype="fp8")


@pytest.mark.parametrize("flag", ["--slots", "--context"])
@pytest.mark.parametrize(
    ("value", "why"),
    [("0", "must be at least 1, got 0"), ("few", "must be a whole number, got 'few'")],
)
def test_a_count_below_one_is_refused_in_words(capsys, flag, value, why):
    with pytest.raises(SystemExit) as refused:
        main(["fit", "--machine", "h100x8", flag, value])
    assert refused.value.code == SETUP
    assert f"argument {flag}: {why}" in capsys.readouterr().err
