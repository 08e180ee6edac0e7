"""Bad rows come out as errors, each with its reason, and harm no other."""

import collections
import itertools

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import jobs

BAD = {
    "null": ({}, "prompt_missing", "prompt"),
    "both": ({"prompt": b"a", "prompt_token_ids": [5]}, "prompt_ambiguous", "prompt"),
    "no text": ({"prompt": b"\xff\xfe"}, "prompt_type", "prompt"),
    "null id": ({"prompt_token_ids": [5, None]}, "prompt_type", "prompt_token_ids"),
    "empty": ({"prompt": b""}, "prompt_empty", "prompt"),
    "no ids": ({"prompt_token_ids": []}, "prompt_empty", "prompt_token_ids"),
    "large id": ({"prompt_token_ids": [1024]}, "token_id_out_of_range", "prompt_token_ids"),
    "negative id": ({"prompt_token_ids": [3, -1]}, "token_id_out_of_range", "prompt_token_ids"),
    "too long": ({"prompt": b"a b " * 400}, "context_length_exceeded", "prompt"),
    "too many ids": (
        {"prompt_token_ids": [5] * 300},
        "context_length_exceeded",
        "prompt_token_ids",
    ),
    "no room": ({"prompt": b"a", "max_tokens": 256}, "context_length_exceeded", "max_tokens"),
    "warmth": ({"prompt": b"a", "temperature": -1.0}, "invalid_parameter", "temperature"),
    "nan": ({"prompt": b"a", "top_p": float("nan")}, "invalid_parameter", "top_p"),
    "no tokens": ({"prompt": b"a", "max_tokens": 0}, "invalid_parameter", "max_tokens"),
    "n and greedy": ({"prompt": b"a", "n": 2, "temperature": 0.0}, "invalid_parameter", "n"),
    "stop id": (
        {"prompt": b"a", "stop_token_ids": [2000]},
        "token_id_out_of_range",
        "stop_token_ids",
    ),
    "empty stop": ({"prompt": b"a", "stop": [b""]}, "invalid_parameter", "stop"),
}
"""What is wrong -> the row, its error's code, the column at fault."""

TYPES = {
    "prompt": pa.binary(),
    "prompt_token_ids": pa.list_(pa.int64()),
    "max_tokens": pa.int64(),
    "temperature": pa.float64(),
    "top_p": pa.float64(),
    "n": pa.int64(),
    "stop": pa.list_(pa.binary()),
    "stop_token_ids": pa.list_(pa.int64()),
    "custom_id": pa.string(),
}


def table_of(rows):
    return pa.table({name: pa.array([r.get(name) for r in rows], t) for name, t in TYPES.items()})


def test_every_kind_in_one_file(generate, tmp_path):
    good = [{"prompt": f"def f{i}():".encode(), "custom_id": f"good {i}"} for i in range(20)]
    bad = [{**row, "custom_id": name} for name, (row, _, _) in BAD.items()]
    mixed = [row for pair in itertools.zip_longest(good, bad) for row in pair if row is not None]
    common = ("--unique-custom-id", "--max-tokens", 4)
    outcome = generate(*common, "--chunk-rows", 9, table=table_of(mixed))
    assert outcome.code == 3
    rows = {row["custom_id"]: row for row in outcome.rows}
    assert list(rows) == [row["custom_id"] for row in mixed]
    for name, (_, code, param) in BAD.items():
        row = rows[name]
        found = (row["status"], row["error_code"], row["error_param"])
        assert found == ("errored", code, param), name
        assert row["error_message"].endswith(")")
        assert row["finish_reason"] == "error"
        assert row["text"] is row["token_ids"] is row["completion_tokens"] is None
    manifest = outcome.manifest
    assert (manifest["rows_in"], manifest["succeeded"], manifest["errored"]) == (37, 20, 17)
    assert manifest["errors"] == collections.Counter(code for _, code, _ in BAD.values())
    assert all(code in outcome.out for code in manifest["errors"])

    alone = generate(*common, table=table_of(good), output=tmp_path / "alone")
    assert alone.code == 0
    assert [row | {"cached_tokens": 0} for row in alone.rows] == [
        rows[row["custom_id"]] | {"cached_tokens": 0} for row in good
    ]


@pytest.mark.parametrize(
    ("policy", "status"),
    [
        ("error", "errored"),
        ("truncate_left", "succeeded"),
        pytest.param("truncate_right", "succeeded", marks=pytest.mark.slow),
    ],
)
def test_over_length(generate, policy, status):
    ids = [i % 1000 + 3 for i in range(300)]
    flags = ("--max-tokens", 200, "--over-length", policy, "--prompt-logprobs", 0)
    outcome = generate(*flags, table={"prompt_token_ids": [ids, ids[:56], ids[:57]]})
    assert [row["status"] for row in outcome.rows] == [status, "succeeded", status]
    assert outcome.code == (3 if policy == "error" else 0)
    first = outcome.rows[0]
    assert first["prompt_token_ids"] == ids
    if policy == "error":
        assert first["prompt_tokens"] == 300
    else:
        run = ids[-56:] if policy == "truncate_left" else ids[:56]
        assert [entry and entry["token_id"] for entry in first["prompt_logprobs"]] == [
            None,
            *run[1:],
        ]


PROMPT = st.one_of(
    st.none(),
    st.sampled_from([b"import os", b"a" * 2000, b""]),
    st.text(max_size=8).map(str.encode),
    st.binary(max_size=4),
)
ROW = st.fixed_dictionaries(
    {},
    optional={
        "prompt": PROMPT,
        "prompt_token_ids": st.none()
        | st.lists(st.none() | st.integers(-1, 1025), max_size=3)
        | st.lists(st.integers(3, 1023), min_size=1, max_size=40),
        "max_tokens": st.none() | st.integers(-1, 6) | st.just(256),
        "temperature": st.none() | st.floats(-0.1, 2) | st.just(0.0),
        "top_p": st.none() | st.floats(-0.1, 1.1) | st.just(float("nan")),
        "n": st.none() | st.integers(0, 4),
        "stop": st.none() | st.lists(st.binary(max_size=2), max_size=2),
        "stop_token_ids": st.none() | st.lists(st.integers(-1, 1025), max_size=2),
        "custom_id": st.none() | st.text(max_size=3),
    },
)


@settings(
    max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(rows=st.lists(ROW, max_size=30), step=st.integers(1, 12), n=st.integers(1, 3))
def test_every_row_is_accounted_for_whatever_it_holds(generate, tmp_path_factory, rows, step, n):
    folder = tmp_path_factory.mktemp("wild")
    table = table_of(rows)
    outcome = generate(
        "--max-tokens", 4, "--n", n, "--chunk-rows", step,
        source=jobs.write(folder / "a.parquet", table), output=folder / "out",
    )  # fmt: skip
    assert outcome.code in (0, 3)
    out = outcome.rows
    by_row = collections.defaultdict(list)
    for row in out:
        by_row[row["row_uid"]].append(row)
    assert len(by_row) == len(rows)
    # Input order, and each good row as often as it asked.
    for asked, found in zip(rows, by_row.values(), strict=True):
        [status] = {row["status"] for row in found}
        want = (asked.get("n") or n) if status == "succeeded" else 1
        assert [row["sample_index"] for row in found] == list(range(want))
        assert all(row["custom_id"] == asked.get("custom_id") for row in found)
        assert (found[0]["error_code"] is None) == (status == "succeeded")
        assert (found[0]["token_ids"] is None) == (status == "errored")
    manifest = outcome.manifest
    errored = sum(row["status"] == "errored" for row in out)
    assert (outcome.code == 3) == (errored > 0)
    assert manifest["rows_in"] == len(rows)
    assert manifest["errored"] == errored
    assert manifest["succeeded"] + errored == len(rows)
    assert manifest["rows_out"] == len(out)


def test_an_error_names_the_column_that_the_user_has(generate):
    wrong = {
        "guided_regex": "(",
        "form": "start: nothing",
        "guided_choice": [""],
        "until": [""],
        "max_new_tokens": 999,
        "warmth": -1.0,
        "stop_token_ids": [5000],
    }
    table = {name: [value if n == name else None for n in wrong] for name, value in wrong.items()}
    columns = ("--columns", "temperature=warmth", "--columns", "guided_grammar=form")
    outcome = generate(*columns, "--dedupe", table={"prompt": ["a"] * len(wrong), **table})
    assert outcome.manifest["succeeded"] == 0
    for name, row in zip(wrong, outcome.rows, strict=True):
        assert row["error_param"] == name
        if name != "max_new_tokens":
            assert row["error_message"].startswith(f"{name} ")
    assert outcome.rows[0]["error_message"].startswith("guided_regex has a regex that does not com")
