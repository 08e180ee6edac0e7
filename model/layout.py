"""How weights lie in a backend's memory."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model.config import Grok1Config
from model.engine.options import EngineOptions
from model.kernels.cpu import build, layer, products
from model.kernels.cpu.products import PackedTensor
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
      values: dtype of 8-bit integers that stay.
      weights: what the checkpoint stores, one of ``params.WEIGHTS``.
      packed: weights of products lie in the order in which the CPU kernels read them.
    """

    stacked: bool
    quantized: bool
    values: jnp.dtype
    weights: str = "int8"
    packed: bool = False

    def integers(self, param: Param) -> jnp.dtype | None:
        """What a weight's integers are held as; None if it is held as what enters the product.

        4-bit integers times their scales are exact in bfloat16, so that where 8-bit ones are held
        as bfloat16 nothing is gained by keeping the two apart.
        """
        if not (param.quantized and self.quantized):
            return None
        if param.stored == "int4":
            return jnp.dtype(jnp.int4) if self.values == jnp.int8 else None
        return self.values

    def cached(self, operand: jnp.dtype) -> jnp.dtype:
        """What keys and values of a mode are held as; see ``PagedCache``."""
        bits = not self.stacked and operand == jnp.bfloat16
        return jnp.dtype(jnp.uint16) if bits else jnp.dtype(operand)


def choose_layout(
    platform: str, numerics: Numerics, weights: str = "int8", packed: bool = False
) -> Layout:
    """Accelerators keep integers, stacked: memory is what they lack.

    A CPU copies a layer out of a stack before it multiplies, and has no product of bfloat16 with
    int8; there layers stand apart, and integers are held as bfloat16, which is exact, or, where the
    mode multiplies by scales first, as that product; ``packed`` if ``kernels_fit``.
    """
    if platform != "cpu":
        return Layout(True, quantized=True, values=jnp.dtype(jnp.int8), weights=weights)
    held = jnp.dtype(jnp.bfloat16)
    fast = numerics.name == "bf16"
    return Layout(False, quantized=fast, values=held, weights=weights, packed=packed and fast)


def kernels_fit(config: Grok1Config, options: EngineOptions, mesh: Mesh) -> bool:
    """Whether the CPU kernels can be used: they know the ``bf16`` mode alone, and one device."""
    return (
        options.kernels == "auto"
        and options.numerics == "bf16"
        and options.kv_cache_dtype == "auto"
        and mesh.size == 1
        and mesh.devices.flat[0].platform == "cpu"
        and products.packable(config)
        and layer.fits(config, options.block_size)
        and build.load()
    )


def param_specs(config: Grok1Config, layout: Layout) -> Params:
    """The partition of each weight, as a tree like ``load_params``'s."""

    def spec(param: Param) -> Any:
        lead = (None,) if layout.stacked and param.per_layer else ()
        whole = PartitionSpec(*lead, *weight_spec(param))
        if layout.packed and param.quantized:
            return PackedTensor(PartitionSpec(), PartitionSpec())
        if layout.integers(param) is None:
            return whole
        return QuantizedTensor(whole, PartitionSpec(*lead, *scales_spec(param)))

    declared = declare(config, layout.weights)
    layer = {name: spec(p) for name, p in declared.items() if p.per_layer}
    specs: Params = {name: spec(p) for name, p in declared.items() if not p.per_layer}
    specs["layers"] = layer if layout.stacked else (layer,) * config.num_layers
    specs["head"] = specs["embedding"]
    if layout.packed:
        specs["head"] = PackedTensor(PartitionSpec(), PartitionSpec())
    return specs


def abstract_params(config: Grok1Config, mesh: Mesh, numerics: Numerics, layout: Layout) -> Params:
    """Shapes, dtypes and shardings of all weights, as a tree like ``load_params``'s."""

    def describe(param: Param) -> Any:
        lead = (config.num_layers,) if layout.stacked and param.per_layer else ()
        integers = layout.integers(param)
        if layout.packed and param.quantized:
            return _packed(param.shape, 1 if integers is None else param.groups)
        if integers is None:
            return lead + param.shape, weight_dtype(param, numerics)
        scales = lead + scales_shape(param, mesh.shape[MODEL])
        return QuantizedTensor((lead + param.shape, integers), (scales, scales_dtype(param)))

    declared = declare(config, layout.weights)
    layer = {name: describe(p) for name, p in declared.items() if p.per_layer}
    tree: Params = {name: describe(p) for name, p in declared.items() if not p.per_layer}
    tree["layers"] = layer if layout.stacked else (layer,) * config.num_layers
    tree["head"] = (declared["embedding"].shape, numerics.operand)
    if layout.packed:
        tree["head"] = _packed((config.emb_size, config.vocab_size), 1)
    return jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(*leaf, sharding=NamedSharding(mesh, spec)),
        tree,
        param_specs(config, layout),
        is_leaf=lambda x: type(x) is tuple and len(x) == 2 and type(x[0]) is tuple,
    )


def _packed(shape: tuple[int, ...], groups: int) -> PackedTensor:
    values, scales = products.packed_shapes(shape, groups)
    return PackedTensor((values, jnp.dtype(jnp.bfloat16)), (scales, jnp.dtype(jnp.float32)))


def weight_dtype(param: Param, numerics: Numerics) -> jnp.dtype:
    """What a weight that is no integer is held as: float32, unless the mode rounds it first."""
    if param.stored != "float32" or (param.name == "embedding" and numerics.rounds):
        return numerics.operand
    return jnp.dtype(jnp.float32)


def scales_dtype(param: Param) -> jnp.dtype:
    """What scales are held as: bfloat16 as they are stored, where there are many of them."""
    return jnp.dtype(jnp.bfloat16 if param.stored == "int4" else jnp.float32)


def held_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, present or only described; 4-bit ones lie two to a byte."""

    def size(leaf: Any) -> int:
        return leaf.size // 2 if leaf.dtype == jnp.int4 else leaf.size * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def scales_shape(param: Param, devices: int) -> tuple[int, ...]:
    """[..., G, out] as held: a group at least for each device that has part of the axis."""
    split = scales_spec(param)[-2] is not None
    groups = max(param.groups, devices) if split else param.groups
    return (*param.shape[:-2], groups, param.shape[-1])
