"""The same row gets the same bits, whatever runs beside it and in which order."""

import pyarrow as pa
import pytest

from tests.jobs import write

COUNT = 36
ROWS = pa.table(
    {
        "custom_id": [f"row {i}" for i in range(COUNT)],
        "prompt": ["import numpy as np\n" * (i % 4) + f"def f{i}(x):\n" for i in range(COUNT)],
        "max_tokens": [3 + 5 * (i % 5) for i in range(COUNT)],
        "temperature": [[0.0, 0.7, 1.0][i % 3] for i in range(COUNT)],
        "top_p": [[1.0, 0.9][i % 2] for i in range(COUNT)],
        "top_k": [[0, 50, 0, 0][i % 4] for i in range(COUNT)],
        "n": [1 + (i % 3 == 1) for i in range(COUNT)],
        "logprobs": [[None, 2][i % 2] for i in range(COUNT)],
        "prompt_logprobs": [[None, None, None, None, 1][i % 5] for i in range(COUNT)],
    }
)
FOUR = ("--direct_num_workers", 4)
ONE = ("--direct_num_workers", 1, "--direct_running_mode", "in_memory")


@pytest.fixture
def answers(generate, tmp_path):
    """Runs some of the rows and gives each one's samples, by ``custom_id``."""
    runs = 0

    def ask(table, *flags):
        nonlocal runs
        runs += 1
        outcome = generate(
            "--unique-custom-id", *flags,
            source=write(tmp_path / f"in{runs}" / "a.parquet", table),
            output=tmp_path / f"out{runs}",
        )  # fmt: skip
        assert outcome.code == 0
        found = {}
        for row in outcome.rows:
            # How many tokens were shared says what else was in the chunk: no part of the answer.
            del row["cached_tokens"]
            found.setdefault(row.pop("custom_id"), []).append(row)
        return found

    return ask


@pytest.mark.slow
def test_the_same_bits_whatever_the_neighbours(answers):
    together = answers(ROWS, *FOUR, "--chunk-rows", 9)
    assert len(together) == COUNT
    assert answers(ROWS, *ONE, "--chunk-rows", 36) == together
    backwards = ROWS.take(list(range(COUNT))[::-1])
    assert answers(backwards, *FOUR, "--chunk-rows", 5) == together
    # One row in the engine at a time.
    assert answers(ROWS, *ONE, "--chunk-rows", 1) == together
    assert answers(ROWS, *FOUR, "--chunk-rows", 7, "--direct_runner_bundle_repeat=1") == together


def test_another_seed_is_another_answer(answers):
    table = ROWS.slice(0, 12)
    one, other = answers(table), answers(table, "--run-seed", 1)
    for key, greedy in zip(one, table.column("temperature").to_pylist(), strict=True):
        same = one[key][0]["token_ids"] == other[key][0]["token_ids"]
        assert same == (greedy == 0)
