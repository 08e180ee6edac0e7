"""What engines on several virtual CPU devices say; run as a program: devices are counted once.

Arguments: a JSON list of engine options, and ``all`` for answers whose parameters and searches have
steps of their own, and for what is exchanged. Prints a JSON list of answers, in order.
"""

import dataclasses
import json
import os
import sys

# Each program is compiled for its devices anew: time for the compiler is what this takes most of.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=16 --xla_llvm_disable_expensive_passes=true"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax

from model import hlo, layout
from model.checkpoint.source import open_checkpoint
from model.engine.engine import Engine
from model.engine.options import EngineOptions
from model.engine.programs import Plan, steps
from model.engine.shapes import Machine, choose_shapes
from model.numerics import MODES
from model.sharding import make_mesh
from schemas.sampling import MAX_LOGPROBS, SamplingParams
from tests.model.engine.conftest import GOLDEN, greedy, truth
from tests.model.engine.steered import steered


def answers(options: EngineOptions, more: bool) -> dict:
    """Scores of the golden sequences and greedy completions of the golden prompts."""
    with Engine.from_checkpoint(str(GOLDEN), options=options) as engine:
        scored = engine.generate(
            truth("exact").sequences, SamplingParams(max_tokens=1, prompt_logprobs=MAX_LOGPROBS)
        )
        completed = engine.generate(
            [row["prompt"] for row in greedy("greedy_exact")],
            SamplingParams(temperature=0, max_tokens=24, ignore_eos=True),
        )
        return {
            "logprobs": [
                [t.logprob, *t.top_logprobs] for o in scored for t in o.prompt_logprobs[1:]
            ],
            "steered": steered(engine) if more else None,
            "greedy": [o.outputs[0].token_ids for o in completed],
            "provenance": engine.provenance(),
            "rows_used": [r.loop.counters.decode_rows_used for r in engine._replicas],
            "per_layer": exchanges_per_layer(options) if more else None,
        }


def exchanges_per_layer(options: EngineOptions) -> dict[str, int]:
    """What one layer more adds to the exchanges in the compiled decode step."""
    numerics = MODES[options.numerics]
    counts = []
    for layers in (1, 2):
        config = dataclasses.replace(open_checkpoint(str(GOLDEN)).config, num_layers=layers)
        mesh = make_mesh(options.devices, config, jax.devices())
        machine = Machine(platform="cpu", devices=mesh.size, cache_bytes=1 << 26)
        shapes = choose_shapes(config, options, machine)
        weights = layout.choose_layout("cpu", numerics)
        plan = Plan(config, numerics, weights, shapes, mesh, options.collectives == "ordered")
        counts.append(hlo.collectives(steps(plan)["decode"].lower(mesh).compile().as_text()))
    return dict(counts[1] - counts[0])


if __name__ == "__main__":
    more = "all" in sys.argv[2:]
    print(json.dumps([answers(EngineOptions(**given), more) for given in json.loads(sys.argv[1])]))
