"""Machines that the full model runs on, and the arithmetic of their limits. No JAX.

Peaks are the makers' published ones, dense, without sparsity. ``limit_bytes`` is what a compiler
or driver really leaves to programs, measured by compiling past it.
"""

import dataclasses

from model.config import Grok1Config
from schemas.error import SetupError

_GIB = 1 << 30

GPU_MEMORY_SHARE = 0.95
"""What programs may take of a GPU; the rest is the driver's, the collectives' and the runtime's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachineProfile:
    """One host with its accelerators.

    Attributes:
      name: how ``--machine`` calls it.
      title: for people.
      platform: ``tpu`` or ``gpu``.
      devices: that take part in tensor parallelism.
      limit_bytes: memory of a device, as its driver or compiler counts it.
      bandwidth: bytes a second that a device reads from its memory.
      flops: bfloat16 operations a second of a device, a multiply-add being two.
      topology: what the compiler calls it: a TPU's topology, or a GPU's device kind.
    """

    name: str
    title: str
    platform: str
    devices: int
    limit_bytes: int
    bandwidth: float
    flops: float
    topology: str

    @property
    def usable_bytes(self) -> int:
        """What programs may fill of a device's memory."""
        share = GPU_MEMORY_SHARE if self.platform == "gpu" else 1.0
        return int(self.limit_bytes * share)


def _tpu(
    name: str, title: str, devices: int, gib: float, bandwidth: float, flops: float, topology: str
) -> MachineProfile:
    return MachineProfile(
        name=name,
        title=title,
        platform="tpu",
        devices=devices,
        limit_bytes=int(gib * _GIB),
        bandwidth=bandwidth,
        flops=flops,
        topology=topology,
    )


def _gpu(
    name: str, title: str, limit: int, bandwidth: float, flops: float, kind: str
) -> MachineProfile:
    return MachineProfile(
        name=name,
        title=title,
        platform="gpu",
        devices=8,
        limit_bytes=limit,
        bandwidth=bandwidth,
        flops=flops,
        topology=kind,
    )


MACHINES: dict[str, MachineProfile] = {
    machine.name: machine
    for machine in (
        _tpu("v5p-4", "TPU v5p, 4 chips", 4, 95.74, 2.765e12, 459e12, "v5p:2x2x1"),
        _tpu("v6e-8", "TPU v6e, 8 chips", 8, 31.25, 1.640e12, 918e12, "v6e:2x4"),
        _tpu("v5e-8", "TPU v5e, 8 chips", 8, 15.75, 0.819e12, 197e12, "v5e:2x4"),
        _gpu(
            "h100x8",
            "8 × NVIDIA H100 80 GB",
            84929347584,
            3.352e12,
            989e12,
            "NVIDIA H100 80GB HBM3",
        ),
        _gpu("h200x8", "8 × NVIDIA H200", 150754820096, 4.800e12, 989e12, "NVIDIA H200"),
        _gpu(
            "a100x8",
            "8 × NVIDIA A100 80 GB",
            85095874560,
            2.039e12,
            312e12,
            "NVIDIA A100-SXM4-80GB",
        ),
    )
}
"""By name."""

WEIGHTS = ("int8", "int4")
"""Kinds that a machine can be asked about; what their bytes are stands in ``_BYTES``."""

_BYTES = {"int8": (1.0, 1.0), "int4": (0.5, 1.0), "bf16": (2.0, 2.0)}
"""Of a weight of an expert, and of attention, by kind."""


def find_machine(name: str) -> MachineProfile:
    """The machine of a name.

    Raises:
      SetupError: there is none.
    """
    if name not in MACHINES:
        raise SetupError(f"--machine {name}: not known; one of {', '.join(MACHINES)}")
    return MACHINES[name]


def weight_bytes(config: Grok1Config, weights: str) -> int:
    """Bytes of all weights over all devices, as a decode step reads them: scales left out.

    The embedding is bfloat16, norms and router float32, whatever the others' kind.
    """
    c = config
    of_expert, of_attention = _BYTES[weights]
    experts = 3 * c.num_experts * c.emb_size * c.ffn_size
    attention = 2 * c.emb_size * c.key_size * (c.num_q_heads + c.num_kv_heads)
    small = 4 * c.emb_size * (c.num_experts + 4)
    layer = int(experts * of_expert + attention * of_attention) + small
    return c.num_layers * layer + 2 * c.vocab_size * c.emb_size


def cache_bytes_per_token(config: Grok1Config, bytes_each: float = 2) -> float:
    """Bytes of one token's keys and values in all layers, over all devices."""
    return 2 * config.num_layers * config.num_kv_heads * config.key_size * bytes_each


def decode_floor(
    machine: MachineProfile,
    config: Grok1Config,
    *,
    slots: int,
    context: float,
    weights: str = "int8",
    cache_bytes: float = 2,
) -> float:
    """Tokens a second that no decode step can exceed: it reads all weights and the cache once.

    Args:
      machine: the machine.
      config: the model.
      slots: B, sequences a step.
      context: cached tokens of a sequence, on average.
      weights: ``int8`` or ``int4``.
      cache_bytes: bytes of a number in the cache.
    """
    read = float(weight_bytes(config, weights))
    read += slots * context * cache_bytes_per_token(config, cache_bytes)
    seconds = max(
        read / (machine.devices * machine.bandwidth),
        slots / prefill_floor(machine, config),
    )
    return slots / seconds


def prefill_floor(machine: MachineProfile, config: Grok1Config) -> float:
    """Prompt tokens a second at the full rate of products."""
    return machine.devices * machine.flops / (2 * config.active_params)
