"""Started again, the same command does only what is missing."""

import os
import re

import pytest

from pipeline import registry
from tests.jobs import write

TABLE = {
    "prompt": [f"def f{i}(x):" for i in range(10)],
    "max_tokens": [1 + i % 4 for i in range(10)],
}
FLAGS = ("--chunk-rows", 3, "--ignore-eos")


def written(outcome) -> dict[str, tuple[int, bytes]]:
    """Each part's inode and bytes: a part written again is another file."""
    return {
        path.name: (path.stat().st_ino, path.read_bytes()) for path in outcome.folder.glob("part-*")
    }


@pytest.fixture
def no_model(monkeypatch):
    def forbid():
        monkeypatch.setattr(registry, "factory", lambda settings: pytest.fail("an engine loaded"))
        monkeypatch.setattr(registry, "_held", {})

    return forbid


def test_nothing_is_left_to_do(generate, no_model):
    first = generate(*FLAGS, table=TABLE)
    before = written(first)
    no_model()
    again = generate(*FLAGS)
    assert again.code == 0
    assert written(again) == before
    assert "4 parts, 4 of them done" in again.out
    assert "0 written, 4 there before" in " ".join(again.out.split())


@pytest.mark.parametrize("lost", [[0], [1, 3], [0, 1, 2, 3]])
def test_only_what_is_missing_is_done(generate, lost):
    first = generate(*FLAGS, table=TABLE)
    before, rows = written(first), first.rows
    for i in lost:
        (first.folder / first.parts[i]).unlink()
    again = generate(*FLAGS)
    assert again.code == 0
    assert again.rows == rows
    assert f"{len(lost)} written" in again.out
    after = written(again)
    assert after.keys() == before.keys()
    for i, name in enumerate(first.parts):
        assert i in lost or after[name] == before[name]


def test_a_run_that_only_lacks_its_end_is_closed_without_a_model(generate, no_model):
    first = generate(*FLAGS, table=TABLE)
    manifest = first.manifest
    for name in ("_SUCCESS", "_manifest.json", "_manifest.parquet"):
        (first.folder / name).unlink()
    no_model()
    again = generate(*FLAGS)
    assert again.code == 0
    assert again.manifest | {"finished_at": ""} == manifest | {"finished_at": ""}


def test_a_part_of_another_run_is_not_taken_for_one_of_this(generate):
    first = generate(*FLAGS, table=TABLE)
    stray = first.folder / first.parts[0].replace("-000000000000-", "-000000000001-")
    os.link(first.folder / first.parts[0], stray)
    (first.folder / first.parts[1]).unlink()
    again = generate(*FLAGS)
    assert again.code == 0
    assert again.parts == first.parts


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--temperature", 0.5], "another temperature: 1.0 there, 0.5 now"),
        (["--seed", 4], "another run_seed: 0 there, 4 now"),
        (["--numerics", "bf16"], 'another numerics: "float32" there, "bf16" now'),
        (["--top-k", 4, "--n", 2], "and 1 more settings differ"),
    ],
)
def test_another_run_is_refused_and_named(generate, flags, told):
    first = generate(*FLAGS, table=TABLE)
    before = written(first)
    other = generate(*FLAGS, *flags)
    assert other.code == 2
    assert told in other.sentence()
    assert "--overwrite" in other.sentence()
    assert written(first) == before
    assert (first.folder / "_SUCCESS").exists()


def test_a_part_that_was_damaged_is_told(generate):
    first = generate(*FLAGS, table=TABLE)
    part = first.folder / first.parts[0]
    part.write_bytes(part.read_bytes()[:500])
    again = generate(*FLAGS)
    assert again.code == 1
    told = again.err.strip().splitlines()[-1]
    assert "a part in " in told
    assert f"grok1 inspect {first.folder} says which" in told
    (first.folder / "_SUCCESS").unlink()
    again = generate(*FLAGS)
    assert again.code == 1
    assert "remove that part, and start the same command again" in again.err
    part.unlink()
    assert generate(*FLAGS).code == 0


def test_overwriting_starts_anew(generate):
    first = generate(*FLAGS, table=TABLE)
    other = generate("--max-tokens", 2, "--overwrite", table={"prompt": ["a"]})
    assert other.code == 0
    assert len(other.rows) == 1
    assert not set(other.parts) & set(first.parts)


def test_the_output_may_lie_inside_the_input(generate, tmp_path):
    inside = tmp_path / "in" / "out"
    first = generate(*FLAGS, table=TABLE, output=inside)
    assert len(first.rows) == 10
    again = generate(*FLAGS, output=inside)
    assert (again.code, again.parts) == (0, first.parts)


def test_files_added_since_are_taken(generate, tmp_path):
    """Though the new file's name sorts first, what is there is left as it is."""
    first = generate(*FLAGS, table=TABLE)
    before, rows = written(first), first.rows
    write(tmp_path / "in" / "0.parquet", {"prompt": ["class A:", None], "max_tokens": [2, 2]})
    extended = generate(*FLAGS, "--extend")
    assert extended.code == 3
    assert extended.rows[:10] == rows
    assert [row["prompt"] for row in extended.rows[10:]] == ["class A:", None]
    after = written(extended)
    assert len(after) == len(before) + 1
    assert before.items() <= after.items()
    assert extended.manifest["rows_in"] == 12
    # From now on they belong to the run.
    again = generate(*FLAGS)
    assert (again.code, written(again)) == (3, after)
    assert generate(*FLAGS, "--extend").parts == extended.parts


def test_an_extension_is_resumed_like_any_run(generate, tmp_path):
    first = generate(*FLAGS, table=TABLE)
    write(tmp_path / "in" / "0.parquet", {"prompt": ["x = [" for _ in range(7)]})
    extended = generate(*FLAGS, "--extend")
    before, rows = written(extended), extended.rows
    for name in (extended.parts[0], extended.parts[-1]):
        (first.folder / name).unlink()
    again = generate(*FLAGS)
    assert (again.code, again.rows) == (0, rows)
    assert written(again).keys() == before.keys()


@pytest.mark.parametrize(
    ("added", "told"),
    [
        ({"prompt": ["x"], "label": [1]}, "a column 'label' of int64, but the run in .* no such"),
        ({"prompt": ["x"], "max_tokens": [1.5]}, "'max_tokens' of double, but .* has int64"),
    ],
)
def test_files_of_other_columns_extend_nothing(generate, tmp_path, added, told):
    first = generate(*FLAGS, table=TABLE)
    before = written(first)
    write(tmp_path / "in" / "b.parquet", added)
    other = generate(*FLAGS, "--extend")
    assert other.code == 2
    assert re.search(told, other.sentence())
    assert written(other) == before


def test_an_extension_leaves_the_files_there_as_they_are(generate, tmp_path):
    generate(*FLAGS, table=TABLE)
    write(tmp_path / "in" / "a.parquet", {**TABLE, "prompt": ["y"] * 10})
    assert "has changed" in generate(*FLAGS, "--extend").sentence()
    for flag in (["--overwrite"], ["--limit", 3]):
        told = generate(*FLAGS, "--extend", *flag).sentence()
        assert told.startswith(f"--extend and {flag[0]} contradict each other")


def test_a_changed_input_is_refused_and_named(generate, tmp_path):
    generate(*FLAGS, table=TABLE)
    write(tmp_path / "in" / "b.parquet", TABLE)
    assert "file 'b.parquet' is new" in generate(*FLAGS).sentence()
    (tmp_path / "in" / "b.parquet").unlink()
    assert generate(*FLAGS).code == 0
    changed = {**TABLE, "prompt": TABLE["prompt"][::-1]}
    assert "file 'a.parquet' has changed" in generate(*FLAGS, table=changed).sentence()
