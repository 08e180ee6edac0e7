"""The real lm-evaluation-harness on tasks made from local data.

It is in the extra ``lm-eval`` and brings much: ``make test-lm-eval`` runs this in an environment of
its own.
"""

import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from model.checkpoint.source import open_checkpoint
from model.engine.engine import Engine
from model.engine.options import EngineOptions
from schemas.error import SetupError
from schemas.sampling import InvalidParameter, SamplingParams
from tests.lm_eval_tasks import QUESTIONS, TEXTS, evaluate, write_tasks
from tests.model import reference

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
pytest.importorskip("datasets", reason="lm-evaluation-harness reads tasks' data with it")

OPTIONS = EngineOptions(numerics="float32", slots=8)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks for the harness."""
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def results(tasks, talking):
    """All tasks evaluated."""
    import model.lm_eval  # noqa: F401

    return evaluate(tasks, "grok1", {"checkpoint": talking, "numerics": "float32", "slots": 8})


class Oracle:
    """Log-likelihoods in float64."""

    def __init__(self, folder: str):
        self.checkpoint = open_checkpoint(folder)
        self.weights = reference.dequantized(self.checkpoint)

    def logprobs(self, tokens: list[int]) -> np.ndarray:
        """Of each token after the first."""
        logits = reference.logits(self.checkpoint.config, self.weights, tokens)
        rows = np.log(reference.softmax(logits))
        return rows[np.arange(len(tokens) - 1), tokens[1:]]


@pytest.fixture(scope="module")
def oracle(talking):
    return Oracle(talking)


def test_choices_are_scored_as_the_truth_says(results, oracle, trained):
    samples = results["samples"]["local_choice"]
    assert len(samples) == len(QUESTIONS)
    right = 0
    for sample, row in zip(samples, QUESTIONS, strict=True):
        scores = []
        for choice, [(logprob, _)] in zip(row["choices"], sample["resps"], strict=True):
            context = trained.encode(row["question"].rstrip())
            tokens = trained.encode(row["question"] + choice)[len(context) :]
            scores.append(oracle.logprobs(context + tokens)[-len(tokens) :].sum())
            assert float(logprob) == pytest.approx(scores[-1], abs=1e-3)
        right += int(np.argmax(scores)) == row["answer"]
    assert results["results"]["local_choice"]["acc,none"] == pytest.approx(right / len(QUESTIONS))


def test_texts_are_scored_whole(results, oracle, trained):
    context = oracle.checkpoint.config.sequence_len
    total = 0.0
    for text in TEXTS:
        ids = trained.encode(text)
        logprobs = oracle.logprobs([trained.bos_id, *ids[:context]])
        if len(ids) > context:
            rest = len(ids) - context
            assert rest < context
            last = oracle.logprobs(ids[-context - 1 :])
            logprobs = np.concatenate([logprobs, last[-rest:]])
        total += logprobs.sum()
    size = sum(len(text.encode()) for text in TEXTS)
    found = results["results"]["local_text"]["byte_perplexity,none"]
    assert found == pytest.approx(math.exp(-total / size), rel=1e-4)


def test_completions_end_before_their_stop_string(results):
    texts = [sample["resps"][0][0] for sample in results["samples"]["local_completion"]]
    assert not any("e" in text for text in texts)
    assert len(set(texts)) > 1


def test_a_task_need_say_no_more_than_where_to_end(results, talking):
    with Engine.from_checkpoint(talking, options=OPTIONS) as engine:
        for sample in results["samples"]["local_until"]:
            params = SamplingParams(temperature=0, max_tokens=128, stop=["e", "a"])
            [output] = engine.generate([sample["doc"]["question"]], params)
            assert sample["resps"] == [[output.outputs[0].text]]


@pytest.fixture(scope="module", params=[False, True])
def lm(request, talking):
    """The model, without and with BOS."""
    from model.lm_eval import Grok1LM

    made = Grok1LM(talking, numerics="float32", slots=8, bos=request.param)
    yield made
    made.engine.close()


def asked(context: str, doc: int, **options):
    from lm_eval.api.instance import Instance

    return Instance("generate_until", {}, (context, options), 0, ("task", doc, 1))


def test_what_is_drawn_does_not_depend_on_the_order(lm):
    options = {"do_sample": True, "temperature": 1.3, "max_gen_toks": 8}
    once = [asked("def f(", doc, **options) for doc in range(4)]
    twice = [asked("def f(", 4, **options)] * 2
    first = lm.generate_until([*once, *twice])
    assert len(set(first)) > 4
    again = lm.generate_until([*twice, *once[::-1]])
    assert again == [*first[4:], *first[3::-1]]


def test_a_prompt_has_a_beginning_however_long_it_is(lm, trained):
    context, bos = "one two three four " * 60, [trained.bos_id]
    ids = trained.encode(context, bos=lm._bos)
    room = lm.engine.max_context - 10
    assert len(ids) > room
    cut = [*ids[:1], *ids[1 - room :]] if lm._bos else ids[-room:]
    found = lm.generate_until([asked(text, 0, max_gen_toks=10) for text in ("", context)])
    outputs = lm.engine.generate([bos, cut], SamplingParams(temperature=0, max_tokens=10))
    assert found == [output.outputs[0].text for output in outputs]


def test_the_module_is_the_harness_with_the_model_in_it(tasks, talking, tmp_path):
    command = [sys.executable, "-m", "model.lm_eval", "run", "--model", "grok1"]
    command += ["--model_args", f"checkpoint={talking},slots=4", "--tasks", "local_choice"]
    command += ["--include_path", str(tasks), "--limit", "2", "--output_path", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "local_choice" in done.stdout


def test_a_task_may_say_where_to_end_in_two_ways():
    from model.generation import sampling_values

    values = sampling_values({"until": ["a", "b"], "stop": "c"}, 9)
    assert values == {"stop": ["a", "b", "c"], "temperature": 0.0, "max_tokens": 9}
    assert sampling_values({"until": "a", "stop": ["a", ""]}, 9)["stop"] == ["a"]


def test_what_is_null_is_not_there():
    from model.generation import sampling_values

    nulls = ("until", "temperature", "do_sample", "max_gen_toks", "top_p", "n")
    assert sampling_values(dict.fromkeys(nulls), 9) == sampling_values({}, 9)
    assert sampling_values({"temperature": None, "do_sample": True}, 9)["temperature"] == 1.0


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("n", 2, "must be 1, got 2: the harness takes one completion"),
        ("best_of", 3, "must be 1, got 3"),
        ("temperature", "hot", "must be a number, got 'hot'"),
        ("max_gen_toks", [], "must be a number, got"),
        ("max_gen_toks", float("nan"), "must be an integer, got nan"),
        ("max_gen_toks", float("inf"), "must be an integer, got inf"),
        ("max_new_tokens", 64.5, "must be an integer, got 64.5"),
        ("do_sample", "false", "must be true or false, got 'false'"),
        ("until", 7, "must be a list, got 7"),
        ("top_p", 3, "must be above 0"),
        ("num_beams", 3, "is no sampling parameter"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_in_a_sentence(lm, name, value, reason):
    with pytest.raises(InvalidParameter) as caught:
        lm.generate_until([asked("a", 0, **{name: value})])
    assert str(caught.value).startswith(f"{name} {reason}")


def test_a_faulty_request_is_told_of_no_flags(lm):
    too_long = asked("a", 0, max_gen_toks=lm.engine.max_context)
    with pytest.raises(ValueError, match="larger max_context") as caught:
        lm.generate_until([too_long])
    assert "--" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("slots", 0), ("max_context", 10**6), ("numerics", "float8"), ("devices", 3)],
)
def test_a_wrong_set_up_is_told_by_the_arguments_name(talking, name, value):
    from model.lm_eval import Grok1LM

    with pytest.raises(SetupError) as caught:
        Grok1LM(talking, **{name: value})
    assert name in str(caught.value)
    assert "--" not in str(caught.value)
