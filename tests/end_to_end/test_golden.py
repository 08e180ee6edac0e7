"""The golden numbers through the whole job: release files, Parquet, Beam, engine, Parquet."""

import json
import pathlib

import numpy as np
import pyarrow as pa
import pytest

GREEDY = ("--temperature", 0, "--max-tokens", 24, "--ignore-eos")


@pytest.fixture
def golden(tiny):
    return pathlib.Path(tiny)


def test_every_greedy_token_is_the_references(generate, golden):
    rows = json.loads((golden / "greedy_exact.json").read_text())
    prompts = pa.array([row["prompt"] for row in rows], pa.list_(pa.int32()))
    outcome = generate(*GREEDY, "--chunk-rows", 5, table={"prompt_token_ids": prompts})
    assert outcome.code == 0
    compared = 0
    for got, want in zip(outcome.rows, rows, strict=True):
        close = [i for i, margin in enumerate(want["margin"]) if margin < 1e-3]
        stop = close[0] if close else 24
        assert got["token_ids"][:stop] == want["completion"][:stop]
        compared += stop
    assert compared > 0.9 * 24 * len(rows)


def test_log_probabilities_are_the_references(generate, golden):
    exact = np.load(golden / "exact.npz")
    cuts = np.cumsum(exact["lens"])[:-1]
    tokens, logprob = (np.split(exact[name], cuts) for name in ("tokens", "logprob"))
    table = {"prompt_token_ids": pa.array([t.tolist() for t in tokens])}
    outcome = generate("--max-tokens", 1, "--prompt-logprobs", 1, table=table)
    assert outcome.code == 0
    for row, ids, want in zip(outcome.rows, tokens, logprob, strict=True):
        entries = row["prompt_logprobs"]
        assert entries[0] is None
        assert [entry["token_id"] for entry in entries[1:]] == ids[1:].tolist()
        got = [entry["logprob"] for entry in entries[1:]]
        np.testing.assert_allclose(got, want[1:], rtol=1e-4, atol=1e-4)
