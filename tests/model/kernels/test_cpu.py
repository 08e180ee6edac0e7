"""The CPU's products beside the plain ones, and where there are no kernels."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config import PRESETS
from model.kernels.cpu import build, products
from model.quantization import matmul as plain_matmul
from tests.model.kernels.cpu import BF16, TINY, close, rows, weight

pytestmark = pytest.mark.skipif(
    not build.load(), reason="needs a CPU with AVX-512 and a C++ compiler"
)


def pack(w):
    return products.pack(w.values, w.scales)


@pytest.mark.parametrize(("width", "groups"), [(32, 1), (176, 8), (512, 1), (2736, 8)])
def test_products_are_the_plain_ones_side_by_side(width, groups):
    rng = np.random.default_rng(width)
    x = rows(rng, 29, width)
    weights = [weight(rng, width, columns, groups=groups) for columns in (64, 32, 96)]
    got = jax.jit(products.matmul)(x, *map(pack, weights))
    close(got, jnp.concatenate([plain_matmul(x, w, BF16) for w in weights], axis=1))


def test_a_product_of_unscaled_weights_and_a_slice_of_their_columns():
    rng = np.random.default_rng(0)
    x, table = rows(rng, 5, 64), rows(rng, 256, 64)
    want = np.asarray(x, np.float32) @ np.asarray(table, np.float32).T
    head = products.pack(table.T)
    assert len(head) == 256
    close(products.matmul(x, head), want)
    some = jax.jit(lambda start: products.matmul(x, head.columns(start, 64)))
    close(some(jnp.int32(96)), want[:, 96:160])


def test_a_row_of_a_product_does_not_depend_on_the_others():
    rng = np.random.default_rng(1)
    w = pack(weight(rng, 176, 64, groups=8))
    multiply = jax.jit(products.matmul)
    everything = rows(rng, 61, 176)
    alone = np.concatenate([multiply(row[None], w) for row in everything])
    for count in range(1, 62):
        start = 61 - count
        assert (np.asarray(multiply(everything[start:], w)) == alone[start:]).all(), count


MANY_CALLS = """
import threading
import jax, jax.numpy as jnp
from model.kernels.cpu import build, products
assert build.load()
x, w = jnp.ones((8, 512), jnp.bfloat16), products.pack(jnp.ones((512, 32), jnp.bfloat16))

@jax.jit
def many(x):
    def call(_, x):
        return (products.matmul(x, w).sum() * 0).astype(x.dtype) + x
    return jax.lax.fori_loop(0, 20_000, call, x)

threads = [threading.Thread(target=lambda: many(x).block_until_ready()) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_calls_that_are_over_before_the_pool_wakes_end():
    run = subprocess.run([sys.executable, "-c", MANY_CALLS], timeout=120, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()


def test_a_team_does_all_of_each_round_whatever_room_the_pool_has(tmp_path):
    here, program = pathlib.Path(__file__).parent, tmp_path / "team"
    kernels = pathlib.Path(build.__file__).parent
    command = [build._compiler(), "-std=c++20", "-O1", "-pthread", *build.features()]
    command += [f"-I{here / 'pool'}", f"-I{kernels}", here / "team.cc", "-o", program]
    subprocess.run(command, check=True)
    for threads, room, calls in ((1, 4, 50), (2, 1_000_000, 2000), (3, 64, 2000), (8, 2, 200)):
        sizes = map(str, (threads, room, calls))
        run = subprocess.run([program, *sizes], timeout=60, capture_output=True, text=True)
        assert run.stdout == "right\n", (threads, room)


def test_sizes_that_the_kernels_do_not_take_are_left_to_the_plain_form():
    assert products.packable(TINY)
    assert products.packable(PRESETS["grok-1"])
    assert not products.packable(dataclasses.replace(TINY, emb_size=40))
    assert not products.packable(dataclasses.replace(TINY, ffn_size=168))


def test_without_a_compiler_there_are_no_kernels(monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.delenv("CXX", raising=False)
    assert "compiler" in build._unfit()
    assert build.load.__wrapped__() is False


def test_on_another_cpu_there_are_no_kernels(monkeypatch):
    monkeypatch.setattr(build, "_cpu_flags", lambda: ["avx512f", "fma"])
    assert build._unfit() == "this CPU lacks avx512bw, avx512dq, avx512vl"
