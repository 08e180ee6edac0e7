"""The full model, compiled for machines that are not here: all 64 layers, every step.

Needs the extra ``aot`` (``make test-aot``, where nothing may be skipped). Each case is a process of
its own, and takes minutes.
"""

import dataclasses
import importlib.util

import pytest
from jax.sharding import AbstractMesh

from model.config import GROK_1
from model.engine.programs import Plan, steps
from model.engine.shapes import Machine, choose_shapes
from model.fit import compile_for, find_fit
from model.layout import choose_layout
from model.numerics import MODES
from model.room import Question
from model.sharding import MODEL

COMPILERS = ("libtpu", "jax_cuda13_plugin")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, COMPILERS)), reason="needs the extra aot"
    ),
]

GIB = 1 << 30
EXCHANGES = {"all-to-all": 2, "all-gather": 2}
KERNELS = {"attention": 1, "gate": 1, "down": 1}


def compiled(machine: str, slots: int | None, context: int, **more):
    question = Question(machine=machine, config=GROK_1, slots=slots, context=context, **more)
    return find_fit(question) if slots is None else compile_for(question)


def serving(question: Question) -> set[str]:
    """The names of all steps of an engine."""
    machine = Machine(platform="tpu", devices=8, cache_bytes=0)
    shapes = choose_shapes(GROK_1, question.options(), machine)
    numerics = MODES["bf16"]
    layout = choose_layout("tpu", numerics, question.weights)
    return set(steps(Plan(GROK_1, numerics, layout, shapes, AbstractMesh((8,), (MODEL,)))))


@pytest.mark.parametrize(
    ("machine", "slots", "context", "cache"),
    [
        ("v5p-4", 128, 2048, "auto"),
        ("v5p-4", 32, 8192, "auto"),
        # Of 64 the last gigabytes are taken, and the compiler gathers again what it cannot keep.
        ("v5p-4", 56, 8192, "int8"),
        ("h100x8", 256, 2048, "auto"),
        ("h100x8", 128, 8192, "auto"),
        ("h100x8", 256, 8192, "int8"),
        ("a100x8", 256, 2048, "auto"),
    ],
)
def test_int8_fits(machine, slots, context, cache):
    fit = compiled(machine, slots, context, kv_cache_dtype=cache)
    assert_lean(fit)


def assert_lean(fit):
    """All steps fit; two sums over devices a layer, the kernels, and nothing large held twice."""
    assert set(fit.steps) == serving(fit.question)
    assert fit.fits
    # Neither a second cache, nor a layer's weights in bfloat16, would stay below.
    assert fit.temporaries_bytes < GIB
    kept = fit.weights_bytes + fit.cache_bytes + fit.slots_bytes
    assert fit.peak_bytes < kept + fit.temporaries_bytes + fit.code_bytes + GIB // 100
    for name in ("prefill", "score", "decode", "run"):
        assert fit.steps[name]["layer_collectives"] == EXCHANGES, name
        assert fit.steps[name]["kernels"] == KERNELS, name


@pytest.mark.parametrize(
    ("machine", "slots", "context"),
    [("v6e-8", 128, 2048), ("v6e-8", 32, 8192), ("h100x8", 256, 2048)],
)
def test_int4_fits(machine, slots, context):
    assert_lean(compiled(machine, slots, context, weights="int4"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uneven(Question):
    """Of prefill steps of other sizes."""

    prefill_rows: int

    def options(self):
        return dataclasses.replace(super().options(), prefill_rows=self.prefill_rows)


@pytest.mark.parametrize(
    ("machine", "weights", "cache", "slots", "prefill_rows"),
    [
        ("v5p-4", "int8", "auto", 96, 1920),
        # Sums over devices are padded: of 96 rows to 128, as many as a key has numbers.
        ("v6e-8", "int4", "auto", 160, 1792),
        ("v6e-8", "int4", "int8", 160, 1792),
        ("h100x8", "int8", "auto", 192, 1792),
        ("h100x8", "int4", "auto", 192, 1792),
        ("h100x8", "int4", "int8", 192, 1792),
        ("a100x8", "int8", "auto", 192, 1792),
        ("a100x8", "int8", "int8", 192, 1792),
    ],
)
def test_no_weight_is_widened_in_memory(machine, weights, cache, slots, prefill_rows):
    """With sizes by which no step has as many rows as a weight: those would look the same."""
    question = Uneven(
        machine=machine,
        config=GROK_1,
        weights=weights,
        kv_cache_dtype=cache,
        slots=slots,
        prefill_rows=prefill_rows,
    )
    fit = compile_for(question, ("prefill", "score", "decode", "run"))
    # Nor is a cache of integers: what is not in place is less than it.
    assert fit.temporaries_bytes < min(GIB, fit.cache_bytes)
    for name, step in fit.steps.items():
        assert step["kernels"] == KERNELS, name
        assert {"query", "key", "value", "attn_out", "gate", "up", "down"} <= set(step["widened"])
        assert not any(step["widened"].values()), (name, step["widened"])


def test_int8_is_refused_where_it_cannot_fit():
    fit = compiled("v6e-8", 8, 2048)
    assert not fit.fits
    assert fit.refused
    assert fit.peak_bytes > 37 * GIB


def test_the_most_sequences_are_found():
    fit = compiled("h100x8", None, 8192)
    assert fit.fits
    assert fit.max_slots == fit.question.slots
    more = dataclasses.replace(fit.question, slots=fit.max_slots + 16)
    assert not compile_for(more, ("decode",)).fits
