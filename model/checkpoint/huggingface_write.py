"""Writes a checkpoint as a folder for Hugging Face, as the port hpcai-tech/grok-1 has it.

The network's code is the port's own, which transformers fetches from the Hub; nothing of it is
written here.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np

from model.checkpoint import files, sink
from model.checkpoint.base import Checkpoint
from model.checkpoint.huggingface import CONFIG, INDEX, TOKENIZER
from model.checkpoint.numbers import numbers, stored_shape
from model.checkpoint.ports import HEAD, PORTS, to_port_config
from model.checkpoint.safetensors_header import write_header
from model.params import Tensor
from model.tokenizer import Tokenizer
from schemas.error import SetupError

DTYPES = ("bf16", "f32")
"""What products' weights and the embedding may be written as; norms and routers stay float32."""

_FILE_BYTES = 5 << 30
_NUMPY = {"bf16": np.dtype(ml_dtypes.bfloat16), "f32": np.dtype("<f4")}
_PORT = PORTS[0]


def write_huggingface(
    checkpoint: Checkpoint,
    url: str,
    *,
    dtype: str = "bf16",
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Writes shards of safetensors, their index, ``config.json`` and the tokenizer.

    Args:
      checkpoint: what to write.
      url: the folder to write, by fsspec URL or local path.
      dtype: one of ``DTYPES``.
      overwrite: whether to replace a model that is there.
      progress: told of bytes written, and of how many there are.

    Returns:
      The URLs written; the index, without which there is no model, last.

    Raises:
      SetupError: a model is there, or the folder cannot be written.
    """
    there = files.list_files(url)
    old = [name for name in there if name.endswith(".safetensors") or name == INDEX]
    if old and not overwrite:
        raise SetupError(
            f"{files.redact(url)} already holds {old[0]}: give another folder or --overwrite"
        )
    checkpoint.verify()
    config = checkpoint.config
    for name in old:
        files.remove(files.join(url, name))

    shards = _plan(checkpoint, _NUMPY[dtype])
    total, done = sum(array.nbytes for shard in shards for array in shard), 0
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        with sink.open_write(files.join(url, name)) as file:
            header = [(array.name, array.dtype, array.shape) for array in shard]
            file.write(write_header(header, made_for="pt"))
            for array, blocks in _read(checkpoint, shard):
                for block in blocks:
                    file.write(block.astype(array.dtype).reshape(-1).view(np.uint8).data)
                done += array.nbytes
                progress(done, total)

    texts = {CONFIG: json.dumps(to_port_config(config), indent=2) + "\n"}
    if checkpoint.tokenizer_url is not None:
        tokenizer = Tokenizer.load(checkpoint.tokenizer_url)
        tokenizer.check_against(config)
        sink.write_bytes(files.join(url, TOKENIZER), tokenizer.model)
    shard_of = {a.name: name for name, shard in zip(names, shards, strict=True) for a in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(shard_of.items()))}
    texts[INDEX] = json.dumps(index, indent=2) + "\n"
    for name, text in texts.items():
        sink.write_bytes(files.join(url, name), text.encode())
    return [files.join(url, name) for name in (*names, *texts)]


@dataclasses.dataclass(frozen=True)
class _Array:
    """One array of a shard: a tensor, or one expert's of it."""

    name: str
    tensor: Tensor
    expert: int | None
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _plan(checkpoint: Checkpoint, dtype: np.dtype) -> list[list[_Array]]:
    """The arrays of each shard, a tensor's experts one after another."""
    shards: list[list[_Array]] = [[]]
    size = 0
    for tensor in checkpoint.tensors():
        names: list[tuple[str, int | None]] = [(name, None) for name in _PORT.names_of(tensor)]
        shape = stored_shape(tensor.param)
        if len(shape) == 3:
            names = [(name, expert) for expert, (name, _) in enumerate(names)]
            shape = shape[1:]
        if tensor.param.name == "embedding":
            names.append((HEAD, None))  # the same, though the port ties the two
        small = tensor.param.name == "router" or len(shape) == 1
        for name, expert in names:
            array = _Array(name, tensor, expert, shape, np.dtype("<f4") if small else dtype)
            if size + array.nbytes > _FILE_BYTES and shards[-1]:
                shards.append([])
                size = 0
            shards[-1].append(array)
            size += array.nbytes
    return shards


def _read(
    checkpoint: Checkpoint, shard: list[_Array]
) -> Iterator[tuple[_Array, Iterator[np.ndarray]]]:
    """Each array's numbers; a tensor is read once for all experts that follow each other."""
    tensor, host = None, None
    for array in shard:
        if array.tensor != tensor or host is None:
            host = None  # let go of one before the next is read
            tensor, host = array.tensor, checkpoint.read(array.tensor)
        yield array, numbers(array.tensor.param, host, array.expert)
