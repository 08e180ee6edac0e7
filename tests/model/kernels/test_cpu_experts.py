"""The router and the experts by the CPU's kernels: the plain forms' results, for any company."""

import concurrent.futures
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.kernels.cpu import build
from model.kernels.cpu import layer as kernels
from model.moe import Routing, mixture, route, router_logits
from model.quantization import matmul
from model.transformer import rms_norm
from tests.model.kernels.cpu import (
    BF16,
    TINY,
    close,
    digest_on_one_cpu,
    layer_of,
    packed,
    rows,
    sized,
)

pytestmark = pytest.mark.skipif(
    not build.load(), reason="needs a CPU with AVX-512 and a C++ compiler"
)

choose = jax.jit(kernels.route, static_argnums=4)
mix = jax.jit(kernels.experts, static_argnums=6)


def attended(rng, tokens: int, config=TINY):
    """What attention gave, and the residual stream beside it."""
    mixed = rows(rng, tokens, config.num_q_heads * config.key_size)
    return mixed, rows(rng, tokens, config.emb_size, jnp.float32)


def routes(rng, tokens: int, count: int = 8):
    chosen = np.argsort(rng.random((tokens, count)))[:, :2]
    gates = rng.uniform(0.1, 0.5, (tokens, 2))
    return jnp.asarray(chosen, jnp.int32), jnp.asarray(gates, jnp.float32)


@pytest.mark.parametrize(("experts", "chosen"), [(8, 2), (5, 1), (20, 4)])
def test_the_router_asks_the_experts_that_the_plain_one_asks(experts, chosen):
    rng = np.random.default_rng(experts)
    config = sized(num_experts=experts, num_selected_experts=chosen, emb_size=64)
    layer, (mixed, hidden) = layer_of(rng, config), attended(rng, 150, config)
    stream, x, asked, gates = choose(mixed, hidden, jnp.int32(150), packed(layer), config)
    output = rms_norm(matmul(mixed, layer["attn_out"], BF16), layer["attn_post_norm"], config)
    close(stream, hidden + output)
    normed = rms_norm(stream, layer["moe_norm"], config)
    close(x, normed, 1e-2)
    wanted = route(router_logits(normed, layer["router"]), config)
    assert (np.asarray(asked) == np.asarray(wanted.experts)).all()
    close(gates, wanted.gates)


def test_of_experts_that_are_as_likely_the_first_is_asked():
    rng = np.random.default_rng(4)
    layer, (mixed, hidden) = layer_of(rng), attended(rng, 9)
    layer["router"] = jnp.zeros_like(layer["router"])
    *_, asked, gates = choose(mixed, hidden, jnp.int32(9), packed(layer), TINY)
    assert (np.asarray(asked) == [0, 1]).all()
    assert (np.asarray(gates) == 1 / 8).all()


def test_a_token_is_routed_alone_as_among_others_and_only_as_many_as_are_used():
    rng = np.random.default_rng(5)
    layer, (mixed, hidden) = packed(layer_of(rng)), attended(rng, 77)
    together = [np.asarray(a) for a in choose(mixed, hidden, jnp.int32(77), layer, TINY)]
    some = [np.asarray(a) for a in choose(mixed, hidden, jnp.int32(40), layer, TINY)]
    for whole, part in zip(together, some, strict=True):
        assert (part[:40] == whole[:40]).all()
    assert (some[0][40:] == np.asarray(hidden)[40:]).all()
    for i in (0, 33, 76):
        alone = choose(mixed[i : i + 1], hidden[i : i + 1], jnp.int32(1), layer, TINY)
        for whole, one in zip(together, alone, strict=True):
            assert (np.asarray(one)[0] == whole[i]).all()


@pytest.mark.parametrize(("width", "wide", "tokens"), [(32, 176, 70), (128, 688, 200)])
def test_the_mixture_is_the_plain_one(width, wide, tokens):
    rng = np.random.default_rng(width)
    config = sized(emb_size=width, ffn_size=wide)
    layer, hidden = layer_of(rng, config), rows(rng, tokens, width, jnp.float32)
    x, live = rows(rng, tokens, width), jnp.asarray(rng.random(tokens) < 0.8)
    for chosen, gates in (routes(rng, tokens), (jnp.full((tokens, 2), 3).at[:, 1].set(5), None)):
        gates = routes(rng, tokens)[1] if gates is None else gates
        got = mix(x, hidden, chosen, gates, live, packed(layer), config)
        mixed = mixture(x, Routing(chosen, gates), live, layer, 64, BF16)
        want = hidden + rms_norm(mixed, layer["moe_post_norm"], config)
        # Where a value between the products is rounded to its other neighbour, by one part in 256.
        close(got, want, 1e-3)
        dead = ~np.asarray(live)
        assert (np.asarray(got)[dead] == np.asarray(hidden)[dead]).all()


def test_a_token_of_the_mixture_does_not_depend_on_the_others():
    rng = np.random.default_rng(2)
    layer, hidden = packed(layer_of(rng)), rows(rng, 96, 32, jnp.float32)
    x, (chosen, gates) = rows(rng, 96, 32), routes(rng, 96)

    def answer(live):
        return np.asarray(mix(x, hidden, chosen, gates, jnp.asarray(live), layer, TINY))

    alone = np.stack([answer(np.arange(96) == i)[i] for i in range(96)])
    for share in (1.0, 0.9, 0.5, 0.1):
        live = rng.random(96) < share
        assert (answer(live)[live] == alone[live]).all(), share
    copies = (jnp.repeat(a[:1], 96, 0) for a in (x, hidden, chosen, gates))
    crowd = mix(*copies, jnp.asarray(live), layer, TINY)
    assert (np.asarray(crowd)[live] == alone[0]).all()


def digest() -> str:
    rng = np.random.default_rng(3)
    layer, (mixed, hidden) = packed(layer_of(rng)), attended(rng, 96)
    hidden, x, chosen, gates = choose(mixed, hidden, jnp.int32(96), layer, TINY)
    result = mix(x, hidden, chosen, gates, jnp.ones(96, bool), layer, TINY)
    return hashlib.sha256(np.asarray(result)).hexdigest()


def test_threads_do_not_change_a_bit():
    assert digest_on_one_cpu(__name__) == digest()


def test_calls_side_by_side_do_not_disturb_each_other():
    wanted = digest()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: digest(), range(24))) == {wanted}
