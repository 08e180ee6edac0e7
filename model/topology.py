"""Compiles the engine's steps for a machine that is not here, and tells what that took.

Run as a program, in a process of its own, by ``model.fit``: a question as JSON on standard input,
the answer as JSON on standard output. ``fit`` sets the environment that it needs.
"""

import json
import re
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from model.config import Grok1Config
from model.engine.options import EngineOptions
from model.engine.plan import make_plan
from model.engine.programs import Plan, Step, abstract_cache, steps
from model.hlo import collectives, float_matrices, held, kernels_on, layer_collectives
from model.layout import abstract_params, choose_layout, held_bytes
from model.machines import MachineProfile, find_machine
from model.numerics import MODES
from model.quantization import QuantizedTensor
from model.sharding import make_mesh
from model.transformer import Params

_NEEDED = re.compile(r"(?:Used |temporaries \()([\d.]+)([MG])")
"""In the compiler's words when memory does not suffice, what would."""

_UNITS = {"M": 1 << 20, "G": 1 << 30}

_HOPPER = {
    "cores": 132,
    "fpus_per_core": 128,
    "shared_memory_per_core": 233472,
    "shared_memory_per_block": 232448,
    "l2_cache": 52428800,
    "clock_ghz": 1.98,
    "major": 9,
    "minor": 0,
}
_AMPERE = {
    "cores": 108,
    "fpus_per_core": 64,
    "shared_memory_per_core": 167936,
    "shared_memory_per_block": 166912,
    "l2_cache": 41943040,
    "clock_ghz": 1.41,
    "major": 8,
    "minor": 0,
}
_GPUS = {
    "NVIDIA H100 80GB HBM3": _HOPPER,
    "NVIDIA H200": _HOPPER,
    "NVIDIA A100-SXM4-80GB": _AMPERE,
}
"""What the compiler asks of a GPU, by device kind."""

_GPU_TARGET = """\
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: {shared_memory_per_core}
  shared_memory_per_block_optin: {shared_memory_per_block}
  threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {fpus_per_core}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {memory_bandwidth} l2_cache_size: {l2_cache} clock_rate_ghz: {clock_ghz}
  device_memory_size: {device_memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 minor: 0 }}
device_description_str: "{name}"
"""


def described_devices(machine: MachineProfile) -> list[jax.Device]:
    """The machine's devices as the compiler knows them; nothing can run on them."""
    if machine.platform == "tpu":
        found = topologies.get_topology_desc(platform="tpu", topology_name=machine.topology)
    else:
        target = _GPU_TARGET.format(
            **_GPUS[machine.topology],
            name=machine.topology,
            memory_bandwidth=int(machine.bandwidth),
            device_memory=machine.limit_bytes,
        )
        found = topologies.get_topology_desc(
            platform="cuda", target_config=target, topology=f"1x1x{machine.devices}"
        )
    return list(found.devices)


def plan_for(
    machine: MachineProfile, config: Grok1Config, options: EngineOptions, weights: str
) -> Plan:
    """The plan of an engine on a machine that is only described."""
    mesh = make_mesh(machine.devices, config, described_devices(machine))
    layout = choose_layout(machine.platform, MODES[options.numerics], weights)
    return make_plan(config, options, mesh, layout, machine.usable_bytes)


def answer(
    machine: MachineProfile,
    config: Grok1Config,
    options: EngineOptions,
    weights: str,
    names: list[str] | None,
) -> dict[str, Any]:
    """Compiles the steps of these names, or all that serve; sizes are bytes of one device."""
    plan = plan_for(machine, config, options, weights)
    params = abstract_params(plan.config, plan.mesh, plan.numerics, plan.layout)
    made = steps(plan)
    slots = made["decode"].arguments[2:]
    return {
        "weights_bytes": _bytes(params),
        "cache_bytes": _bytes(abstract_cache(plan)),
        "slots_bytes": _bytes(slots),
        "steps": {name: compile_step(made[name], plan, params) for name in names or made},
    }


def compile_step(step: Step, plan: Plan, params: Params) -> dict[str, Any]:
    """What the compiler says of one step; it may refuse one that memory does not suffice for.

    Args:
      step: which.
      plan: of an engine on the devices that it is for.
      params: shapes of the weights there; floating-point arrays of those that are integers are
        counted, which these would have been widened into.
    """
    started = time.perf_counter()
    try:
        compiled = step.lower(plan.mesh).compile()
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        found = _NEEDED.search(str(error))
        needed = int(float(found[1]) * _UNITS[found[2]]) if found else 0
        return {"refused": True, "peak_bytes": needed, "seconds": time.perf_counter() - started}
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None
    assert text is not None
    return {
        "refused": False,
        "peak_bytes": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        "temporaries_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "collectives": dict(collectives(text)),
        "layer_collectives": dict(layer_collectives(text)),
        "kernels": _kernels(text, plan, params),
        "widened": _widened(text, plan, params),
        "seconds": time.perf_counter() - started,
    }


def _kernels(text: str, plan: Plan, params: Params) -> dict[str, int]:
    """Calls of our kernels: those that read the cache, and those that read an expert's weights."""
    layers = params["layers"]
    on = {"attention": abstract_cache(plan).keys, "gate": layers["gate"], "down": layers["down"]}
    found = {}
    for name, weight in on.items():
        values = jax.tree.leaves(weight)[0]
        *lead, columns = _part(values)
        found[name] = kernels_on(text, (*lead, columns))
        if values.dtype == jnp.int4:  # a GPU's kernel reads them as bytes, two to each
            found[name] += kernels_on(text, (*lead, columns // 2))
    return found


def _widened(text: str, plan: Plan, params: Params) -> dict[str, int]:
    """Floating-point arrays of the shape of a weight that is kept as integers.

    Kernels read the experts', so that of them none is right, not even within a fusion. Products
    with the others widen what they have read, and there only arrays in memory count.
    """
    layers = params["layers"]
    weights = {name: w for name, w in layers.items() if isinstance(w, QuantizedTensor)}
    in_memory, found = held(text), {}
    for name, weight in weights.items():
        part = _part(weight.values)[1:]
        shown = text if len(part) == 3 else in_memory
        found[name] = float_matrices(shown, part, _part(weight.scales)[-2])
    if plan.mesh.devices.flat[0].platform == "gpu" and {"query", "key", "value"} <= set(found):
        # Its compiler has one product with all three.
        rows, _ = _part(layers["query"].values)[1:]
        out = sum(_part(layers[name].values)[-1] for name in ("query", "key", "value"))
        found["query, key, value"] = float_matrices(in_memory, (rows, out))
    return found


def _part(leaf: Any) -> tuple[int, ...]:
    """Shape of one device's part of an array."""
    return leaf.sharding.shard_shape(leaf.shape)


def _bytes(tree: Any) -> int:
    """Bytes of one device's part of a tree of shapes."""

    def part(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(_part(leaf), leaf.dtype)

    return held_bytes(jax.tree.map(part, tree))


def _main() -> None:
    question = json.load(sys.stdin)
    found = answer(
        find_machine(question["machine"]),
        Grok1Config(**question["config"]),
        EngineOptions(**question["options"]),
        question["weights"],
        question["steps"],
    )
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    _main()
