"""Every weight of the network, declared once: name, shape, logical axes, precision.

Checkpoint readers, sharding rules, quantisation and ``synth`` all derive from this table. It needs
no JAX, so that a machine without one can tell whether a checkpoint is complete.
"""

import dataclasses

from model.config import Grok1Config

MODEL = "model"
"""The mesh axis of tensor parallelism."""

DATA = "data"
"""The mesh axis of replicas: each holds all of the model, so that no weight is split over it."""

RULES: dict[str | None, str | None] = {
    "vocab": MODEL,
    "heads": MODEL,
    "kv_heads": MODEL,
    "ffn": MODEL,
    "experts": None,
    "embed": None,
    None: None,
}
"""Logical axis of a weight -> mesh axis that it is split over; None: each device has a copy."""

WEIGHTS = ("int8", "int4", "bf16")
"""What the matrices are stored as: ``int8`` as released; ``int4``: the experts' in 4 bits, with a
scale for each ``INT4_GROUP`` rows, the others as released; ``bf16``: numbers."""

INT4_GROUP = 64
"""Most rows of the contracted axis that share a 4-bit weight's scale."""


@dataclasses.dataclass(frozen=True)
class Param:
    """One weight.

    Attributes:
      name: its name in the parameter tree.
      release_name: its name in the release, within the layer if ``per_layer``.
      shape: [..., in, out] for matrices; [E, in, out] for experts'.
      axes: the logical axis of each dimension, looked up in ``RULES``.
      stored: what a checkpoint holds: ``float32``, ``bfloat16``, or ``int8`` or ``int4`` with
        bfloat16 scales.
      groups: G, the scale groups along the contracted (second to last) axis, if quantised.
      per_layer: whether each layer has its own.
    """

    name: str
    release_name: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    stored: str = "float32"
    groups: int = 1
    per_layer: bool = True

    @property
    def quantized(self) -> bool:
        """Whether it is small integers with scales."""
        return self.stored in ("int8", "int4")

    @property
    def scales_shape(self) -> tuple[int, ...]:
        """[..., G, out]: shape of the scales beside a quantised weight."""
        return (*self.shape[:-2], self.groups, self.shape[-1])

    @property
    def split_axis(self) -> int | None:
        """The axis that tensor parallelism splits, or None: each device has all of it."""
        split = [i for i, axis in enumerate(self.axes) if RULES[axis] == MODEL]
        return split[0] if split else None

    def part(self, count: int) -> "Param":
        """What one device of ``count`` holds: the weight itself where it is not split.

        Where more devices than scale groups share the contracted axis, each has one group.
        """
        axis = self.split_axis
        if axis is None or count == 1:
            return self
        shape = list(self.shape)
        shape[axis] //= count
        contracted = axis == len(shape) - 2
        groups = max(1, self.groups // count) if contracted else self.groups
        return dataclasses.replace(self, shape=tuple(shape), groups=groups)


def declare(config: Grok1Config, weights: str = "int8") -> dict[str, Param]:
    """All weights by name; ``linear`` is the gate, ``linear_v`` up, ``linear_1`` down.

    Args:
      config: the model's sizes.
      weights: one of ``WEIGHTS``.
    """
    return {param.name: _stored_as(weights, param) for param in _declare(config)}


def _stored_as(weights: str, param: Param) -> Param:
    if weights == "bf16" and param.quantized:
        return dataclasses.replace(param, stored="bfloat16", groups=1)
    if weights == "int4" and "experts" in param.axes:
        rows = param.shape[-2] // param.groups
        return dataclasses.replace(
            param, stored="int4", groups=param.groups * (rows // int4_group(rows))
        )
    return param


def int4_group(rows: int) -> int:
    """Rows that share a 4-bit weight's scale: the most that divide an int8 scale group's rows."""
    return next(size for size in range(min(INT4_GROUP, rows), 0, -1) if rows % size == 0)


def _declare(config: Grok1Config) -> list[Param]:
    c = config
    d, f, e = c.emb_size, c.ffn_size, c.num_experts
    q, kv = c.num_q_heads * c.key_size, c.num_kv_heads * c.key_size
    g = c.model_shards
    mha = "multi_head_attention"
    return [
        Param(
            "embedding",
            "language_model/in_out_embed/embeddings",
            (c.vocab_size, d),
            ("vocab", "embed"),
            per_layer=False,
        ),
        Param("final_norm", "language_model/rms_norm/scale", (d,), ("embed",), per_layer=False),
        Param("attn_norm", "rms_norm/scale", (d,), ("embed",)),
        Param("query", f"{mha}/query/w", (d, q), ("embed", "heads"), stored="int8"),
        Param("key", f"{mha}/key/w", (d, kv), ("embed", "kv_heads"), stored="int8"),
        Param("value", f"{mha}/value/w", (d, kv), ("embed", "kv_heads"), stored="int8"),
        Param("attn_out", f"{mha}/linear/w", (q, d), ("heads", "embed"), stored="int8", groups=g),
        Param("attn_post_norm", "rms_norm_1/scale", (d,), ("embed",)),
        Param("moe_norm", "rms_norm_2/scale", (d,), ("embed",)),
        Param("router", "router/w", (d, e), ("embed", None)),
        Param("gate", "moe/linear/w", (e, d, f), ("experts", "embed", "ffn"), stored="int8"),
        Param("up", "moe/linear_v/w", (e, d, f), ("experts", "embed", "ffn"), stored="int8"),
        Param(
            "down",
            "moe/linear_1/w",
            (e, f, d),
            ("experts", "ffn", "embed"),
            stored="int8",
            groups=g,
        ),
        Param("moe_post_norm", "rms_norm_3/scale", (d,), ("embed",)),
    ]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint: a parameter, of one layer where each layer has its own.

    Attributes:
      param: its declaration.
      layer: the layer, or None for a weight of the whole model.
    """

    param: Param
    layer: int | None

    @property
    def release_name(self) -> str:
        """Its full name in the release."""
        if self.layer is None:
            return f"params/{self.param.release_name}"
        return f"params/transformer/decoder_layer_{self.layer}/{self.param.release_name}"

    @property
    def label(self) -> str:
        """How messages and files of ours call it."""
        return self.param.name if self.layer is None else f"layers.{self.layer}.{self.param.name}"


def tensors(config: Grok1Config, weights: str = "int8") -> list[Tensor]:
    """All tensors of a checkpoint, the model's own first, then layer by layer."""
    params = declare(config, weights).values()
    whole = [Tensor(p, None) for p in params if not p.per_layer]
    layers = [Tensor(p, i) for i in range(config.num_layers) for p in params if p.per_layer]
    return whole + layers


def indivisible(config: Grok1Config, count: int) -> str:
    """The sizes that this number of devices does not divide, for a message; empty if all do."""
    sizes = {
        "num_kv_heads": config.num_kv_heads,
        "ffn_size": config.ffn_size,
        "vocab_size": config.vocab_size,
    }
    unfit = [f"{name}={size}" for name, size in sizes.items() if size % count]
    groups = config.model_shards
    if max(groups, count) % min(groups, count):
        unfit.append(f"model_shards={groups}")
    return ", ".join(unfit)
