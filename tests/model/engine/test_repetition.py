import hypothesis.strategies as st
import pytest
from hypothesis import given

from model.engine.repetition import RepetitionWatcher
from schemas.repetition import RepetitionDetection
from schemas.sampling import SamplingParams


def loops(tokens: list[int], wanted: RepetitionDetection) -> bool:
    """Whether the tokens end with a pattern that stands there often enough."""
    sizes = range(wanted.min_pattern_size, wanted.max_pattern_size + 1)
    return any(
        len(tokens) >= size * wanted.min_count
        and tokens[-size * wanted.min_count :] == tokens[-size:] * wanted.min_count
        for size in sizes
    )


@given(
    st.lists(st.integers(0, 2), max_size=30),
    st.integers(1, 6),
    st.integers(0, 5),
    st.integers(2, 4),
    st.integers(0, 12),
    st.integers(1, 30),
)
def test_a_loop_is_found_where_it_is_complete(tokens, largest, fewer, count, min_tokens, step):
    wanted = RepetitionDetection(
        max_pattern_size=largest, min_pattern_size=max(1, largest - fewer), min_count=count
    )
    watcher = RepetitionWatcher(wanted, min_tokens, 30)
    found = None
    for start in range(0, len(tokens), step):
        found = watcher.feed(tokens[start : start + step])
        if found:
            break
    ends = [n for n in range(max(1, min_tokens), len(tokens) + 1) if loops(tokens[:n], wanted)]
    assert found == (ends[0] if ends else None)


LOOP = {"max_pattern_size": 3, "min_count": 4}
TOKEN, TEXT = 331, "th"


def complete(engine, **params):
    """A completion that says one thing over and over."""
    wanted = {"temperature": 0, "logit_bias": {TOKEN: 100}, "repetition_detection": LOOP}
    [output] = engine.generate([[5, 6, 7]], SamplingParams(**{**wanted, **params}))
    return output.outputs[0]


def test_a_loop_ends_a_completion(engines, talking):
    engine = engines(talking, numerics="float32")
    completion = complete(engine)
    assert completion.token_ids == (TOKEN,) * 4
    assert completion.text == TEXT * 4
    assert completion.finish_reason == "repetition"
    assert completion.stop_reason == "repetition_detected"
    assert len(complete(engine, min_tokens=9).token_ids) == 9
    assert len(complete(engine, repetition_detection=None).token_ids) == 16


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"stop": TEXT * 4}, "stop"),
        ({"stop": TEXT * 5}, "repetition"),
        ({"max_tokens": 4}, "length"),
        ({"max_tokens": 5}, "repetition"),
    ],
)
def test_what_else_ends_at_the_same_token_goes_first(engines, talking, params, reason):
    assert complete(engines(talking, numerics="float32"), **params).finish_reason == reason
