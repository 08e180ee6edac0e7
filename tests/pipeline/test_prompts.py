import pickle

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tokenizer import Tokenizer
from pipeline.options import GenerateOptions
from pipeline.prepare import prepare_job
from pipeline.prompts import fit
from schemas.error import ErrorCode, RowError
from schemas.sampling import SamplingParams
from tests.jobs import prompts_of, write

IDS = {"prompt_token_ids": pa.array([list(range(3, 103))])}


@pytest.fixture
def only(prepare):
    """The one chunk of a job."""

    def chunk_of(table, **changes):
        [chunk] = prompts_of(prepare(table, **changes))
        return chunk

    return chunk_of


def test_text_becomes_ids_as_the_release_makes_them(only, talking):
    tokenizer = Tokenizer.load(f"{talking}/tokenizer.model")
    chunk = only({"prompt": ["import os", "def f(x):"]})
    assert [list(r.prompt_token_ids) for r in chunk.requests] == [
        tokenizer.encode("import os"),
        tokenizer.encode("def f(x):"),
    ]
    assert chunk.sources == (0, 1)
    assert chunk.errors == {}


def test_bos_is_for_text_alone(only, talking):
    tokenizer = Tokenizer.load(f"{talking}/tokenizer.model")
    table = {"prompt": ["a", "", None], "prompt_token_ids": [None, None, [9]]}
    chunk = only(table, bos="always")
    bos = tokenizer.bos_id
    assert [r.prompt_token_ids for r in chunk.requests] == [
        (bos, *tokenizer.encode("a")),
        (bos,),
        (9,),
    ]


def test_what_cannot_be_asked(only):
    table = {
        "prompt": pa.array(["fine", "", None, None, "both", None]),
        "prompt_token_ids": [None, None, [], [1, 1024], [1], [5, -1]],
        "max_tokens": [4, 4, 4, 4, 4, 4],
    }
    chunk = only(table)
    assert chunk.sources == (0,)
    assert {row: (e.code, e.param) for row, e in chunk.errors.items()} == {
        1: (ErrorCode.PROMPT_EMPTY, "prompt"),
        2: (ErrorCode.PROMPT_EMPTY, "prompt_token_ids"),
        3: (ErrorCode.TOKEN_ID_OUT_OF_RANGE, "prompt_token_ids"),
        4: (ErrorCode.PROMPT_AMBIGUOUS, "prompt"),
        5: (ErrorCode.TOKEN_ID_OUT_OF_RANGE, "prompt_token_ids"),
    }
    assert "holds 1024 at position 1, outside the vocabulary of 1024" in chunk.errors[3].message
    assert chunk.prompt_tokens == {1: 0, 2: 0, 3: 2, 5: 2}


def test_a_stop_token_id_out_of_range(only):
    chunk = only({"prompt": ["a"], "stop_token_ids": [[7, 5000]]})
    assert chunk.errors[0].code == ErrorCode.TOKEN_ID_OUT_OF_RANGE
    assert chunk.errors[0].param == "stop_token_ids"


def test_over_length_is_an_error_by_default(only):
    chunk = only(IDS, sampling=SamplingParams(max_tokens=157))
    assert chunk.errors[0].code == ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert "prompt of 100 tokens and max_tokens=157 exceed the context of 256" in (
        chunk.errors[0].message
    )
    assert only(IDS, sampling=SamplingParams(max_tokens=156), overwrite=True).errors == {}


@pytest.mark.parametrize(
    ("policy", "kept"), [("truncate_left", range(93, 103)), ("truncate_right", range(3, 13))]
)
def test_over_length_may_be_cut(only, policy, kept):
    chunk = only(IDS, over_length=policy, sampling=SamplingParams(max_tokens=246))
    assert chunk.requests[0].prompt_token_ids == tuple(kept)


def test_a_cut_prompt_keeps_its_bos(only, talking):
    tokenizer = Tokenizer.load(f"{talking}/tokenizer.model")
    text = "import os " * 50
    whole = tokenizer.encode(text)
    table = {"prompt": [text], "max_tokens": [246]}
    left = only(table, over_length="truncate_left", bos="always")
    assert left.requests[0].prompt_token_ids == (tokenizer.bos_id, *whole[-9:])
    right = only(table, over_length="truncate_right", bos="always", overwrite=True)
    assert right.requests[0].prompt_token_ids == (tokenizer.bos_id, *whole[:9])


def test_max_tokens_that_leave_no_room_are_an_error_under_any_policy(only):
    table = {"prompt": ["a", "b"], "max_tokens": [256, 255]}
    chunk = only(table, over_length="truncate_left")
    assert chunk.errors[0].code == ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert chunk.errors[0].param == "max_tokens"
    assert len(chunk.requests[0].prompt_token_ids) == 1


def test_completions_may_reach_to_the_contexts_end(only):
    table = {
        "prompt_token_ids": [[5] * 200, [5] * 256, [5] * 253, [5] * 9],
        "max_tokens": [-1, -1, -1, None],
        "min_tokens": [0, 0, 4, 0],
    }
    chunk = only(table)
    assert [request.params.max_tokens for request in chunk.requests] == [56, 16]
    assert "prompt of 256 tokens and a completion of 1 exceed" in chunk.errors[1].message
    assert "prompt of 253 tokens and a completion of 4 exceed" in chunk.errors[2].message
    chunk = only(table, over_length="truncate_left", overwrite=True)
    assert [request.params.max_tokens for request in chunk.requests] == [56, 1, 4, 16]


@given(
    length=st.integers(1, 400),
    max_tokens=st.integers(1, 300),
    policy=st.sampled_from(["error", "truncate_left", "truncate_right"]),
    bos=st.sampled_from(["never", "always"]),
)
def test_what_is_run_fits_and_is_part_of_the_prompt(limits, length, max_tokens, policy, bos):
    job = limits[policy, bos]
    ids = list(range(length))
    result = fit(ids, SamplingParams(max_tokens=max_tokens), job)
    if length + max_tokens <= job.max_context:
        assert result == ids
    elif isinstance(result, RowError):
        room = job.max_context - max_tokens
        assert policy == "error" or room < 1 + (bos == "always")
    else:
        assert len(result) + max_tokens == job.max_context
        assert result[0] == (0 if bos == "always" or policy == "truncate_right" else result[0])
        if policy == "truncate_left":
            assert result[-1] == ids[-1]


@pytest.fixture(scope="module")
def limits(talking, tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits")
    source = write(folder / "a.parquet", {"prompt": ["a"]})
    return {
        (policy, bos): prepare_job(
            GenerateOptions(
                checkpoint=talking,
                input=source,
                output=str(folder / policy / bos),
                over_length=policy,
                bos=bos,
            )
        )
        for policy in ("error", "truncate_left", "truncate_right")
        for bos in ("never", "always")
    }


def uids(chunks):
    return [uid for chunk in chunks for uid in chunk.row_uids]


def test_a_row_has_one_id_wherever_its_file_lies_and_however_it_is_cut(prepare, tmp_path):
    table = {"prompt": ["a", "b", "c"]}
    here = uids(prompts_of(prepare(table, chunk_rows=2)))
    write(
        tmp_path / "elsewhere" / "a.parquet", {"prompt": ["a", "b", "changed"], "more": [1, 2, 3]}
    )
    there = prepare(input=(str(tmp_path / "elsewhere"),), output=str(tmp_path / "out2"))
    assert uids(prompts_of(there)) == here
    assert len(set(here)) == 3
    write(tmp_path / "elsewhere" / "b.parquet", table)
    both = prepare(input=there.options.input, output=str(tmp_path / "out3"))
    assert uids(prompts_of(both))[:3] == here
    assert len(set(uids(prompts_of(both)))) == 6


def test_ids_may_follow_custom_id(prepare, tmp_path):
    table = {"prompt": ["a", "b", "c"], "custom_id": ["x", "y", None]}
    one = uids(prompts_of(prepare(table, unique_custom_id=True)))
    reordered = {"prompt": ["b", "a", "c"], "custom_id": ["y", "x", None]}
    write(tmp_path / "other" / "z.parquet", reordered)
    job = prepare(
        input=(str(tmp_path / "other"),), output=str(tmp_path / "out2"), unique_custom_id=True
    )
    other = uids(prompts_of(job))
    assert other[:2] == [one[1], one[0]]
    assert other[2] != one[2]


def test_a_custom_id_that_is_no_text_harms_nobody(prepare):
    ids = pa.array([b"x", b"\xff"]).view(pa.string())
    table = pa.table({"prompt": ["a", "b"], "custom_id": ids})
    [chunk] = prompts_of(prepare(table, unique_custom_id=True))
    assert len(set(chunk.row_uids)) == 2


def test_randomness_has_the_rows_address(only):
    table = {"prompt": ["a", "b"]}
    [first, second] = only(table, run_seed=7).requests
    assert first.address.startswith("7/")
    assert first.address != second.address
    again = only(table, run_seed=8, overwrite=True).requests[0]
    assert again.address.partition("/")[2] == first.address.partition("/")[2]
    assert again.sample_key(0) != first.sample_key(0)


def test_a_chunk_travels_without_the_rows_it_was_cut_from(prepare):
    job = prepare({"prompt": ["x" * 200] * 1000, "pad": ["y" * 200] * 1000}, chunk_rows=10)
    chunk = prompts_of(job)[0]
    data = pickle.dumps(chunk)
    assert len(data) < 40_000
    assert pickle.loads(data) == chunk
