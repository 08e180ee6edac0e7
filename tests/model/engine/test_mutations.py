"""The golden numbers notice changes: in arithmetic, in the order of layers, in whose norm it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import moe, transformer
from model.checkpoint.release import ReleaseCheckpoint
from model.checkpoint.source import open_checkpoint
from tests.model import reference
from tests.model.engine.conftest import GOLDEN, truth
from tests.model.engine.test_golden import Forward


def swap_norms(params):
    layers = [
        {
            **layer,
            "attn_post_norm": layer["moe_post_norm"],
            "moe_post_norm": layer["attn_post_norm"],
        }
        for layer in params["layers"]
    ]
    return {**params, "layers": tuple(layers)}


def wrong_layer_order(params):
    count = len(params["layers"])
    stored = sorted(range(count), key=str)  # the layer that each group of files holds
    return {**params, "layers": tuple(params["layers"][stored[i]] for i in range(count))}


def one_scale_group(monkeypatch):
    read_parts = ReleaseCheckpoint.read_parts

    def first_group(*asked):
        for host in read_parts(*asked):
            if host.scales is not None:
                scales = np.repeat(host.scales[..., :1, :], host.scales.shape[-2], axis=-2)
                host = dataclasses.replace(host, scales=scales)
            yield host

    monkeypatch.setattr(ReleaseCheckpoint, "read_parts", first_group)


def renormalised_gates(monkeypatch):
    route = moe.route

    def renormalised(logits, config):
        routing = route(logits, config)
        gates = routing.gates / routing.gates.sum(-1, keepdims=True)
        return dataclasses.replace(routing, gates=gates)

    monkeypatch.setattr(transformer, "route", renormalised)


def router_cap(monkeypatch):
    softmax = jax.nn.softmax
    monkeypatch.setattr(jax.nn, "softmax", lambda x: softmax(30 * jnp.tanh(x / 30)))


def erf_gelu(monkeypatch):
    gelu = jax.nn.gelu
    monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate: gelu(x, approximate=False))


def small_experts(weights):
    """Experts' outputs so small that the norm after them does not hide a factor on the gates."""
    return {key: w * 3e-4 if key[1] == "down" else w for key, w in weights.items()}


@pytest.mark.slow
def test_renormalised_gates_are_noticed(monkeypatch):
    checkpoint = open_checkpoint(str(GOLDEN))
    tokens = truth("exact").sequences[1]
    weights = small_experts(reference.dequantized(checkpoint))
    want = reference.logits(checkpoint.config, weights, tokens)

    def shrink(params):
        layers = ({**layer, "down": layer["down"] * 3e-4} for layer in params["layers"])
        return {**params, "layers": tuple(layers)}

    assert Forward(change=shrink).error(tokens, want) < 1e-4
    renormalised_gates(monkeypatch)
    assert Forward(change=shrink).error(tokens, want) > 1e-4


@pytest.mark.parametrize(
    "mutate",
    [erf_gelu, *(pytest.param(m, marks=pytest.mark.slow) for m in (router_cap, one_scale_group))],
)
def test_changed_arithmetic_is_noticed(monkeypatch, mutate):
    mutate(monkeypatch)
    assert max(Forward().errors()) > 1e-4


@pytest.mark.parametrize("change", [swap_norms, wrong_layer_order])
def test_changed_weights_are_noticed(change):
    assert max(Forward(change=change).errors()) > 1e-4


@pytest.mark.slow
def test_missing_attention_cap_is_noticed():
    config = dataclasses.replace(open_checkpoint(str(GOLDEN)).config, attn_logit_cap=1e6)
    assert max(Forward(config).errors()) > 1e-4
