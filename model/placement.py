"""How weights get from a checkpoint onto the devices."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model.checkpoint.base import HostTensor, ReadParts
from model.config import Grok1Config
from model.kernels.cpu import large_pages
from model.kernels.cpu.products import PackedTensor, pack
from model.layout import Layout, scales_dtype, scales_shape, weight_dtype
from model.numerics import MODES, Numerics
from model.params import MODEL, Param, Tensor, tensors
from model.quantization import QuantizedTensor, Weight, dequantize
from model.sharding import replica_meshes, scales_spec, weight_spec
from model.transformer import Layer, Params

_BYTES_IN_FLIGHT = 4 << 30
"""Host memory for tensors that are read and not yet placed; one larger tensor may exceed it."""

_READERS = 4
"""Tensors read at once; each is read by several requests."""


def load_params(
    read_parts: ReadParts,
    config: Grok1Config,
    mesh: Mesh,
    numerics: Numerics,
    layout: Layout,
    progress: Callable[[int], None] = lambda size: None,
) -> Params:
    """Reads a checkpoint onto the devices of a mesh, each device's part straight to its place.

    Several tensors are read at once, while others are on their way to the devices.

    Args:
      read_parts: reads host arrays; called by several threads.
      config: what the tensors were declared for.
      mesh: each of its devices gets its part; those of all replicas are placed as they are read.
      numerics: the mode; decides what float32 weights become.
      layout: how they lie there.
      progress: told of each tensor's bytes once it has been placed.
    """
    count = config.num_layers
    params: Params = {}
    layers: list[Layer] = [{} for _ in range(1 if layout.stacked else count)]
    order = tensors(config, layout.weights)
    for tensor, parts in read_ahead(read_parts, order, mesh.shape[MODEL]):
        name = tensor.param.name
        weight = _place(tensor.param, parts, mesh, numerics, layout)
        if tensor.layer is None:
            params[name] = weight
        elif not layout.stacked:
            layers[tensor.layer][name] = weight
        else:
            stack = layers[0].get(name)
            if stack is None:
                stack = jax.tree.map(lambda w: _empty_stack(w, count), weight)
            weight = layers[0][name] = _insert(stack, weight, tensor.layer)
        jax.block_until_ready(weight)  # until then the host arrays are still in use
        progress(sum(part.nbytes for part in parts))
    params["layers"] = layers[0] if layout.stacked else tuple(layers)
    params["head"] = _cast(params["embedding"], numerics.operand)
    if layout.packed:
        params["head"] = _pack(params["head"].T)
    return jax.block_until_ready(params)


def split_replicas(params: Params, grid: Mesh) -> list[Params]:
    """What each replica of a grid holds of weights that were loaded onto all, nothing copied."""

    def part_of(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
        devices = set(mesh.devices.flat)

        def part(array: jax.Array) -> jax.Array:
            pieces = [s.data for s in array.addressable_shards if s.device in devices]
            sharding = NamedSharding(mesh, array.sharding.spec)  # type: ignore[attr-defined]
            return jax.make_array_from_single_device_arrays(array.shape, sharding, pieces)

        return part

    return [jax.tree.map(part_of(mesh), params) for mesh in replica_meshes(grid)]


def read_ahead(
    read_parts: ReadParts, order: Sequence[Tensor], count: int
) -> Iterator[tuple[Tensor, list[HostTensor]]]:
    """Tensors in order with their parts, of which at most ``_BYTES_IN_FLIGHT`` are in memory."""
    waiting: deque[tuple[Tensor, Future[list[HostTensor]]]] = deque()
    held = 0
    with ThreadPoolExecutor(_READERS, thread_name_prefix="grok1-load") as pool:
        try:
            for tensor in order:
                size = _host_bytes(tensor.param)
                while waiting and (held + size > _BYTES_IN_FLIGHT or waiting[0][1].done()):
                    first, future = waiting.popleft()
                    yield first, future.result()
                    del future
                    held -= _host_bytes(first.param)
                waiting.append((tensor, pool.submit(_read_all, read_parts, tensor, count)))
                held += size
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
                del future
        finally:
            pool.shutdown(cancel_futures=True)


def _read_all(read_parts: ReadParts, tensor: Tensor, count: int) -> list[HostTensor]:
    return list(read_parts(tensor, count))


def _host_bytes(param: Param) -> int:
    width = {"float32": 4, "bfloat16": 2}.get(param.stored, 1)
    return math.prod(param.shape) * width


def _place(
    param: Param,
    parts: Sequence[HostTensor],
    mesh: Mesh,
    numerics: Numerics,
    layout: Layout,
) -> Weight | PackedTensor:
    axis = param.split_axis
    values = _put([part.values for part in parts], axis, param.shape, mesh, weight_spec(param))
    if not param.quantized:
        return _cast(values, weight_dtype(param, numerics))
    shape = scales_shape(param, mesh.shape[MODEL])
    dtype, integers = scales_dtype(param), layout.integers(param)
    scales = [part.scales.astype(dtype) for part in parts if part.scales is not None]
    weight = QuantizedTensor(values, _put(scales, axis, shape, mesh, scales_spec(param)))
    if integers is None:
        dense = _dequantize(weight, numerics.name)
        return _pack(dense) if layout.packed else dense
    if layout.packed:
        return _pack(weight.values, weight.scales)
    return QuantizedTensor(_cast(weight.values, integers), weight.scales)


def _pack(values: jax.Array, scales: jax.Array | None = None) -> PackedTensor:
    weight = pack(values, scales)
    large_pages.collapse(weight)
    return weight


def _put(
    parts: Sequence[np.ndarray],
    axis: int | None,
    shape: tuple[int, ...],
    mesh: Mesh,
    spec: PartitionSpec,
) -> jax.Array:
    """One array of the parts that devices hold; more devices than parts hold the same."""
    sharding = NamedSharding(mesh, spec)

    def part_of(index: tuple[slice, ...] | None) -> np.ndarray:
        if axis is None or index is None:
            return parts[0]
        return parts[(index[axis].start or 0) * len(parts) // shape[axis]]

    pieces = [
        jax.device_put(part_of(index), device)
        for device, index in sharding.addressable_devices_indices_map(shape).items()
    ]
    return jax.make_array_from_single_device_arrays(shape, sharding, pieces)


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
