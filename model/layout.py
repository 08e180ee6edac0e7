"""How weights lie in a backend's memory."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from model.config import Grok1Config
from model.numerics import Numerics
from model.params import MODEL, Param, declare
from model.quantization import QuantizedTensor
from model.sharding import scales_spec, weight_spec
from model.transformer import Params


@dataclasses.dataclass(frozen=True)
class Layout:
    """A backend's choice.

    Attributes:
      stacked: layers as one array each with a leading axis, for a loop; else a tuple of layers.
      quantized: weights stay integers; else they are held as what enters the product.
      values: dtype of integers that stay.
    """

    stacked: bool
    quantized: bool
    values: jnp.dtype


def choose_layout(platform: str, numerics: Numerics) -> Layout:
    """Accelerators keep int8, stacked: memory is what they lack.

    A CPU copies a layer out of a stack before it multiplies, and has no product of bfloat16 with
    int8; there layers stand apart, and integers are held as bfloat16, which is exact, or, where the
    mode multiplies by scales first, as that product.
    """
    if platform != "cpu":
        return Layout(stacked=True, quantized=True, values=jnp.dtype(jnp.int8))
    return Layout(stacked=False, quantized=numerics.name == "bf16", values=jnp.dtype(jnp.bfloat16))


def param_specs(config: Grok1Config, layout: Layout) -> Params:
    """The partition of each weight, as a tree like ``load_params``'s."""

    def spec(param: Param) -> Any:
        lead = (None,) if layout.stacked and param.per_layer else ()
        whole = jax.sharding.PartitionSpec(*lead, *weight_spec(param))
        if not (param.quantized and layout.quantized):
            return whole
        return QuantizedTensor(whole, jax.sharding.PartitionSpec(*lead, *scales_spec(param)))

    declared = declare(config)
    layer = {name: spec(p) for name, p in declared.items() if p.per_layer}
    specs: Params = {name: spec(p) for name, p in declared.items() if not p.per_layer}
    specs["layers"] = layer if layout.stacked else (layer,) * config.num_layers
    specs["head"] = specs["embedding"]
    return specs


def abstract_params(config: Grok1Config, mesh: Mesh, numerics: Numerics, layout: Layout) -> Params:
    """Shapes, dtypes and shardings of all weights, as a tree like ``load_params``'s."""

    def describe(param: Param) -> Any:
        lead = (config.num_layers,) if layout.stacked and param.per_layer else ()
        if not (param.quantized and layout.quantized):
            return lead + param.shape, weight_dtype(param, numerics)
        scales = lead + scales_shape(param, mesh.shape[MODEL])
        return QuantizedTensor(
            (lead + param.shape, layout.values), (scales, jnp.dtype(jnp.float32))
        )

    declared = declare(config)
    layer = {name: describe(p) for name, p in declared.items() if p.per_layer}
    tree: Params = {name: describe(p) for name, p in declared.items() if not p.per_layer}
    tree["layers"] = layer if layout.stacked else (layer,) * config.num_layers
    tree["head"] = (declared["embedding"].shape, numerics.operand)
    return jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(*leaf, sharding=NamedSharding(mesh, spec)),
        tree,
        param_specs(config, layout),
        is_leaf=lambda x: type(x) is tuple and len(x) == 2 and type(x[0]) is tuple,
    )


def weight_dtype(param: Param, numerics: Numerics) -> jnp.dtype:
    """What a weight that is no integer is held as: float32, unless the mode rounds it first."""
    if param.quantized or (param.name == "embedding" and numerics.rounds):
        return numerics.operand
    return jnp.dtype(jnp.float32)


def scales_shape(param: Param, devices: int) -> tuple[int, ...]:
    """[..., G, out] as held: a group at least for each device that has part of the axis."""
    split = scales_spec(param)[-2] is not None
    groups = max(param.groups, devices) if split else param.groups
    return (*param.shape[:-2], groups, param.shape[-1])
