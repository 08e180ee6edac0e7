"""Kernels for NVIDIA GPUs, in Pallas for Triton."""

from model.kernels.gpu import attention, experts

__all__ = ["attention", "experts"]
