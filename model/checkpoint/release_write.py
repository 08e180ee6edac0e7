"""Writes a checkpoint in the release's layout, tensor by tensor, each streamed."""

from collections.abc import Callable

from model.checkpoint import files, sink
from model.checkpoint.pickle_write import ArraySource, write_array, write_quantized
from model.checkpoint.release import (
    CONFIG,
    FOLDER,
    TENSOR_FILE,
    TOKENIZER,
    file_name,
    file_order,
)
from model.config import Grok1Config
from model.params import Tensor
from model.tokenizer import Tokenizer
from schemas.error import SetupError

Sources = Callable[[int, Tensor], tuple[ArraySource, ArraySource | None]]
"""Given a tensor's place in the order of the files and the tensor: its values as the declaration
says, and the scales beside quantised ones."""


def write_release(
    url: str,
    config: Grok1Config,
    sources: Sources,
    *,
    tokenizer: str | bytes | None = None,
    overwrite: bool = False,
    progress: Callable[[Tensor, int], None] | None = None,
) -> None:
    """Writes ``config.json``, ``ckpt-0/`` and, if given, ``tokenizer.model``.

    Args:
      url: the folder to write, by fsspec URL or local path.
      config: the model's shape.
      sources: called for one tensor after another, when its file is due.
      tokenizer: a SentencePiece model to put beside it, by URL or as its bytes.
      overwrite: whether to replace a checkpoint that is there.
      progress: called after each tensor with the tensor and its file's bytes.

    Raises:
      SetupError: a checkpoint is there, the tokenizer's vocabulary is not the config's, or the
        folder cannot be written.
    """
    folder = files.join(url, FOLDER)
    old = [name for name in files.list_files(folder) if TENSOR_FILE.fullmatch(name)]
    if old and not overwrite:
        raise SetupError(
            f"{files.redact(folder)} already holds tensors: give another folder or --overwrite"
        )
    if tokenizer is not None:
        loaded = Tokenizer.load(tokenizer) if isinstance(tokenizer, str) else Tokenizer(tokenizer)
        loaded.check_against(config)
        sink.write_bytes(files.join(url, TOKENIZER), loaded.model)
    for name in old:  # a model of more layers would leave files that belong to no tensor
        files.remove(files.join(folder, name))
    sink.write_bytes(files.join(url, CONFIG), config.to_json().encode())
    for index, tensor in enumerate(file_order(config)):
        values, scales = sources(index, tensor)
        with sink.open_write(files.join(folder, file_name(index))) as file:
            if scales is not None:
                write_quantized(file, values, scales)
            else:
                write_array(file, values)
            size = file.tell()
        if progress:
            progress(tensor, size)
