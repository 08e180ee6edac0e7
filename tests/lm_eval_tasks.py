"""Tasks of lm-evaluation-harness made from local data."""

import json
import pathlib
from typing import Any

import pytest

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


def write_tasks(folder: pathlib.Path) -> pathlib.Path:
    """Writes the tasks and their data; returns the folder."""
    for name, text in TASKS.items():
        rows = [{"text": t} for t in TEXTS] if name == "local_text" else QUESTIONS
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ntest_split: test\n"
            f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n{text}"
        )
    return folder


def evaluate(folder: pathlib.Path, model: str, arguments: dict[str, Any], **options: Any) -> Any:
    """All tasks evaluated, by the harness's own evaluator."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        return lm_eval.simple_evaluate(
            model=model,
            model_args=arguments,
            tasks=list(TASKS),
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
            **options,
        )
