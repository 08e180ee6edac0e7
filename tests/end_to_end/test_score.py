"""Scoring as users run it."""

import functools
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model import evaluation
from model.tokenizer import Tokenizer
from pipeline import read_completions, registry
from schemas.score import COLUMNS
from tests.jobs import write
from tests.model.engine.conftest import truth


@pytest.fixture
def score(command):
    return functools.partial(command, "score")


def test_golden_sequences_are_scored_exactly(score):
    """Context and continuation of one file: all of each sequence after some token."""
    exact = truth("exact")
    cuts = [1 + 11 * i % (len(tokens) - 1) for i, tokens in enumerate(exact.sequences)]
    table = {
        "context_token_ids": [t[:cut] for t, cut in zip(exact.sequences, cuts, strict=True)],
        "continuation_token_ids": [t[cut:] for t, cut in zip(exact.sequences, cuts, strict=True)],
        "note": [str(cut) for cut in cuts],
    }
    outcome = score(table=table)
    assert (outcome.code, outcome.err) == (0, "")
    rows = outcome.rows
    assert list(rows[0]) == [*table, *COLUMNS]
    for row, cut, logprob in zip(rows, cuts, exact.logprob, strict=True):
        assert (row["status"], row["note"]) == ("succeeded", str(cut))
        np.testing.assert_allclose(row["token_logprobs"], logprob[cut:], rtol=1e-4, atol=1e-4)
        assert row["logprob"] == pytest.approx(logprob[cut:].sum(), rel=1e-4)
        assert row["perplexity"] == pytest.approx(math.exp(-logprob[cut:].mean()), rel=1e-4)
        assert row["text_bytes"] is row["byte_perplexity"] is row["logprobs"] is None
    total = sum(logprob[cut:].sum() for cut, logprob in zip(cuts, exact.logprob, strict=True))
    assert outcome.manifest["logprob"] == pytest.approx(total, rel=1e-4)
    assert outcome.manifest["settings"]["task"] == "score"


def prefilled() -> int:
    return registry.total_stats().prefilled_tokens


def test_choices_have_a_row_each_and_their_context_is_computed_once(score, talking):
    """Whether they stand in one input row or in several."""
    tokenizer = Tokenizer.load(f"{talking}/tokenizer.model")
    context = "A question that nobody has asked the model before in this test is "
    choices = ["one", "two and more", "a third"]
    pairs = evaluation.encode_pairs(tokenizer, [(context, c) for c in choices], tokenizer.bos_id)
    before = prefilled()
    listed = score(table={"context": [context], "continuations": [choices]})
    assert prefilled() - before == len(pairs[0][0]) + sum(len(own) - 1 for _, own in pairs)
    rows = listed.rows
    assert [row["continuation_index"] for row in rows] == [0, 1, 2]
    assert [row["cached_tokens"] for row in rows] == [0, *[len(pairs[0][0])] * 2]
    assert listed.manifest["rows_in"] == 1
    assert listed.manifest["rows_out"] == 3
    before = prefilled()
    apart = score("--overwrite", table={"context": [context] * 3, "continuation": choices})
    assert prefilled() - before <= 16 + sum(len(own) for _, own in pairs)
    for one, other, (_, ids) in zip(rows, apart.rows, pairs, strict=True):
        assert one["token_ids"] == other["token_ids"] == ids
        assert one["token_logprobs"] == other["token_logprobs"]
        assert one["text_bytes"] == len(choices[one["continuation_index"]])


def test_documents_and_their_perplexity(score, talking):
    text = "All the world is a stage, and all the men and women merely players. " * 20
    table = {"document": [text, "short"]}
    outcome = score("--stride", 50, table=table)
    assert outcome.code == 0
    tokenizer = Tokenizer.load(f"{talking}/tokenizer.model")
    long, short = outcome.rows
    assert long["token_ids"] == tokenizer.encode(text)
    assert len(long["token_ids"]) > 256 + 50
    assert long["perplexity"] == pytest.approx(
        math.exp(-np.mean(np.array(long["token_logprobs"], np.float64))), rel=1e-6
    )
    assert long["byte_perplexity"] == pytest.approx(math.exp(-long["logprob"] / len(text)))
    assert short["context_tokens"] == 1
    both = long["logprob"] + short["logprob"]
    size = long["text_bytes"] + short["text_bytes"]
    assert f"{math.exp(-both / size):.4g} a byte" in outcome.out
    [same] = score(
        table={"context": [None], "continuation": ["short"]}, output=outcome.folder / "x"
    ).rows
    assert same["token_logprobs"] == short["token_logprobs"]


def test_bad_rows_are_errors_and_the_others_are_scored(score):
    table = {
        "context": ["a", None, "a", "word " * 300, "a"],
        "continuation": ["b", "c", None, "d", ""],
    }
    outcome = score("--logprobs", 2, table=table)
    assert outcome.code == 3
    codes = [row["error_code"] for row in outcome.rows]
    assert codes == [
        None,
        None,
        "prompt_missing",
        "context_length_exceeded",
        "continuation_empty",
    ]
    assert len(outcome.rows[0]["logprobs"][0]["top_token_ids"]) == 2
    assert outcome.manifest["errors"] == {code: 1 for code in codes if code}
    cut = score("--over-length", "truncate_left", "--overwrite", "--allow-errors", table=table)
    assert cut.code == 0
    row = cut.rows[3]
    assert row["context_tokens"] + row["continuation_tokens"] - 1 == 256


def test_a_run_goes_on_where_it_was_left(score):
    table = {"context": ["a"] * 6, "continuation": list("bcdefg")}
    first = score("--chunk-rows", 2, table=table)
    assert len(first.parts) == 3
    (first.folder / first.parts[1]).unlink()
    (first.folder / "_SUCCESS").unlink()
    again = score("--chunk-rows", 2)
    assert again.code == 0
    assert "2 of them done" in again.out
    assert again.parts == first.parts
    table = read_completions(str(again.folder))
    assert table.column("continuation").to_pylist() == list("bcdefg")
    job = json.loads((again.folder / "_job.json").read_text())
    assert job["settings"]["task"] == "score"


def test_a_folder_of_scores_is_no_place_for_completions(score, generate, tmp_path):
    score(table={"context": ["a"], "continuation": ["b"], "prompt": ["a"]})
    outcome = generate()
    assert outcome.code == 2
    assert "another task" in outcome.sentence()


def test_wrong_set_ups_are_told_in_a_sentence(score, tmp_path):
    assert "no column 'continuation'" in score(table={"prompt": ["a"]}).sentence()
    source = tmp_path / "in"
    write(source / "a.parquet", {"document": ["a"]})
    assert "--stride 300 exceeds the context of 256" in score("--stride", 300).sentence()
    assert "--logprobs must be between 0 and 20" in score("--logprobs", 21).sentence()
    write(source / "a.parquet", {"continuation": ["a"]})
    assert "--stride is for documents" in score("--stride", 3).sentence()


def test_nothing_to_score(score):
    empty = pa.table({"document": pa.array([], pa.string())})
    outcome = score(table=empty)
    assert outcome.code == 0
    assert pq.read_schema(outcome.folder / outcome.parts[0]).names == ["document", *COLUMNS]
