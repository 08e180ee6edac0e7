"""Kernels for TPUs, in Pallas for Mosaic."""

from model.kernels.tpu import attention, experts

__all__ = ["attention", "experts"]
