"""The real lm-evaluation-harness on tasks made from local data.

It is in the extra ``lm-eval`` and brings much: ``make test-lm-eval`` runs this in an environment of
its own.
"""

import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.checkpoint.source import open_checkpoint
from model.engine.engine import Engine
from model.engine.options import EngineOptions
from pipeline import read_completions
from pipeline.cli import main
from schemas.sampling import SamplingParams
from tests.model import reference

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
pytest.importorskip("datasets", reason="lm-evaluation-harness reads tasks' data with it")

OPTIONS = EngineOptions(numerics="float32", slots=8)

QUESTIONS = [
    {"question": "The capital of France is", "choices": [" Paris", " Rome", " a b c"], "answer": 0},
    {"question": "import numpy as", "choices": [" np", " torch", " x"], "answer": 0},
    {"question": "One two three ", "choices": ["four", "for you and me", "I"], "answer": 0},
    {"question": "def f(", "choices": ["x):", "): return 1", "a"], "answer": 1},
    {"question": "def f(", "choices": ["y):", "*args):", "a"], "answer": 2},
]
TEXTS = [
    "A short text.",
    "All the world is a stage, and all the men and women merely players. " * 12,
]

TASKS = {
    "local_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "local_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "local_completion": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["e"], max_gen_toks: 12, temperature: 0.0, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "local_until": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["e", "a"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks for the harness."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, text in TASKS.items():
        rows = [{"text": t} for t in TEXTS] if name == "local_text" else QUESTIONS
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ntest_split: test\n"
            f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n{text}"
        )
    return folder


@pytest.fixture(scope="module")
def results(tasks, talking, tmp_path_factory):
    """All tasks evaluated, by the harness's own evaluator."""
    from lm_eval.tasks import TaskManager

    import model.lm_eval  # noqa: F401

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        return lm_eval.simple_evaluate(
            model="grok1",
            model_args={"checkpoint": talking, "numerics": "float32", "slots": 8},
            tasks=list(TASKS),
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
        )


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


def test_a_run_of_the_pipeline_gives_the_very_numbers(results, talking, tmp_path):
    """The same evaluation as a Beam job: the harness's requests as rows of a table."""
    engine = ["--checkpoint", talking, "--numerics", "float32", "--slots", "8"]

    def scored(name, table):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        files = ["--input", str(tmp_path / f"{name}.parquet"), "--output", str(tmp_path / name)]
        assert main(["score", *engine, *files]) == 0
        return read_completions(str(tmp_path / name)).to_pylist()

    questions = pa.table(
        {
            "context": [row["question"] for row in QUESTIONS],
            "continuations": [row["choices"] for row in QUESTIONS],
        }
    )
    rows = iter(scored("choices", questions))
    right = 0
    for sample, row in zip(results["samples"]["local_choice"], QUESTIONS, strict=True):
        own = [next(rows) for _ in row["choices"]]
        [theirs] = zip(*sample["resps"], strict=True)
        assert [(r["logprob"], r["is_greedy"]) for r in own] == [
            (float(logprob), str(greedy) == "True") for logprob, greedy in theirs
        ]
        right += int(np.argmax([r["logprob"] for r in own])) == row["answer"]
    assert results["results"]["local_choice"]["acc,none"] == pytest.approx(right / len(QUESTIONS))
    rows = scored("texts", pa.table({"document": TEXTS}))
    bits = -sum(r["logprob"] for r in rows) / sum(r["text_bytes"] for r in rows) / math.log(2)
    assert results["results"]["local_text"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-12)


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
