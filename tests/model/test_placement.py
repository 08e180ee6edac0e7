"""Weights on the devices: what is described is what is loaded, and products take it as it lies."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import placement, quantization
from model.checkpoint.recode import read_as
from model.checkpoint.source import open_checkpoint
from model.checkpoint.synth import synthesize
from model.config import PRESETS
from model.engine import load
from model.engine.options import EngineOptions
from model.engine.plan import make_plan
from model.layout import Layout, abstract_params, choose_layout, held_bytes
from model.numerics import MODES
from model.params import WEIGHTS
from model.sharding import make_mesh
from schemas.error import SetupError


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    url = str(tmp_path_factory.mktemp("small"))
    synthesize(url, dataclasses.replace(PRESETS["tiny"], num_layers=2))
    return url


def loaded(url: str, weights: str, numerics: str, layout: Layout):
    checkpoint = open_checkpoint(url)
    mesh = make_mesh(1, checkpoint.config, jax.devices())
    read = read_as(checkpoint, weights)
    mode = MODES[numerics]
    described = abstract_params(checkpoint.config, mesh, mode, layout)
    return placement.load_params(read, checkpoint.config, mesh, mode, layout), described


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("numerics", ["bf16", "float32"])
@pytest.mark.parametrize("platform", ["cpu", "cpu packed", "tpu"])
def test_what_is_loaded_is_what_was_described(small, weights, numerics, platform):
    platform, _, packed = platform.partition(" ")
    layout = choose_layout(platform, MODES[numerics], weights, bool(packed))
    params, described = loaded(small, weights, numerics, layout)
    assert jax.tree.structure(params) == jax.tree.structure(described)
    for found, expected in zip(jax.tree.leaves(params), jax.tree.leaves(described), strict=True):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert found.sharding.is_equivalent_to(expected.sharding, found.ndim)
    if platform == "tpu" and weights == "int4":
        assert params["layers"]["gate"].values.dtype == jnp.int4
        assert params["layers"]["query"].values.dtype == jnp.int8
        eight = loaded(small, "int8", numerics, choose_layout(platform, MODES[numerics]))[1]
        assert held_bytes(described["layers"]) < 0.65 * held_bytes(eight["layers"])


@pytest.mark.parametrize("numerics", sorted(MODES))
def test_a_product_takes_4_bit_weights_as_they_lie(small, numerics):
    """Integers in place, and what they are times their scales: the same numbers, exact operands."""
    mode = MODES[numerics]
    integers, _ = loaded(small, "int4", numerics, choose_layout("tpu", mode, "int4"))
    dense, _ = loaded(small, "int4", numerics, choose_layout("cpu", mode, "int4"))
    rng = np.random.default_rng(0)
    for name in ("gate", "down"):
        held = jax.tree.map(lambda w: w[1], integers["layers"][name])
        x = jnp.asarray(rng.normal(size=(8, 4, held.values.shape[1])), mode.operand)
        ours = jax.jit(lambda x, w: quantization.matmul(x, w, mode))(x, held)
        theirs = quantization.matmul(x, dense["layers"][1][name], mode)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_loading_is_told_to_its_end(small):
    """Though the files hold more than the tensors; else it would seem to go on while compiling."""
    checkpoint, mode, told = open_checkpoint(small), MODES["bf16"], []
    mesh = make_mesh(1, checkpoint.config, jax.devices())
    options = EngineOptions(slots=2, max_context=32)
    plan = make_plan(checkpoint.config, options, mesh, choose_layout("cpu", mode))
    load._load(checkpoint, plan, mesh, lambda phase, done, of, _: told.append((phase, done, of)))
    assert told[-1] == ("loading", checkpoint.nbytes, checkpoint.nbytes)
    assert 0 < told[0][1] < checkpoint.nbytes
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_bytes_in_flight_are_bounded(tiny, monkeypatch):
    """However slowly weights are placed, no more than the bound is read ahead."""
    checkpoint = open_checkpoint(tiny)
    bound = 200_000
    monkeypatch.setattr(placement, "_BYTES_IN_FLIGHT", bound)
    held = placed = most = 0
    lock = threading.Lock()

    def read(tensor, count):
        nonlocal held, most
        with lock:
            held += placement._host_bytes(tensor.param)
            most = max(most, held - placed)
        return checkpoint.read_parts(tensor, count)

    order = checkpoint.tensors()
    for tensor, _ in placement.read_ahead(read, order, 8):
        with lock:
            placed += placement._host_bytes(tensor.param)
    assert held == placed == sum(placement._host_bytes(t.param) for t in order)
    largest = max(placement._host_bytes(t.param) for t in order)
    assert largest < most <= bound


def test_a_fault_while_reading_ends_the_load(small):
    checkpoint = open_checkpoint(small)
    mode = MODES["float32"]
    mesh = make_mesh(1, checkpoint.config, jax.devices())

    def read(tensor, count):
        if tensor.label == "layers.1.up":
            raise SetupError("layers.1.up is damaged")
        return checkpoint.read_parts(tensor, count)

    with pytest.raises(SetupError, match="is damaged"):
        placement.load_params(read, checkpoint.config, mesh, mode, choose_layout("cpu", mode))
