"""The Beam pipeline around the engine. Importing it imports neither Beam nor JAX.

What a program of one's own needs is here by name, and loaded when it is first used.
"""

import importlib
from typing import Any

_HOMES = {
    "GenerateOptions": "pipeline.options",
    "Grok1ModelHandler": "pipeline.handler",
    "Job": "pipeline.prepare",
    "ReadPrompts": "pipeline.job",
    "ScoreOptions": "pipeline.options",
    "WriteCompletions": "pipeline.job",
    "build_pipeline": "pipeline.job",
    "completions_table": "pipeline.results",
    "model_handler": "pipeline.job",
    "prepare_job": "pipeline.prepare",
    "read_completions": "pipeline.completions",
    "scores_table": "pipeline.results",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
