"""Prompts made of columns and examples, as users ask for them."""

import pytest

from model.tokenizer import Tokenizer
from pipeline import registry
from tests.jobs import write

QUESTIONS = [f"What comes after {i}?" for i in range(12)]
SHOTS = {
    "question": [f"What comes after {i}?" for i in range(20, 32)],
    "answer": [str(i + 1) for i in range(20, 32)],
}
TEMPLATE = "Q: {{ question }}\\nA:"
SHOT = "Q: {{ question }}\\nA: {{ answer }}"


@pytest.fixture
def shots(tmp_path):
    return write(tmp_path / "shots" / "shots.parquet", SHOTS)


def prefilled() -> int:
    return registry.total_stats().prefilled_tokens


def test_examples_are_computed_once_for_all_rows(generate, shots, talking, tmp_path):
    tokenizer = Tokenizer.load(f"{talking}/tokenizer.model")
    table = {"question": QUESTIONS, "note": list(range(12))}
    arguments = ("--few-shot", shots, "--few-shot-template", SHOT, "--few-shot-count", 5)
    before = prefilled()
    outcome = generate(
        "--template", TEMPLATE, *arguments, "--temperature", 0, "--max-tokens", 4, table=table
    )
    computed = prefilled() - before
    assert outcome.code == 0
    examples = "\n\n".join(
        f"Q: {q}\nA: {a}" for q, a in list(zip(*SHOTS.values(), strict=True))[:5]
    )
    prompts = [f"{examples}\n\nQ: {question}\nA:" for question in QUESTIONS]
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    assert [row["prompt_tokens"] for row in outcome.rows] == list(map(len, ids))
    # What the rows have in common, in whole blocks, is computed for the first alone.
    common = len(tokenizer.encode(examples)) // 16 * 16
    assert computed <= sum(len(own) - 1 for own in ids) - 11 * common
    assert outcome.manifest["cached_tokens"] >= 11 * common
    assert [row["note"] for row in outcome.rows] == list(range(12))
    by_hand = generate(
        "--temperature", 0, "--max-tokens", 4, table={"prompt": prompts}, output=tmp_path / "hand"
    )
    assert [r["token_ids"] for r in by_hand.rows] == [r["token_ids"] for r in outcome.rows]


@pytest.mark.slow
def test_rows_with_like_examples_follow_one_another(generate, tmp_path):
    """Even where the cache cannot keep all prefixes: in row order each would be computed anew."""
    kinds = ["One. " * 30, "Two! " * 30, "Three? " * 25, "Four; " * 30]
    table = {"prompt": [f"{kinds[i % 4]}{i}" for i in range(24)]}
    before = prefilled()
    outcome = generate("--max-tokens", 2, "--max-context", 200, "--slots", 2, table=table)
    assert outcome.code == 0
    total = sum(row["prompt_tokens"] for row in outcome.rows)
    assert prefilled() - before < total / 3


def test_drawn_examples_do_not_depend_on_how_the_run_is_cut(generate, shots, tmp_path):
    table = {"question": QUESTIONS, "custom_id": [f"q{i}" for i in range(12)]}
    arguments = (
        *("--template", TEMPLATE, "--few-shot", shots, "--few-shot-template", SHOT),
        *("--few-shot-count", 3, "--few-shot-sampling", "per-row", "--separator", "\\n"),
        *("--temperature", 0, "--max-tokens", 3, "--unique-custom-id"),
    )
    whole = generate(*arguments, "--echo", table=table).rows
    reversed_ = {name: column[::-1] for name, column in table.items()}
    other = generate(
        *arguments, "--echo", "--chunk-rows", 5, table=reversed_, output=tmp_path / "other"
    ).rows
    assert [row["text"] for row in other[::-1]] == [row["text"] for row in whole]
    prefixes = {row["text"].split("Q: What comes after")[1] for row in whole}
    assert len(prefixes) > 3
    seeded = generate(*arguments, "--echo", "--run-seed", 1, output=tmp_path / "seeded").rows
    assert [row["text"] for row in seeded] != [row["text"] for row in other]


def test_echo_puts_the_prompt_before_the_completion(generate, tmp_path):
    table = {"prompt": ["import os", "word " * 300], "max_tokens": [5, 200]}
    arguments = ("--ignore-eos", "--over-length", "truncate_left", "--run-seed", 4)
    plain = generate(*arguments, table=table).rows
    echoed = generate(*arguments, "--echo", output=tmp_path / "echo").rows
    assert echoed[0]["text"] == "import os" + plain[0]["text"]
    assert echoed[1]["text"].endswith(plain[1]["text"])
    cut = echoed[1]["text"].removesuffix(plain[1]["text"])
    assert 0 < len(cut) < len(table["prompt"][1])
    assert table["prompt"][1].endswith(cut)
    assert [row["token_ids"] for row in echoed] == [row["token_ids"] for row in plain]


@pytest.mark.slow
def test_a_template_makes_contexts_to_score(command, shots):
    table = {"question": ["What comes after 7?"] * 2, "continuation": [" 8", " 9"]}
    outcome = command(
        *("score", "--template", TEMPLATE, "--few-shot", shots, "--few-shot-template", SHOT),
        *("--few-shot-count", 2),
        table=table,
    )
    assert outcome.code == 0
    one, two = outcome.rows
    assert one["context_tokens"] == two["cached_tokens"] > 20
    refused = command("score", "--template", TEMPLATE, table={"question": ["a"], "document": ["b"]})
    assert "--template" in refused.sentence()


def test_rows_that_cannot_be_built_are_errors(generate, shots):
    outcome = generate(
        "--template", TEMPLATE, "--max-tokens", 2, table={"question": ["a", None, "b"]}
    )
    assert outcome.code == 3
    assert outcome.manifest["errors"] == {"template_failed": 1}
    assert "column 'question' is null" in outcome.rows[1]["error_message"]


def test_templates_in_files_and_wrong_ones(generate, tmp_path):
    path = tmp_path / "template.txt"
    path.write_text("Say {{ question }}\n")
    outcome = generate("--template", path, "--echo", "--max-tokens", 2, table={"question": ["it"]})
    assert outcome.rows[0]["text"].startswith("Say it")
    assert "names no column" in generate("--template", "no such file").sentence()
    assert "'nobody'" in generate("--template", "{{ nobody }}").sentence()
    again = generate("--template", path, "--echo", "--max-tokens", 2)
    assert "1 of them done" in again.out
    path.write_text("Tell {{ question }}\n")
    assert (
        "another prompting" in generate("--template", path, "--echo", "--max-tokens", 2).sentence()
    )


def test_healing_lets_the_first_token_finish_the_prompts_last(generate, talking, tmp_path):
    tokenizer = Tokenizer.load(f"{talking}/tokenizer.model")
    prompts = ["The answer is ", "import o", "def f(x):\n    re", "for i in ra", "x = [1, 2"]
    table = {"prompt": [*prompts, "a", None]}
    arguments = ("--ignore-eos", "--max-tokens", 6, "--temperature", 0)
    healed = generate(*arguments, "--token-healing", table=table)
    assert healed.code == 3
    plain = generate(*arguments, output=tmp_path / "plain").rows
    rows = healed.rows
    heals, free = 0, False
    for prompt, row, other in zip(prompts, rows, plain, strict=False):
        ids = tokenizer.encode(prompt)
        if not tokenizer.can_heal(ids):
            assert row == other
            continue
        heals += 1
        allowed = tokenizer.beginning_with(ids[-1])
        assert row["prompt_tokens"] == len(ids) - 1
        assert row["token_ids"][0] in allowed
        free |= not set(row["token_ids"][1:]) <= set(allowed)
        whole = tokenizer.decode([*ids[:-1], *row["token_ids"]])
        assert whole == prompt + row["text"]
        first = generate(
            *("--temperature", 0, "--max-tokens", 1, "--overwrite"),
            *("--allowed-token-ids", *allowed),
            source=write(tmp_path / "one" / "a.parquet", {"prompt_token_ids": [ids[:-1]]}),
            output=tmp_path / "first",
        ).rows[0]
        assert first["token_ids"] == row["token_ids"][:1]
    assert heals >= 2
    assert free, "the mask holds for the first token alone"
    assert rows[5]["token_ids"] == plain[5]["token_ids"]  # nothing stands before it


@pytest.mark.parametrize(
    ("column", "value", "flags"),
    [
        ("allowed_token_ids", list(range(400, 500)), ("--allowed-token-ids", 5, 6)),
        pytest.param("beam_width", 2, ("--beam-width", 2), marks=pytest.mark.slow),
    ],
)
def test_rows_that_say_how_they_begin_are_not_healed(generate, tmp_path, column, value, flags):
    table = {"prompt": ["The answer is "] * 2, column: [value, None]}
    arguments = ("--ignore-eos", "--max-tokens", 3, "--temperature", 0)
    own, healed = generate(*arguments, "--token-healing", table=table).rows
    plain, other = generate(*arguments, output=tmp_path / "plain").rows
    assert own == plain
    assert healed["prompt_tokens"] == other["prompt_tokens"] - 1
    refused = generate("--token-healing", *flags, output=tmp_path / "refused").sentence()
    assert f"--token-healing does not go together with {flags[0]}" in refused


def test_healing_goes_with_stop_strings_and_echo(generate, tmp_path):
    table = {"prompt": ["The answer is "]}
    arguments = ("--ignore-eos", "--max-tokens", 24, "--temperature", 0, "--token-healing")
    [free] = generate(*arguments, "--echo", table=table).rows
    assert free["text"].startswith("The answer is ")
    completion = free["text"].removeprefix("The answer is ")
    stop = completion[8:10]
    [row] = generate(*arguments, "--stop", stop, output=tmp_path / "stop").rows
    assert row["text"] == completion[: completion.index(stop)]
    assert row["stop_reason"] == stop
