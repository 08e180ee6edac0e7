"""Nothing assumes the sizes of one model."""

import json

import numpy as np
import pytest

from model.checkpoint.source import open_checkpoint
from model.engine.engine import Engine
from model.engine.options import EngineOptions
from pipeline.cli import main
from schemas.sampling import SamplingParams
from tests.model import reference

CONFIG = {
    "vocab_size": 2048,
    "emb_size": 40,
    "num_layers": 11,
    "num_q_heads": 24,
    "num_kv_heads": 6,
    "key_size": 12,
    "ffn_size": 72,
    "num_experts": 5,
    "num_selected_experts": 3,
    "sequence_len": 90,
    "attn_output_multiplier": 0.2886751345948129,
    "embedding_multiplier_scale": 3.0,
    "output_multiplier_scale": 0.7,
    "pad_token": 0,
    "eos_token": 7,
    "rope_base": 5000.0,
    "model_shards": 4,
}
TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint that ``grok1 synth`` wrote from a config file."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "shape.json").write_text(json.dumps(CONFIG))
    words = ["synth", "--config", folder / "shape.json", "--output", folder / "ckpt", "--seed", 5]
    assert main([str(word) for word in words]) == 0
    return folder / "ckpt"


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(8, 2048, size).tolist() for size in (1, 2, 17, 40, 77)]


@pytest.fixture(scope="module")
def truth(folder, prompts):
    """Greedy continuations in float64, each with its margins."""
    checkpoint = open_checkpoint(str(folder))
    weights = reference.dequantized(checkpoint)
    found = []
    for prompt in prompts:
        tokens, margins = list(prompt), []
        for _ in range(TOKENS):
            logits = reference.logits(checkpoint.config, weights, tokens)[-1]
            second, first = np.partition(logits, -2)[-2:]
            margins.append(first - second)
            tokens.append(int(logits.argmax()))
        found.append((tokens[len(prompt) :], margins))
    return found


def agree(completions, truth):
    compared = 0
    for got, (want, margins) in zip(completions, truth, strict=True):
        stop = next((i for i, margin in enumerate(margins) if margin < 1e-3), TOKENS)
        assert list(got[:stop]) == want[:stop]
        compared += stop
    assert compared > 0.8 * TOKENS * len(truth)


@pytest.mark.slow
def test_through_the_command(generate, folder, prompts, truth):
    outcome = generate(
        "--temperature", 0, "--max-tokens", TOKENS, "--ignore-eos",
        checkpoint=folder, table={"prompt_token_ids": prompts},
    )  # fmt: skip
    assert outcome.code == 0
    agree([row["token_ids"] for row in outcome.rows], truth)
    too_long = generate(
        "--max-tokens", 14, checkpoint=folder, output=outcome.folder.parent / "long"
    )
    assert [row["status"] for row in too_long.rows] == ["succeeded"] * 4 + ["errored"]
    assert "exceed the context of 90" in too_long.rows[-1]["error_message"]


@pytest.mark.slow
def test_through_the_engine(folder, prompts, truth):
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    options = EngineOptions(numerics="float32", slots=8)
    with Engine.from_checkpoint(str(folder), options=options) as engine:
        outputs = engine.generate(prompts, params)
    agree([output.outputs[0].token_ids for output in outputs], truth)


@pytest.mark.slow
def test_its_end_of_text_is_its_own(generate, folder, prompts):
    flags = ("--max-tokens", 60, "--temperature", 2, "--n", 20)
    table = {"prompt_token_ids": prompts[:2], "logit_bias": ['{"7": 3}'] * 2}
    rows = generate(*flags, checkpoint=folder, table=table).rows
    ended = [row for row in rows if row["finish_reason"] == "stop"]
    assert all(row["token_ids"][-1] == 7 and row["stop_reason"] is None for row in ended)
    assert all(7 not in row["token_ids"][:-1] for row in rows)
    assert 0 < len(ended) < len(rows) == 40
