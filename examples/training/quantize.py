"""From float32 weights to the release's layout: int8, one bfloat16 scale a column and group."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from examples.training.network import Params
from model.checkpoint.base import HostTensor
from model.checkpoint.pickle_write import ArraySource
from model.checkpoint.release_write import write_release
from model.checkpoint.source import open_checkpoint
from model.config import Grok1Config
from model.params import Param, Tensor, tensors
from model.quantization import QuantizedTensor, dequantize

_LARGEST = 127


def quantize(weight: np.ndarray, param: Param) -> HostTensor:
    """Each column of each scale group, its largest number to 127: [..., in, out] float32 to int8.

    The scale is rounded to bfloat16 before it divides, so that int8 x scale is as near to the
    weight as it can be.
    """
    *lead, rows, out = weight.shape
    grouped = weight.reshape(*lead, param.groups, rows // param.groups, out)
    largest = np.abs(grouped).max(-2, keepdims=True)
    scales = (largest / _LARGEST).astype(ml_dtypes.bfloat16)
    divisor = np.where(scales == 0, 1, scales).astype(np.float32)
    values = np.clip(np.rint(grouped / divisor), -_LARGEST, _LARGEST).astype(np.int8)
    return HostTensor(values.reshape(weight.shape), scales.reshape(param.scales_shape))


def write_checkpoint(url: str, params: Params, config: Grok1Config, tokenizer: bytes) -> None:
    """Writes weights in the release's layout, in place of a checkpoint that is there.

    Raises:
      SetupError: the folder cannot be written.
    """

    def arrays(_: int, tensor: Tensor) -> tuple[ArraySource, ArraySource | None]:
        tree = params if tensor.layer is None else params["layers"]
        weight = np.asarray(tree[tensor.param.name])
        weight = weight if tensor.layer is None else weight[tensor.layer]
        if not tensor.param.quantized:
            return ArraySource.of(weight), None
        host = quantize(weight, tensor.param)
        assert host.scales is not None
        return ArraySource.of(host.values), ArraySource.of(host.scales)

    write_release(url, config, arrays, tokenizer=tokenizer, overwrite=True)


def read_checkpoint(url: str) -> tuple[Params, Grok1Config]:
    """The float32 weights that a small checkpoint stands for, and its config.

    Raises:
      SetupError: there is none, or it cannot be read.
    """
    checkpoint = open_checkpoint(url)
    params: Params = {"layers": {}}
    layers: dict[str, list[jax.Array]] = {}
    for tensor in tensors(checkpoint.config):
        host = checkpoint.read(tensor)
        weight = jnp.asarray(host.values)
        if host.scales is not None:
            scales = jnp.asarray(host.scales, jnp.float32)
            weight = dequantize(QuantizedTensor(weight, scales))
        if tensor.layer is None:
            params[tensor.param.name] = weight
        else:
            layers.setdefault(tensor.param.name, []).append(weight)
    params["layers"] = {name: jnp.stack(weights) for name, weights in layers.items()}
    return params, checkpoint.config
