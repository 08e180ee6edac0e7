"""How weights lie in a backend's memory, and how they get there from a checkpoint."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from model.checkpoint.base import HostTensor
from model.config import Grok1Config
from model.numerics import MODES, Numerics
from model.params import Param, Tensor, declare, tensors
from model.quantization import QuantizedTensor, Weight, dequantize
from model.sharding import scales_spec, weight_spec
from model.transformer import Layer, Params


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


Read = Callable[[Tensor], HostTensor]
"""Reads one tensor of a checkpoint into host memory."""


def load_params(
    read: Read,
    config: Grok1Config,
    mesh: Mesh,
    numerics: Numerics,
    layout: Layout,
    progress: Callable[[int], None] = lambda size: None,
) -> Params:
    """Reads a checkpoint tensor by tensor onto the devices of a mesh.

    Args:
      read: gives a tensor's host arrays, which may be memory maps.
      config: what the tensors were declared for.
      mesh: each of its devices gets its part.
      numerics: the mode; decides what float32 weights become.
      layout: how they lie there.
      progress: told of each tensor's bytes once it has been placed.
    """
    count = config.num_layers
    params: Params = {}
    layers: list[Layer] = [{} for _ in range(1 if layout.stacked else count)]
    for tensor in tensors(config):
        host = read(tensor)
        weight = _place(tensor.param, host, mesh, numerics, layout)
        if tensor.layer is None:
            params[tensor.param.name] = weight
        elif not layout.stacked:
            layers[tensor.layer][tensor.param.name] = weight
        else:
            stack = layers[0].get(tensor.param.name)
            if stack is None:
                stack = jax.tree.map(lambda w: _empty_stack(w, count), weight)
            layers[0][tensor.param.name] = _insert(stack, weight, tensor.layer)
        progress(host.nbytes)
    params["layers"] = layers[0] if layout.stacked else tuple(layers)
    params["head"] = _cast(params["embedding"], numerics.operand)
    return params


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
        groups = _groups(param, mesh.size)
        shape = (*param.shape[:-2], groups, param.shape[-1])
        return QuantizedTensor(
            (lead + param.shape, layout.values), (lead + shape, jnp.dtype(jnp.float32))
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


def _place(
    param: Param,
    host: HostTensor,
    mesh: Mesh,
    numerics: Numerics,
    layout: Layout,
) -> Weight:
    sharding = NamedSharding(mesh, weight_spec(param))
    if host.scales is None:
        return _cast(_put(host.values, sharding), weight_dtype(param, numerics))
    repeat = _groups(param, mesh.size) // host.scales.shape[-2]
    scales = np.repeat(host.scales.astype(np.float32), repeat, axis=-2)
    weight = QuantizedTensor(
        _put(host.values, sharding), _put(scales, NamedSharding(mesh, scales_spec(param)))
    )
    if layout.quantized:
        return QuantizedTensor(_cast(weight.values, layout.values), weight.scales)
    return _dequantize(weight, numerics.name)


def _groups(param: Param, devices: int) -> int:
    """Scale groups as they are held: at least one for each device that holds part of the axis."""
    split = scales_spec(param)[-2] is not None
    return max(param.groups, devices) if split else param.groups


def _put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Each device's part, copied from the host array without a copy of the whole."""
    parts = sharding.addressable_devices_indices_map(array.shape)
    pieces = [
        jax.device_put(np.ascontiguousarray(array[index]), device)
        for device, index in parts.items()
    ]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, pieces)


def _cast(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return x if x.dtype == dtype else x.astype(dtype)


@jax.jit(static_argnums=1)
def _dequantize(weight: QuantizedTensor, mode: str) -> jax.Array:
    return dequantize(weight).astype(MODES[mode].operand)


def _empty_stack(weight: jax.Array, count: int) -> jax.Array:
    spec = jax.sharding.PartitionSpec(None, *weight.sharding.spec)  # type: ignore[attr-defined]
    sharding = NamedSharding(weight.sharding.mesh, spec)  # type: ignore[attr-defined]
    return jnp.zeros((count, *weight.shape), weight.dtype, device=sharding)


@jax.jit(donate_argnums=0)
def _insert(stack: Weight, weight: Weight, index: jax.Array) -> Weight:
    def insert(whole, part):
        return jax.lax.dynamic_update_index_in_dim(whole, part, index, 0)

    return jax.tree.map(insert, stack, weight)
