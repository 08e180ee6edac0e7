"""Writes a checkpoint for other programs: GGUF for llama.cpp, a folder for Hugging Face's."""

from collections.abc import Callable

from model.checkpoint import gguf_write, huggingface_write
from model.checkpoint.huggingface import HuggingFaceCheckpoint
from model.checkpoint.source import open_checkpoint
from schemas.error import SetupError

WRITERS = {
    "gguf": gguf_write.write_gguf,
    "huggingface": huggingface_write.write_huggingface,
}
DTYPES = {"gguf": gguf_write.DTYPES, "huggingface": huggingface_write.DTYPES}
"""What each format can hold, the usual first."""


def export_checkpoint(
    source: str,
    target: str,
    form: str,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Writes a checkpoint in another format, tensor by tensor; returns what was written.

    Args:
      source: a checkpoint of any kind, by fsspec URL or local path.
      target: the file (GGUF) or folder (Hugging Face) to write.
      form: one of ``WRITERS``.
      dtype: one of the format's ``DTYPES``; by default the first.
      overwrite: whether to replace what is there.
      progress: told of bytes written, and of how many there are.

    Raises:
      SetupError: the source cannot be read, or not be written so.
    """
    dtype = dtype or DTYPES[form][0]
    if dtype not in DTYPES[form]:
        choices = ", ".join(DTYPES[form])
        raise SetupError(f"--dtype must be one of {choices} for --format {form}, got {dtype!r:.40}")
    checkpoint = open_checkpoint(source)
    if isinstance(checkpoint, HuggingFaceCheckpoint):
        checkpoint = checkpoint.as_numbers()  # integers need not be found to write numbers
    return WRITERS[form](checkpoint, target, dtype=dtype, overwrite=overwrite, progress=progress)
