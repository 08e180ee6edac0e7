"""Writes a random checkpoint of any config in the release's layout, so that anyone can rehearse.

Tensor by tensor, each streamed: memory stays at a few chunks, whatever the model's size.
"""

import math
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np

from model.checkpoint.pickle_write import ArraySource
from model.checkpoint.release_write import write_release
from model.config import Grok1Config
from model.params import Param, Tensor

_CHUNK_BYTES = 1 << 20
_INT8_STD = 127 / math.sqrt(3)
"""Of numbers uniform in [-127, 127]."""

_JITTER = 0.25
"""Scales and norms differ this much from their mean, so that a mixed-up group, layer or norm shows
in the logits."""

_GAIN = 1.5
"""Spread of a projection of normed activations; at 1 attention would look at all alike."""

_LOGIT_STD = 2.5
_SELF_LOGIT = 1.0
"""How far a token's own logit stands out of the others, in their standard deviations: embeddings
are tied, so that a larger one would make the model repeat its last token for ever."""


def synthesize(
    url: str,
    config: Grok1Config,
    seed: int = 0,
    *,
    tokenizer: str | bytes | None = None,
    overwrite: bool = False,
    progress: Callable[[Tensor, int], None] | None = None,
) -> None:
    """Writes a random checkpoint: ``config.json``, ``ckpt-0/`` and, if given, ``tokenizer.model``.

    The bytes depend on config and seed alone, not on NumPy's version or the machine.

    Args:
      url: the folder to write, by fsspec URL or local path.
      config: the model's shape.
      seed: another seed, other weights.
      tokenizer: a SentencePiece model to put beside it, by URL or as its bytes.
      overwrite: whether to replace a checkpoint that is there.
      progress: called after each tensor with the tensor and its file's bytes.

    Raises:
      SetupError: a checkpoint is there, the tokenizer's vocabulary is not the config's, or the
        folder cannot be written.
    """

    def random_tensor(index: int, tensor: Tensor) -> tuple[ArraySource, ArraySource | None]:
        random, param = np.random.SFC64([seed, index]), tensor.param
        if param.quantized:
            return _quantized(param, random)
        return _float32(param, random, *_spread(param, config)), None

    write_release(
        url, config, random_tensor, tokenizer=tokenizer, overwrite=overwrite, progress=progress
    )


def _quantized(param: Param, random: np.random.SFC64) -> tuple[ArraySource, ArraySource]:
    """Weights that keep the size of normed activations: int8 times scales of 1/sqrt(fan in)."""

    def weight() -> Iterator[memoryview]:
        for count in _chunks(math.prod(param.shape)):
            values = _bits(random, count).view(np.int8)
            yield np.maximum(values, -127, out=values).data

    scale = _GAIN / math.sqrt(param.shape[-2]) / _INT8_STD
    scales = scale * (1 + _JITTER * _uniform(random, math.prod(param.scales_shape)))
    scales = scales.astype(ml_dtypes.bfloat16).reshape(param.scales_shape)
    return ArraySource(param.shape, np.dtype(np.int8), weight), ArraySource.of(scales)


def _float32(param: Param, random: np.random.SFC64, mean: float, reach: float) -> ArraySource:
    """Numbers uniform in ``[mean - reach, mean + reach]``."""

    def values() -> Iterator[memoryview]:
        for size in _chunks(4 * math.prod(param.shape)):
            numbers = _uniform(random, size // 4) * np.float32(reach) + np.float32(mean)
            yield numbers.view(np.uint8).data

    return ArraySource(param.shape, np.dtype(np.float32), values)


def _spread(param: Param, config: Grok1Config) -> tuple[float, float]:
    """Mean and reach of a float32 weight.

    With norms of about 1, a layer adds two vectors of size 1 to each position's hidden state,
    which so ends at about sqrt(2 L). A token's own logit is then sqrt(D) * multiplier * std(E) /
    sqrt(2 L) standard deviations of the others: that gives the embedding's spread, and the final
    norm makes up for what the logits' own spread then lacks.
    """
    width = math.sqrt(config.emb_size)
    depth = math.sqrt(2 * config.num_layers)
    embedding = _SELF_LOGIT * depth / (width * config.embedding_multiplier_scale)
    match param.name:
        case "embedding":
            return 0.0, math.sqrt(3) * embedding
        case "final_norm":
            mean = _LOGIT_STD / (config.output_multiplier_scale * width * embedding)
            return mean, mean * _JITTER
        case "router":
            return 0.0, math.sqrt(3) * _GAIN / width
        case _:
            return 1.0, _JITTER


def _uniform(random: np.random.SFC64, count: int) -> np.ndarray:
    """Float32 numbers in [-1, 1), 16 bits each."""
    return _bits(random, 2 * count).view("<i2").astype(np.float32) / np.float32(1 << 15)


def _bits(random: np.random.SFC64, count: int) -> np.ndarray:
    # Raw output: NumPy promises its stream for ever, that of the distributions it does not.
    return random.random_raw(-(-count // 8)).astype("<u8", copy=False).view(np.uint8)[:count]


def _chunks(size: int) -> Iterator[int]:
    for start in range(0, size, _CHUNK_BYTES):
        yield min(_CHUNK_BYTES, size - start)
