"""The arithmetic of room, beside what the engine would allocate and what the compilers gave."""

import dataclasses

import jax
import pytest
from jax.sharding import AbstractMesh

from model.config import GROK_1
from model.engine import programs
from model.engine.shapes import Machine, choose_shapes
from model.layout import abstract_params, choose_layout, held_bytes
from model.machines import MACHINES
from model.numerics import MODES
from model.params import WEIGHTS
from model.room import Question, held_weights_bytes, room_for
from model.sharding import MODEL


def part_bytes(tree) -> int:
    """Of one device's part."""
    return held_bytes(
        jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype),
            tree,
        )
    )


@pytest.mark.parametrize("devices", [1, 4, 8])
@pytest.mark.parametrize("numerics", MODES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_weights_are_counted_as_they_are_held(weights, numerics, devices):
    mode = MODES[numerics]
    layout = choose_layout("tpu", mode, weights)
    held = abstract_params(GROK_1, AbstractMesh((devices,), (MODEL,)), mode, layout)
    assert held_weights_bytes(GROK_1, weights, numerics, devices) == part_bytes(held)


@pytest.mark.parametrize(("slots", "context"), [(144, 8192), (8, 1000)])
@pytest.mark.parametrize("cache", ["auto", "int8"])
@pytest.mark.parametrize("numerics", ["bf16", "float32"])
def test_cache_and_slots_are_counted_as_they_are_allocated(numerics, cache, slots, context):
    question = Question(
        machine="h100x8",
        config=GROK_1,
        numerics=numerics,
        kv_cache_dtype=cache,
        context=context,
        slots=slots,
    )
    shapes = choose_shapes(
        GROK_1, question.options(), Machine(platform="gpu", devices=8, cache_bytes=0)
    )
    plan = programs.Plan(
        GROK_1,
        MODES[numerics],
        choose_layout("gpu", MODES[numerics]),
        shapes,
        AbstractMesh((8,), (MODEL,)),
        quantized_cache=cache == "int8",
    )
    room = room_for(question)
    assert room.cache_bytes(slots) == part_bytes(programs.abstract_cache(plan))
    kept = programs.steps(plan)["decode"].arguments[2:]
    assert room.slots_bytes(slots) == part_bytes(kept)


COMPILED = [
    ("h100x8", "int8", "bf16", "auto", 8192, 144, 174151160),
    ("h100x8", "int8", "bf16", "auto", 2048, 512, 201425888),
    ("h100x8", "int8", "bf16", "int8", 8192, 256, 174151432),
    ("h100x8", "int8", "release", "auto", 8192, 128, 725632000),
    ("h100x8", "int8", "float32", "auto", 8192, 64, 1197783552),
    ("h100x8", "int4", "bf16", "auto", 8192, 200, 174151160),
    ("v5p-4", "int8", "bf16", "auto", 2048, 128, 460105888 + 26526208),
    ("v5p-4", "int8", "release", "auto", 2048, 128, 2431182336 + 29274112),
    ("v5p-4", "int8", "float32", "auto", 2048, 64, 2496452000 + 34123776),
    ("v5p-4", "int8", "bf16", "int8", 8192, 72, 662758016 + 31545344),
    ("v6e-8", "int4", "bf16", "auto", 2048, 128, 320154656 + 50436096),
    ("v6e-8", "int4", "bf16", "auto", 2048, 160, 235529760 + 28372992),
    ("v6e-8", "int4", "release", "auto", 2048, 64, 1009458720 + 26234880),
]
"""What the compilers gave with jax 0.10.2: temporaries of the hungriest step, and programs; where
128 sequences are asked of a v6e those of all steps, elsewhere of prefill and decode."""


@pytest.mark.parametrize("case", COMPILED, ids=lambda case: "-".join(map(str, case[:6])))
def test_steps_are_allowed_what_the_compilers_ask_for_and_hardly_more(case):
    machine, weights, numerics, cache, context, slots, asked = case
    question = Question(
        machine=machine,
        config=GROK_1,
        weights=weights,
        numerics=numerics,
        kv_cache_dtype=cache,
        context=context,
    )
    allowed = room_for(question).steps_bytes(slots)
    assert asked <= allowed <= 1.5 * asked


def test_the_most_sequences_fit_and_one_more_on_each_device_does_not():
    room = room_for(Question(machine="h100x8", config=GROK_1, context=8192))
    most = room.max_slots
    assert most == 144
    assert room.peak_bytes(most) <= room.limit_bytes < room.peak_bytes(most + 8)
    assert room.limit_bytes == MACHINES["h100x8"].usable_bytes


def test_what_does_not_fit_has_no_room():
    assert room_for(Question(machine="v6e-8", config=GROK_1)).max_slots == 0
    assert room_for(Question(machine="v5e-8", config=GROK_1, weights="int4")).max_slots == 0


def test_an_int8_cache_leaves_room_for_more():
    question = Question(machine="v5p-4", config=GROK_1, context=8192)
    smaller = dataclasses.replace(question, kv_cache_dtype="int8")
    assert room_for(smaller).max_slots > 1.8 * room_for(question).max_slots


def test_the_figures_are_told_as_fit_shows_them():
    told = room_for(Question(machine="h100x8", config=GROK_1, context=8192)).told(144)
    assert told == (
        "of 75.14 GiB a device, int8 weights take 37.27, "
        "144 sequences of 8192 tokens 36.00, the steps 0.17"
    )
