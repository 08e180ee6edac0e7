"""Kernels that a GPU's compiler chooses by measuring, kept so that a restart gets the same ones.

Two kernels for one product may add in another order, so which one is chosen decides bits. The
compiler keeps each choice as a small file in a folder. Here that folder goes with the run: what it
holds is read before anything is compiled, and what was chosen anew is added to it afterwards.
"""

import hashlib
import os
import tempfile
from pathlib import Path

from model.checkpoint import files, sink
from model.machines import GPU_MEMORY_SHARE

_MOST_BYTES = 1 << 20
"""Of one kept choice; real ones have a few hundred."""


def prepare_gpu() -> None:
    """Lets programs take what ``fit`` counts on of a GPU's memory; before JAX looks for one."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_SHARE))


class Tuning:
    """The choices of one run.

    Attributes:
      options: for the compiler.
    """

    def __init__(self, url: str) -> None:
        """Reads what the folder ``url`` holds, which need not be there yet."""
        self._url = url
        self._holder = tempfile.TemporaryDirectory(prefix="grok1-tuning-")
        self._folder = Path(self._holder.name)
        for name in files.list_files(url):
            data = files.read_bytes(files.join(url, name), _MOST_BYTES)
            (self._folder / name).write_bytes(data)
        self.options: dict[str, str | bool] = {
            "xla_gpu_per_fusion_autotune_cache_dir": str(self._folder)
        }

    def keep(self) -> None:
        """Adds what was chosen since; a choice that is kept already stays as it is."""
        kept = files.list_files(self._url)
        for path in sorted(self._folder.iterdir()):
            if path.name not in kept:
                sink.write_bytes(files.join(self._url, path.name), path.read_bytes())

    def identity(self) -> str:
        """A hash of all choices that this process goes by; 12 hex digits."""
        digest = hashlib.sha256()
        for path in sorted(self._folder.iterdir()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return digest.hexdigest()[:12]
