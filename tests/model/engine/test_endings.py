"""Where a completion ends and what of it is text: the engine against a definition that tries one
length after the other."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from schemas.sampling import SamplingParams
from tests.model.engine.conftest import greedy
from tests.model.engine.test_repetition import loops

PROMPTS = [tuple(row["prompt"]) for row in greedy("greedy_exact")[:4]]
LONGEST = 40
EOS = 2
# Greedy, so that what may not be drawn, and would not be, changes nothing; and not one loop.
FREE = SamplingParams(
    temperature=0,
    frequency_penalty=0.6,
    logit_bias={EOS: 6},
    max_tokens=LONGEST,
    ignore_eos=True,
    skip_special_tokens=False,
)


@pytest.fixture(scope="module")
def free(engine):
    """Completions that nothing but ``max_tokens`` ends."""
    return [output.outputs[0] for output in engine.generate(PROMPTS, FREE)]


def ending(params, tokenizer, prompt, tokens):
    """Token ids, text, finish reason and stop reason."""

    def text(count):
        return tokenizer.decode_completion(prompt, tokens[:count], params.skip_special_tokens)

    loop, include = params.repetition_detection, params.include_stop_str_in_output
    ids = {*params.stop_token_ids} | (set() if params.ignore_eos else {EOS})
    early = len(text(params.min_tokens))
    for count, token in enumerate(tokens, 1):
        by_token = token in ids
        whole = text(count - 1 if by_token and not include else count)
        found = [
            (end, -len(stop), stop)
            for stop in params.stop
            for end in range(early + 1, len(whole) + 1)
            if whole[:end].endswith(stop)
        ]
        if found and count > params.min_tokens:
            end, length, stop = min(found)
            return tokens[:count], whole[: end if include else end + length], "stop", stop
        if by_token:
            reason = None if token == EOS and not params.ignore_eos else token
            return tokens[:count], whole, "stop", reason
        if count == params.max_tokens:
            return tokens[:count], whole, "length", None
        if loop and count >= params.min_tokens and loops(list(tokens[:count]), loop):
            return tokens[:count], whole, "repetition", "repetition_detected"
    raise AssertionError("a completion ends")


@st.composite
def wishes(draw, completion):
    """Parameters that may end a completion early."""
    text, tokens = completion.text, completion.token_ids
    at = st.integers(0, len(text) - 1)
    pieces = st.builds(lambda start, size: text[start : start + size], at, st.integers(1, 6))
    most = draw(st.integers(1, LONGEST))
    largest = draw(st.integers(1, 3))
    loop = {"max_pattern_size": largest, "min_count": draw(st.integers(2, 3))}
    ids = draw(st.lists(st.sampled_from(tokens), max_size=2))
    # What may not come too early must not have wanted to: the completion would be another.
    first = next((at for at, token in enumerate(tokens) if token in (EOS, *ids)), LONGEST)
    return FREE.override(
        {
            "max_tokens": most,
            "min_tokens": draw(st.integers(0, min(most, first))),
            "stop": draw(st.lists(pieces.filter(lambda piece: "\ufffd" not in piece), max_size=2)),
            "stop_token_ids": ids,
            "ignore_eos": draw(st.booleans()),
            "include_stop_str_in_output": draw(st.booleans()),
            "skip_special_tokens": draw(st.booleans()),
            "repetition_detection": draw(st.none() | st.just(loop)),
        }
    )


@settings(max_examples=40)
@given(data=st.data())
def test_completions_end_as_defined(engine, free, data):
    params = [data.draw(wishes(completion)) for completion in free]
    outputs = engine.generate(PROMPTS, params)
    for prompt, own, output, completion in zip(PROMPTS, params, outputs, free, strict=True):
        found = output.outputs[0]
        told = found.token_ids, found.text, found.finish_reason, found.stop_reason
        assert told == ending(own, engine.tokenizer, prompt, completion.token_ids)


def test_the_ways_to_end_are_all_met(free):
    """Else the test above would say little."""
    for completion in free:
        assert len(set(completion.token_ids)) > 8
    assert any(EOS in completion.token_ids[6:] for completion in free)
    loop = SamplingParams(repetition_detection={"max_pattern_size": 3, "min_count": 2})
    assert any(
        loops(list(completion.token_ids[:count]), loop.repetition_detection)
        for completion in free
        for count in range(1, LONGEST)
    )
