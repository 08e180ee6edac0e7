"""The harness's tasks by runs of the pipeline, beside the same by the engine."""

import pathlib
import subprocess
import sys
import types

import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from schemas.checks import InvalidParameter
from schemas.error import SetupError
from tests.lm_eval_tasks import QUESTIONS, TASKS, TEXTS, evaluate, write_tasks

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
pytest.importorskip("datasets", reason="lm-evaluation-harness reads tasks' data with it")

ENGINE = ("--numerics", "float32", "--slots", "8")
KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tasks, and what was made of them."""
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def requests(folder):
    """The harness's requests, a file a kind."""
    import pipeline.harness  # noqa: F401

    # The model's own default where the context is this short.
    arguments = {"to": str(folder / "requests"), "max_gen_toks": 128}
    evaluate(folder, "grok1-requests", arguments, predict_only=True)
    return folder / "requests"


def test_values_that_no_column_can_hold_are_told_by_name():
    from pipeline.harness import requests_table

    asked = [
        types.SimpleNamespace(
            task_name="a", doc_id=doc, idx=0, args=("p", {"logit_bias": bias, "until": []})
        )
        for doc, bias in enumerate([{"1": 2.0}, [[1, 2.0]]])
    ]
    with pytest.raises(InvalidParameter, match=r"^logit_bias has values of differing types"):
        requests_table("generate_until", asked)


@pytest.fixture(scope="module")
def outputs(folder, requests, talking):
    """The runs' outputs, by kind."""
    for kind in KINDS:
        task = "generate" if kind == "generate_until" else "score"
        files = ("--input", requests / f"{kind}.parquet", "--output", folder / kind)
        words = (task, "--checkpoint", talking, *ENGINE, "--no-report", "--chunk-rows", 4, *files)
        assert main([str(word) for word in words]) == 0
    return {kind: str(folder / kind) for kind in KINDS}


def test_requests_are_rows(requests):
    choices = pq.read_table(requests / "loglikelihood.parquet").to_pylist()
    assert len(choices) == sum(len(row["choices"]) for row in QUESTIONS)
    assert choices[1] == {
        "task": "local_choice",
        "doc_id": 0,
        "idx": 1,
        "repeat": 0,
        "context": QUESTIONS[0]["question"],
        "continuation": QUESTIONS[0]["choices"][1],
    }
    documents = pq.read_table(requests / "loglikelihood_rolling.parquet")
    assert documents.column("document").to_pylist() == TEXTS
    prompts = pq.read_table(requests / "generate_until.parquet").to_pylist()
    assert [
        (row["task"], row["stop"], row["max_tokens"]) for row in prompts[:: len(QUESTIONS)]
    ] == [
        ("local_completion", ["e"], 12),
        ("local_until", ["e", "a"], 128),
    ]


def test_runs_of_the_pipeline_give_the_very_answers(folder, outputs, talking):
    import model.lm_eval  # noqa: F401

    engine = {"checkpoint": talking, "numerics": "float32", "slots": 8}
    one, other = evaluate(folder, "grok1", engine), evaluate(folder, "grok1-run", outputs)
    for name in TASKS:
        own = [sample["resps"] for sample in one["samples"][name]]
        assert own
        assert own == [sample["resps"] for sample in other["samples"][name]]
        assert one["results"][name] == other["results"][name]


def test_what_was_not_asked_is_told(folder, outputs):
    with pytest.raises(SetupError, match="generate_until=FOLDER"):
        evaluate(folder, "grok1-run", {**outputs, "generate_until": None})
    wrong = {**outputs, "loglikelihood": outputs["loglikelihood_rolling"]}
    with pytest.raises(SetupError, match="no answer to task local_choice, doc_id 0"):
        evaluate(folder, "grok1-run", wrong)


def test_the_module_is_the_harness_with_both_models_in_it(folder):
    command = [sys.executable, "-m", "pipeline.harness", "run", "--model", "grok1-requests"]
    command += ["--model_args", f"to={folder / 'again'}", "--tasks", "local_choice"]
    command += ["--include_path", str(folder), "--limit", "2", "--predict_only"]
    command += ["--output_path", str(folder / "log")]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    assert pq.read_table(folder / "again" / "loglikelihood.parquet").num_rows == 6
