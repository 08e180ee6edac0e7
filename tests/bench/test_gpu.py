import json
import subprocess

import jax
import jax.numpy as jnp
import pytest

from bench import device_slice, golden, gpu
from bench.device_slice import DeviceSlice, slice_of
from model.config import GROK_1
from model.engine.runner import Runner
from model.layout import choose_layout
from model.machines import GPU_MEMORY_SHARE, MACHINES, weight_bytes
from schemas.error import SetupError

CARD = gpu.Card(kind="a card", bandwidth=1e9, flops=1e9)

SMALL = {"layers": 1, "scale": 64, "batch": 8, "context": 32, "rounds": 2}
"""Arguments under which what is measured says nothing of a GPU."""


def arguments(*more: str, **given) -> list[str]:
    return [*more, *(f"--{name}={value}" for name, value in given.items())]


def test_a_slice_is_an_eighth_of_what_is_split_and_the_rest_whole():
    part = slice_of(GROK_1, 8)
    assert (part.num_q_heads, part.num_kv_heads, part.ffn_size) == (6, 1, 4096)
    assert (part.emb_size, part.num_layers, part.vocab_size) == (6144, 64, 16384)
    # 39.4 GB of int8 matrices, and norms and router, which every device has.
    assert weight_bytes(part, "int8") == pytest.approx(39.6e9, rel=5e-3)


def test_exchanges_on_paper():
    # Each device sends 7/8 of 256 rows of 6144 bfloat16 numbers, four times a layer.
    sent = 64 * 4 * 256 * 6144 * 2 * 7 / 8
    assert gpu.exchange_seconds(GROK_1, 256, 450e9) == pytest.approx(sent / 450e9)


@pytest.fixture
def on_h100(monkeypatch):
    """Arithmetic is that of one H100, and nothing is measured of it beforehand."""
    memory = int(MACHINES["h100x8"].limit_bytes * GPU_MEMORY_SHARE)
    monkeypatch.setattr(gpu, "device_memory", lambda: memory)
    monkeypatch.setattr(gpu, "measure_card", lambda scale: CARD)
    monkeypatch.setattr(
        device_slice, "choose_layout", lambda platform, *more: choose_layout("gpu", *more)
    )


@pytest.mark.parametrize(
    ("weights", "batch", "context", "takes"),
    [
        ("int8", 256, 4096, 76e9),
        ("int8", 512, 1024, 59e9),
        ("int8", 512, 4096, 111e9),
        ("int4", 512, 4096, 93e9),
    ],
)
def test_memory_by_arithmetic(on_h100, weights, batch, context, takes):
    """39.4 or 21.3 GB of weights, 32 KiB of cache a token, and what an engine leaves free."""
    part = DeviceSlice(slice_of(GROK_1, 8), weights, "bf16", "plain")
    needed = part.needed_bytes(part.plan(batch, context))
    assert needed == pytest.approx(takes, rel=0.02)
    assert (needed < gpu.device_memory()) == (takes < 80e9)


def test_what_cannot_fit_is_never_tried(on_h100, monkeypatch, capsys, tmp_path):
    """The weights of all 64 layers would not fit this machine either, were they drawn."""
    measured = []

    def prefill(part, card, plan, link):
        measured.append(plan)
        return gpu.Result(
            what="prefill",
            weights=part.weights,
            batch=plan.shapes.prefill_rows,
            context=plan.shapes.max_context,
            tokens_per_second=2.0,
            with_exchanges=1.0,
            share=0.5,
        )

    monkeypatch.setattr(gpu, "measure_prefill", prefill)
    file = tmp_path / "gpu.json"
    assert gpu.main(arguments(weights="int8", batch=512, context=4096, json=file)) == 0
    text = capsys.readouterr().out
    assert "does not fit: takes 103." in text
    assert "50%" in text
    found = json.loads(file.read_text())
    assert len(measured) == len(found["results"]) == 1
    [skipped] = found["skipped"]
    assert (skipped["what"], skipped["batch"], skipped["context"]) == ("decode", 512, 4096)


@pytest.fixture
def quick_to_compile():
    """How fast a step runs is of no matter."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.usefixtures("quick_to_compile")
def test_a_decode_step_is_the_engines_and_one_refused_costs_one_case(monkeypatch):
    """Each step draws a token for each row and drafts none; weights are of no matter to that."""
    calls, decode = [], Runner.decode

    def seen(runner):
        calls.append(runner)
        if len(calls) == 1:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 68719476736 bytes.")
        rounds = decode(runner)
        drawn.append(rounds)
        return rounds

    drawn = []
    monkeypatch.setattr(Runner, "decode", seen)
    monkeypatch.setattr(device_slice, "_random", lambda leaf: jnp.zeros(leaf.shape, leaf.dtype))
    part = DeviceSlice(slice_of(gpu._scaled(GROK_1, 1, 64), 8), "int8", "bf16", "auto")
    refused, measured = (
        gpu.measure(part, CARD, "decode", 8, 32, link=450e9, rounds=2) for _ in range(2)
    )
    assert isinstance(refused, gpu.Skipped)
    assert "does not fit: the device ran out of memory" in gpu.report(CARD, [refused, measured])
    assert not hasattr(calls[0], "_cache"), "what was allocated is still held"
    assert isinstance(measured, gpu.Result)
    assert (refused.batch, measured.batch) == (8, 8)
    slots = part.plan(8, 32).shapes.slots
    assert len(drawn) == 1 + 2
    for rounds in drawn:
        assert rounds.slots.shape == (4, 8)
        assert (rounds.slots < slots).all()
        assert int(rounds.drafted.sum()) == 0


def test_other_errors_are_raised(monkeypatch):
    def broken(*_):
        raise ValueError("not of memory")

    monkeypatch.setattr(gpu, "measure_decode", broken)
    part = DeviceSlice(slice_of(gpu._scaled(GROK_1, 1, 64), 8), "int8", "bf16", "auto")
    with pytest.raises(ValueError, match="not of memory"):
        gpu.measure(part, CARD, "decode", 8, 32, link=450e9, rounds=2)


def test_a_context_must_hold_what_is_drawn():
    part = DeviceSlice(slice_of(gpu._scaled(GROK_1, 1, 64), 8), "int8", "bf16", "auto")
    with pytest.raises(SetupError, match="--context 32 ends before 8 --rounds"):
        part.decode_seconds(part.plan(8, 32), 32, 8)


def test_an_error_leaves_what_was_measured(monkeypatch, capsys, tmp_path):
    def measure(part, card, what, *_):
        if what == "decode":
            raise RuntimeError("the device is lost")
        return gpu.Skipped(what=what, weights="int8", batch=1, context=1, reason="because")

    monkeypatch.setattr(gpu, "measure_card", lambda scale: CARD)
    monkeypatch.setattr(gpu, "measure", measure)
    file = tmp_path / "gpu.json"
    with pytest.raises(RuntimeError, match="lost"):
        gpu.main(arguments(json=file, **SMALL))
    assert "because" in capsys.readouterr().out
    assert json.loads(file.read_text())["skipped"][0]["reason"] == "because"


def test_the_golden_tests_are_refused_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(golden, "run", lambda: pytest.fail("ran on a CPU"))
    with pytest.raises(SystemExit) as refused:
        gpu.main(arguments("--golden", **SMALL))
    assert refused.value.code == 2
    assert "--golden needs a GPU: JAX runs on cpu here" in capsys.readouterr().err


def test_the_golden_tests_are_those_of_both_modes():
    listed = subprocess.run(
        [*golden.command(), "--collect-only"], capture_output=True, text=True, check=True
    )
    names = {line.rpartition("::")[2] for line in listed.stdout.splitlines() if "::" in line}
    assert names == {
        "test_bf16_is_no_farther_from_exact_than_the_reference",
        "test_bf16_greedy",
        "test_release_rounds_where_the_reference_does",
        "test_all_logits_rounded_as_in_the_release",
    }


@pytest.mark.slow
def test_it_runs_where_there_is_no_gpu(tmp_path, capsys):
    """The same steps at a small size: what is measured here says nothing of a GPU."""
    file = tmp_path / "gpu.json"
    sizes = {"layers": 2, "scale": 32, "batch": 8, "context": 64, "rounds": 1, "json": file}
    assert gpu.main(arguments(**sizes)) == 0
    text = capsys.readouterr().out
    assert "Exchanges are computed, not measured." in text
    found = json.loads(file.read_text())
    kinds = [(r["what"], r["weights"]) for r in found["results"]]
    assert kinds == [(w, k) for k in ("int8", "int4") for w in ("prefill", "decode")]
    for result in found["results"]:
        assert 0 < result["with_exchanges"] < result["tokens_per_second"]
        assert result["share"] > 0
