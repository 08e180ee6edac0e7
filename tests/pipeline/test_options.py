import pytest

from pipeline.options import GenerateOptions
from schemas.error import SetupError
from schemas.sampling import SamplingParams

GOOD = {"checkpoint": "ckpt", "input": ("in",), "output": "out"}


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"checkpoint": ""}, "--checkpoint"),
        ({"output": ""}, "--output"),
        ({"input": ()}, "--input"),
        ({"input": ("a", "")}, "--input"),
        ({"over_length": "cut"}, "--over-length"),
        ({"bos": "sometimes"}, "--bos"),
        ({"chunk_rows": 0}, "--chunk-rows"),
        ({"chunk_rows": 2.5}, "--chunk-rows"),
        ({"limit": -1}, "--limit"),
        ({"run_seed": 2**63}, "--run-seed"),
        ({"run_seed": "1"}, "--run-seed"),
        ({"allow_errors": 1.1}, "--allow-errors"),
        ({"allow_errors": float("nan")}, "--allow-errors"),
    ],
)
def test_a_wrong_value_is_told_by_its_flag(change, flag):
    with pytest.raises(SetupError, match=f"^{flag} "):
        GenerateOptions(**{**GOOD, **change})


def test_one_input_may_be_given_plainly():
    assert GenerateOptions(**{**GOOD, "input": "in.parquet"}).input == ("in.parquet",)


def test_what_changes_results_is_told_from_what_does_not():
    plain = GenerateOptions(**GOOD).result_settings()
    for same in ({"chunk_rows": 7}, {"limit": 3}, {"strict": True}, {"allow_errors": 0.5}):
        assert GenerateOptions(**GOOD, **same).result_settings() == plain
    for other in (
        {"run_seed": 1},
        {"bos": "always"},
        {"over_length": "truncate_left"},
        {"sampling": SamplingParams(top_k=3)},
        {"rename": {"a": "b"}},
        {"output_prefix": "g_"},
        {"unique_custom_id": True},
    ):
        assert GenerateOptions(**GOOD, **other).result_settings() != plain


def test_no_secret_is_shown():
    options = GenerateOptions(
        checkpoint="c", input=("s3://key:secret@bucket/in", "b"), output="out"
    )
    assert options.shown_input == "the input (s3://***@bucket/in and 1 more)"
    one = GenerateOptions(checkpoint="c", input=("a.parquet",), output="out")
    assert one.shown_input == "a.parquet"
