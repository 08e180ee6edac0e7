"""Writes a checkpoint as GGUF of the architecture ``grok``, which llama.cpp runs.

llama.cpp computes the same but for the gates, which it makes add up to one; the norm after the
experts hides that. Its rotary embedding turns the halves of a head, as ours does, for this
architecture, so that queries and keys need no reordering.
"""

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from model.checkpoint import files
from model.checkpoint.base import Checkpoint
from model.checkpoint.gguf_vocabulary import add_vocabulary
from model.checkpoint.numbers import numbers, stored_shape
from model.config import Grok1Config
from model.params import Tensor
from schemas.error import SetupError

DTYPES = ("bf16", "f16", "f32", "q8_0")
"""What matrices may be written as; ``q8_0`` is int8 with a float16 scale for 32 numbers."""

_Q8_GROUP = 32
_FILE_BYTES = 40 << 30
"""A larger model becomes several files; llama.cpp opens them by the first one's name."""

_NAMES = {
    "embedding": "token_embd",
    "final_norm": "output_norm",
    "attn_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "attn_out": "attn_output",
    "attn_post_norm": "attn_output_norm",
    "moe_norm": "ffn_norm",
    "router": "ffn_gate_inp",
    "gate": "ffn_gate_exps",
    "up": "ffn_up_exps",
    "down": "ffn_down_exps",
    "moe_post_norm": "layer_output_norm",
}


def write_gguf(
    checkpoint: Checkpoint,
    path: str,
    *,
    dtype: str = "bf16",
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Writes a model file with its tokenizer; host memory is about one tensor's.

    Args:
      checkpoint: what to write.
      path: of the file, on this machine; it appears when it is complete.
      dtype: of products' weights and the embedding; norms and routers stay float32.
      overwrite: whether to replace a file that is there.
      progress: told of bytes written, and of how many there are.

    Returns:
      The paths written: one, or several for a large model.

    Raises:
      SetupError: llama.cpp cannot run a model of this shape, the package ``gguf`` is missing, or
        the file is there or cannot be written.
    """
    gguf = _package()
    _check(checkpoint.config, dtype)
    local = files.local_path(path)
    if local is None:
        raise SetupError(f"{files.redact(path)}: a GGUF file is written to a local disk only")
    target = pathlib.Path(local)
    old = [*target.parent.glob(target.name), *target.parent.glob(f"{target.stem}-*-of-*.gguf")]
    if old and not overwrite:
        raise SetupError(f"{min(old)} is already there: give another name or --overwrite")
    checkpoint.verify()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
            _write(gguf, checkpoint, pathlib.Path(folder) / target.name, dtype, progress)
            made = sorted(os.listdir(folder))
            for former in old:
                former.unlink()
            for name in made:
                os.replace(pathlib.Path(folder) / name, target.parent / name)
    except OSError as error:
        raise SetupError(f"cannot write {target}: {error.strerror or error}") from None
    return [str(target.parent / name) for name in made]


def _write(
    gguf: ModuleType,
    checkpoint: Checkpoint,
    path: pathlib.Path,
    dtype: str,
    progress: Callable[[int, int], None],
) -> None:
    kinds = gguf.GGMLQuantizationType
    planned = []
    for tensor in checkpoint.tensors():
        small = tensor.param.name == "router" or len(tensor.param.shape) == 1
        kind = kinds.F32 if small else kinds[dtype.upper()]
        shape = stored_shape(tensor.param)
        size = int(np.prod(gguf.quants.quant_shape_to_byte_shape(shape, kind)))
        planned.append((tensor, shape, kind, size))
    total, done = sum(size for *_, size in planned), 0

    split = _FILE_BYTES if total > _FILE_BYTES else 0
    writer = gguf.GGUFWriter(path, "grok", split_max_size=split)
    with contextlib.closing(writer):
        _add_config(writer, gguf, checkpoint.config, dtype)
        add_vocabulary(writer, gguf, checkpoint)
        for tensor, shape, kind, size in planned:
            # A type other than uint8 says that the shape counts numbers, not bytes.
            writer.add_tensor_info(_name(tensor), shape, np.dtype(np.float32), size, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, _, kind, size in planned:
            writer.write_tensor_data(_Streamed(size, _encoded(gguf, checkpoint, tensor, kind)))
            done += size
            progress(done, total)


@dataclasses.dataclass(frozen=True)
class _Streamed:
    """Stands for an array where only its size and bytes are asked for.

    Attributes:
      nbytes: of all blocks.
      blocks: the array, piece by piece.
    """

    nbytes: int
    blocks: Iterator[np.ndarray]

    def tofile(self, file: BinaryIO) -> None:
        """Writes all of it."""
        for block in self.blocks:
            block.tofile(file)


def _encoded(
    gguf: ModuleType, checkpoint: Checkpoint, tensor: Tensor, kind: Any
) -> Iterator[np.ndarray]:
    for block in numbers(tensor.param, checkpoint.read(tensor)):
        yield gguf.quants.quantize(block, kind)


def _name(tensor: Tensor) -> str:
    layer = "" if tensor.layer is None else f"blk.{tensor.layer}."
    return f"{layer}{_NAMES[tensor.param.name]}.weight"


def _add_config(writer: Any, gguf: ModuleType, config: Grok1Config, dtype: str) -> None:
    kind = {"bf16": "MOSTLY_BF16", "f16": "MOSTLY_F16", "f32": "ALL_F32", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(gguf.LlamaFileType[kind[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.sequence_len)
    writer.add_embedding_length(config.emb_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.ffn_size)
    writer.add_head_count(config.num_q_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.key_size)
    writer.add_value_length(config.key_size)
    writer.add_rope_dimension_count(config.key_size)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_selected_experts)
    writer.add_attn_logit_softcapping(config.attn_logit_cap)
    writer.add_attn_output_scale(config.attn_output_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier_scale)
    writer.add_logit_scale(config.output_multiplier_scale)


def _check(config: Grok1Config, dtype: str) -> None:
    if config.num_q_heads * config.key_size != config.emb_size:
        raise SetupError(
            f"llama.cpp needs num_q_heads * key_size ({config.num_q_heads * config.key_size}) to "
            f"equal emb_size ({config.emb_size}): export it as huggingface instead"
        )
    unfit = [name for name in ("emb_size", "ffn_size") if getattr(config, name) % _Q8_GROUP]
    if dtype == "q8_0" and unfit:
        raise SetupError(
            f"q8_0 needs {unfit[0]} ({getattr(config, unfit[0])}) to be a multiple of {_Q8_GROUP}: "
            "choose another --dtype"
        )


def _package() -> ModuleType:
    try:
        import gguf
        import gguf.quants
    except ImportError:
        raise SetupError(
            "GGUF files need a package that is not installed: pip install 'grok1-batch[gguf]'"
        ) from None
    return gguf
