"""What engines on several virtual CPU devices say; run as a program: devices are counted once.

Arguments: a JSON list of engine options; ``all`` for answers whose parameters and searches have
steps of their own, and for what is exchanged; and ``tpu`` for weights as a TPU holds them, integers
with scales in stacks. Prints a JSON list of answers, in order.
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


def answers(options: EngineOptions, more: bool, held_as: str) -> dict:
    """Scores of the golden sequences and greedy completions of the golden prompts."""
    weights = layout.choose_layout(held_as, MODES[options.numerics])
    own = None if held_as == "cpu" else weights
    with Engine.from_checkpoint(str(GOLDEN), options=options, layout=own) as engine:
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
            "per_layer": exchanges_per_layer(options, weights) if more else None,
        }


def exchanges_per_layer(options: EngineOptions, weights: layout.Layout) -> dict[str, int]:
    """What one layer more adds to the exchanges in the compiled decode step.

    Of layers in stacks it is what the loop over them has.
    """
    numerics = MODES[options.numerics]
    counts = []
    for layers in (1, 2):
        config = dataclasses.replace(open_checkpoint(str(GOLDEN)).config, num_layers=layers)
        mesh = make_mesh(options.devices, config, jax.devices())
        machine = Machine(platform="cpu", devices=mesh.size, cache_bytes=1 << 26)
        shapes = choose_shapes(config, options, machine)
        ordered, quantized = options.collectives == "ordered", options.kv_cache_dtype == "int8"
        plan = Plan(config, numerics, weights, shapes, mesh, ordered, quantized)
        text = steps(plan)["decode"].lower(mesh).compile().as_text()
        if weights.stacked:
            return dict(hlo.layer_collectives(text))
        counts.append(hlo.collectives(text))
    return dict(counts[1] - counts[0])


if __name__ == "__main__":
    more, held_as = "all" in sys.argv[2:], "tpu" if "tpu" in sys.argv[2:] else "cpu"
    asked = [EngineOptions(**given) for given in json.loads(sys.argv[1])]
    print(json.dumps([answers(options, more, held_as) for options in asked]))
