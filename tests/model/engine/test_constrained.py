"""Constrained completions through the engine: valid, whatever runs beside them and however long
their masks take."""

import json
import random
import re
import subprocess
import sys
import time
from concurrent.futures import Future

import jsonschema
import pytest

from model.constraint import Constrainer
from model.engine.masks import Masker
from model.engine.request import Request
from model.engine.rules import Rules
from model.engine.ticket import Sample, open_ticket
from schemas.error import ErrorCode
from schemas.sampling import SamplingParams
from schemas.structured import StructuredOutputs
from tests.model.engine.conftest import greedy

pytest.importorskip("llguidance")

PROMPTS = [tuple(row["prompt"]) for row in greedy("greedy_exact")]
REGEX = r"[a-z]{2,9}: [0-9]{1,4}"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "size": {"type": "integer"}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
CHOICES = ["yes", "no", "perhaps"]
WISHES = [
    {"structured_outputs": {"regex": REGEX}},
    {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
    {},
    {"structured_outputs": {"choice": CHOICES}, "n": 2},
    {"structured_outputs": {"grammar": 'start: ("a" | "b")+ "c"'}, "repetition_penalty": 1.3},
    {"temperature": 0, "structured_outputs": {"regex": "[a-f]+x"}, "logprobs": 2},
]


def ask(i: int) -> Request:
    params = SamplingParams(max_tokens=30, temperature=1.3).override(WISHES[i % len(WISHES)])
    return Request(prompt_token_ids=PROMPTS[i % 12], params=params, address=f"0/{i}")


def complete(engine, **params):
    [output] = engine.generate(["def f("], SamplingParams(**params))
    assert output.error is None
    return output.outputs[0]


def check(params: SamplingParams, completion) -> None:
    """The text is what was asked for, unless its tokens ran out."""
    wanted = params.structured_outputs
    if wanted is None or completion.finish_reason == "length":
        assert completion.finish_reason == "length" or wanted is None
        return
    assert completion.finish_reason == "stop"
    if wanted.json is not None:
        jsonschema.validate(json.loads(completion.text), SCHEMA)
    elif wanted.choice is not None:
        assert completion.text in CHOICES
    else:
        pattern = wanted.regex or "[ab]+c"
        assert re.fullmatch(pattern, completion.text), completion.text


def test_every_completion_is_valid_unless_its_tokens_run_out(engine):
    requests = [ask(i) for i in range(90)]
    outputs = [future.result() for future in engine.submit_all(requests)]
    ended = 0
    for request, output in zip(requests, outputs, strict=True):
        assert output.error is None
        for completion in output.outputs:
            check(request.params, completion)
            ended += request.params.structured_outputs is not None
            ended -= completion.finish_reason == "length"
    assert ended > 30


@pytest.mark.parametrize("numerics", [pytest.param("float32", marks=pytest.mark.slow), "bf16"])
def test_free_rows_are_the_same_bits_beside_constrained_ones(
    engines, talking, numerics, monkeypatch
):
    engine = engines(talking, numerics=numerics)
    runner, ran = engine._replicas[0].loop._runner, []
    for name in ("decode", "run"):
        step = getattr(runner, name)
        monkeypatch.setattr(runner, name, lambda name=name, step=step: ran.append(name) or step())
    wishes = [{"temperature": 0}, {"top_p": 0.9}, {"frequency_penalty": 1}, {"n": 2, "min_p": 0.1}]
    free = [
        Request(
            prompt_token_ids=PROMPTS[i],
            params=SamplingParams(max_tokens=14, ignore_eos=True, logprobs=2).override(wish),
            address=f"0/{i}",
        )
        for i, wish in enumerate(wishes)
    ]
    alone = [f.result().outputs for f in engine.submit_all(free)]
    assert set(ran) == {"decode"}
    # The neighbours are sure to outlast them, once their constraint has been compiled.
    params = SamplingParams(max_tokens=160, structured_outputs={"regex": "[a-z]{900}"})
    neighbours = [engine.submit(Request(prompt_token_ids=(5, i), params=params)) for i in range(3)]
    while "run" not in ran:
        time.sleep(0.001)
    for _ in range(2):
        assert [f.result().outputs for f in engine.submit_all(free)] == alone
    assert "run" in ran
    assert {f.result().outputs[0].finish_reason for f in neighbours} == {"length"}


def test_slow_masks_hold_up_nothing_and_change_nothing(engine, monkeypatch):
    requests = [ask(i) for i in range(24)]
    quick = [f.result().outputs for f in engine.submit_all(requests)]
    masker = engine._replicas[0].loop._masker
    plain, rng = masker._masks, random.Random(0)

    def slow(samples, tokens):
        time.sleep(rng.choice([0, 0.01, 0.05]))
        return plain(samples, tokens)

    monkeypatch.setattr(masker, "_masks", slow)
    before = engine.stats()
    assert [f.result().outputs for f in engine.submit_all(requests)] == quick
    # Steps went on while masks were made: rows were run whose tokens could not be drawn.
    assert engine.stats().decode_rows > before.decode_rows


@pytest.mark.parametrize(
    "wish",
    [
        {"ignore_eos": True},
        {"min_tokens": 25},
        {"bad_words": ["yes", "y", "n", "p"]},
        {"logit_bias": {7: 100}, "presence_penalty": 2},
        {"allowed_token_ids": [5, 6, 7]},
        {"top_k": 1, "top_p": 0.1, "min_p": 0.5},
    ],
)
def test_a_constraint_goes_before_all_other_wishes(engine, wish):
    for seed in range(4):
        params = {"seed": seed, "max_tokens": 30, "structured_outputs": {"choice": CHOICES}}
        completion = complete(engine, **{**params, **wish})
        assert completion.text in CHOICES
        assert completion.finish_reason == "stop"
        assert completion.stop_reason is None


def test_a_constraint_that_makes_no_sense_is_the_rows_own_error(engine):
    good, bad = SamplingParams(max_tokens=3), SamplingParams(structured_outputs={"regex": "("})
    first, wrong, last = engine.generate([[5], [5], [5]], [good, bad, good])
    assert first.error is last.error is None
    assert (wrong.error.code, wrong.error.param) == (
        ErrorCode.INVALID_PARAMETER,
        "structured_outputs",
    )


def test_masks_that_cannot_be_made_are_the_rows_own_error(engine, monkeypatch):
    masker = engine._replicas[0].loop._masker
    monkeypatch.setattr(masker, "_masks", lambda samples, tokens: 1 / 0)
    constrained = SamplingParams(max_tokens=9, structured_outputs={"regex": "[ab]+"}, n=2)
    free = SamplingParams(max_tokens=20, ignore_eos=True)
    outputs = engine.generate([[5, 6]] * 4, [free, constrained, free, constrained])
    assert [len(o.outputs) for o in outputs] == [1, 0, 1, 0]
    assert "division by zero" in outputs[1].error.message
    monkeypatch.undo()
    assert re.fullmatch("[ab]+", complete(engine, structured_outputs={"regex": "[ab]{3}"}).text)


def test_masks_of_samples_that_are_all_lost(trained):
    """None of a group can be followed any more: each is told so, by the real library."""
    grammar = Constrainer(trained).compile(StructuredOutputs(regex="[ab]+"))
    params = SamplingParams(structured_outputs={"regex": "[ab]+"})
    ticket = open_ticket(
        Request(prompt_token_ids=(5,), params=params), Rules(stop_ids=(), grammar=grammar), Future()
    )
    masker = Masker(trained.vocab_size)
    for texts in ("x", "xx", "xax"):
        group = [Sample.of(ticket, 0) for _ in texts]
        for sample, text in zip(group, texts, strict=True):
            sample.token_ids += trained.encode_inside(text)
        masker.ask(group)
        found = {made.sample: made.mask for made in masker.wait(lambda: False, 0.0, len(group))}
        for sample, text in zip(group, texts, strict=True):
            if text == "x":
                assert "too complex" in found[sample].message
            else:
                assert found[sample].any()
    masker.close()


def test_a_constraint_needs_its_library(engine, monkeypatch):
    """Where it is not installed, rows are told what to install, and all others are completed."""
    monkeypatch.setattr("model.constraint.available", lambda: False)
    monkeypatch.delitem(engine._intake.__dict__, "_compiler", raising=False)
    constrained = SamplingParams(structured_outputs={"choice": ["a"]})
    free, refused = engine.generate([[5], [5]], [SamplingParams(max_tokens=2), constrained])
    assert free.error is None
    assert refused.error.param == "structured_outputs"
    assert "pip install 'grok1-batch[constraints]'" in refused.error.message


def test_nothing_imports_the_library_before_it_is_used():
    program = """
import sys
sys.modules["llguidance"] = None
import model.engine.engine, model.constraint, pipeline.cli, pipeline.tasks
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_constraint_needs_a_tokenizer(engines):
    request = Request(
        prompt_token_ids=(5,), params=SamplingParams(structured_outputs={"choice": ["a"]})
    )
    error = engines(numerics="float32").submit(request).result().error
    assert error.param == "structured_outputs"


def test_a_prompt_without_text_is_continued_by_valid_text(engine):
    for seed in range(5):
        params = SamplingParams(
            seed=seed, structured_outputs={"regex": " [a-z]{2}( [a-z]+)?"}, max_tokens=20
        )
        [output] = engine.generate([[1]], params)
        completion = output.outputs[0]
        assert completion.finish_reason == "length" or re.fullmatch(
            " [a-z]{2}( [a-z]+)?", completion.text
        )


def test_rows_without_constraints_need_no_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    masker = Masker(64)
    masker.ask([])
    assert not masker.waiting
    masker.close()
