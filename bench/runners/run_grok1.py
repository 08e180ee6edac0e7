"""This project's engine."""

import pathlib
import sys
from typing import Any

from protocol import Jobs, serve

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))


def load(model: str, settings: dict[str, Any]):
    from model.engine.engine import Engine
    from model.engine.options import EngineOptions
    from schemas.sampling import SamplingParams

    engine = Engine.from_checkpoint(model, options=EngineOptions(**settings))

    def complete(jobs: Jobs) -> int:
        params = [
            SamplingParams(
                n=job["n"],
                temperature=0.0 if job["n"] == 1 else 1.0,
                max_tokens=job["max_tokens"],
                ignore_eos=True,
            )
            for job in jobs
        ]
        done = engine.generate([job["prompt"] for job in jobs], params)
        if failed := next((output.error for output in done if output.error), None):
            raise RuntimeError(failed.message)
        return sum(len(sample.token_ids) for output in done for sample in output.outputs)

    return complete


if __name__ == "__main__":
    serve(load, ["jax", "jaxlib"])
