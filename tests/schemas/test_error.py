import dataclasses
import re

import pytest

from schemas.error import EXPLANATIONS, INPUT_ERRORS, ErrorCode, RowError

OF_RUNS = {
    *(ErrorCode.PROMPT_MISSING, ErrorCode.PROMPT_AMBIGUOUS, ErrorCode.TEMPLATE_FAILED),
    *(ErrorCode.DEADLINE_EXCEEDED, ErrorCode.POISON, ErrorCode.SUSPECTED_POISON),
    *INPUT_ERRORS,
}
"""What can be wrong in runs only."""


def test_every_code_is_explained():
    assert set(EXPLANATIONS) == set(ErrorCode)
    told = [dataclasses.astuple(explanation) for explanation in EXPLANATIONS.values()]
    assert all(all(words) for words in told)
    assert all(len({words[i] for words in told}) == len(told) for i in range(3))


@pytest.mark.parametrize("code", ErrorCode)
def test_a_sentence_tells_fault_and_remedy(code):
    sentence = RowError(code, "prompt is null", "prompt").sentence()
    assert sentence.startswith("prompt is null (")
    assert EXPLANATIONS[code].remedy in sentence


@pytest.mark.parametrize("code", [code for code in ErrorCode if code not in OF_RUNS])
def test_a_call_is_told_of_no_flags(code):
    sentence = RowError(code, "prompt is null").sentence(called=True)
    assert not re.search(r"--|grok1|column|OUTPUT|\brow\b", sentence)


def test_a_code_is_what_stands_in_the_column():
    assert str(ErrorCode.PROMPT_MISSING) == "prompt_missing"
    assert all(code == str(code) and " " not in code for code in ErrorCode)


def test_an_error_cannot_be_changed():
    error = RowError(ErrorCode.PROMPT_EMPTY, "prompt has no tokens")
    with pytest.raises(dataclasses.FrozenInstanceError):
        error.message = "another"
