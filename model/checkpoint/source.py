"""Opens a checkpoint of whichever kind lies at a URL."""

from model.checkpoint import files
from model.checkpoint.base import Checkpoint, HostTensor
from model.checkpoint.huggingface import HuggingFaceCheckpoint
from model.checkpoint.release import ReleaseCheckpoint
from model.checkpoint.store import StoreCheckpoint
from schemas.error import SetupError

__all__ = ["Checkpoint", "HostTensor", "open_checkpoint"]

_KINDS = (StoreCheckpoint, ReleaseCheckpoint, HuggingFaceCheckpoint)
"""Each has ``find(url)``, which gives the checkpoint there, or None if it is of another kind."""


def open_checkpoint(url: str) -> Checkpoint:
    """The checkpoint in a folder, by fsspec URL or local path; lists it and reads its config.

    Args:
      url: a folder that ``grok1 convert`` wrote; or one with ``ckpt-0/`` and, if it is not Grok-1's
        own, ``config.json``; or ``ckpt-0`` itself; or one with the safetensors files of a port to
        Hugging Face. ``tokenizer.model`` may lie beside the config.

    Raises:
      SetupError: there is no checkpoint, it cannot be read, or its config is wrong.
    """
    url = files.absolute(url)
    for kind in _KINDS:
        if checkpoint := kind.find(url):
            return checkpoint
    lack = "holds no checkpoint" if files.exists(url) else "does not exist"
    raise SetupError(
        f"{files.redact(url)} {lack}: give the folder that holds ckpt-0 with its tensor files, "
        "one that grok1 convert wrote, or one of safetensors files"
    )
