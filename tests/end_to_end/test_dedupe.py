"""Rows that ask the same are computed once, and nobody can tell from the results."""

from pipeline import registry


def requests() -> int:
    return registry.total_stats().requests


def test_equal_rows_are_computed_once_and_come_out_alike(generate, tmp_path):
    prompt = "import os, sys, json, re\nimport dataclasses\n\n\nclass"
    rows = [
        # prompt, temperature, seed, n, max_tokens; whether an earlier row has the same answer
        (prompt, 0.0, None, None, 9, False),
        (prompt, 0.0, 7, None, 9, True),  # greedy: a seed changes nothing
        (prompt, 0.0, None, None, 8, False),
        (prompt, 1.0, 7, 2, 9, False),
        (prompt, 1.0, 7, 2, 9, True),
        (prompt, 1.0, 8, 2, 9, False),
        (prompt, 1.0, None, 1, 9, False),
        (prompt, 1.0, None, 1, 9, False),  # drawn by its own address
        ("def", 0.0, None, None, 9, False),
        (None, 0.0, None, None, 9, False),
        (prompt, 0.0, None, None, 9, True),
    ]
    names = ("prompt", "temperature", "seed", "n", "max_tokens")
    table = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    before = requests()
    once = generate("--ignore-eos", "--logprobs", 2, table=table)
    asked_once = requests() - before
    duplicates = sum(row[-1] for row in rows)
    assert once.code == 3
    assert once.manifest["duplicates"] == duplicates == 3
    assert asked_once == len(rows) - 1 - duplicates
    assert "3 rows answered as an equal one" in once.out
    each = generate("--ignore-eos", "--logprobs", 2, "--no-dedupe", output=tmp_path / "each")
    assert requests() - before == asked_once + len(rows) - 1
    assert each.manifest["duplicates"] == 0
    assert each.parts == once.parts
    assert each.rows == once.rows
    drawn = [
        row["token_ids"] for row in once.rows if row["param_seed"] is None and row["param_n"] == 1
    ]
    assert len({tuple(ids) for ids in drawn}) == 2


def test_equal_scores_are_computed_once(command, tmp_path):
    table = {
        "context": ["one two three", "one two three", "one two", "one two three"],
        "continuation": [" four", " four", " four", " five"],
    }
    before = registry.total_stats().scored_tokens
    once = command("score", table=table)
    scored = registry.total_stats().scored_tokens - before
    each = command("score", "--no-dedupe", output=tmp_path / "each")
    assert once.manifest["duplicates"] == 1
    assert each.manifest["duplicates"] == 0
    assert each.rows == once.rows
    tokens = [row["continuation_tokens"] for row in once.rows]
    assert scored == sum(tokens) - tokens[1]
