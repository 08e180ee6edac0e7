"""From a model, options and a mesh to all that decides what is compiled."""

from jax.sharding import Mesh

from model.config import Grok1Config
from model.engine.machine import describe_machine, versions
from model.engine.options import EngineOptions
from model.engine.programs import Plan
from model.engine.shapes import choose_shapes
from model.kernels.accelerator import Kernels
from model.layout import Layout, abstract_params, choose_layout, held_bytes
from model.numerics import MODES


def make_plan(
    config: Grok1Config,
    options: EngineOptions,
    mesh: Mesh,
    layout: Layout | None = None,
    memory: int | None = None,
) -> Plan:
    """The plan of an engine on a mesh whose devices may be present or only described.

    Args:
      config: the model.
      options: settings; what they leave open is chosen for the machine under the mesh.
      mesh: the devices.
      layout: how weights lie in memory; by default the backend's.
      memory: bytes of a device; must be given if it is only described.

    Raises:
      SetupError: the machine cannot hold the model and one longest sequence.
    """
    numerics = MODES[options.numerics]
    layout = layout or choose_layout(mesh.devices.flat[0].platform, numerics)
    nbytes = held_bytes(abstract_params(config, mesh, numerics, layout))
    machine = describe_machine(mesh, nbytes, memory, options.replicas or 1)
    own = options.kernels == "auto" and options.numerics == "bf16" and machine.platform != "cpu"
    return Plan(
        config,
        numerics,
        layout,
        choose_shapes(config, options, machine),
        mesh,
        ordered=options.collectives == "ordered",
        quantized_cache=options.kv_cache_dtype == "int8",
        accelerator=Kernels(machine.platform) if own else None,
    )


def provenance(plan: Plan) -> dict[str, str]:
    """What the bits of a result depend on beside checkpoint and request."""
    shapes = plan.shapes
    return {
        "weights": plan.layout.weights,
        "numerics": plan.numerics.name,
        "collectives": "ordered" if plan.ordered else "psum",
        "kv_cache_dtype": "int8" if plan.quantized_cache else "auto",
        "slots": str(shapes.rows),
        "block_size": str(shapes.block_size),
        "max_context": str(shapes.max_context),
        "kernels": plan.kernels,
        **versions(plan.mesh),
    }
