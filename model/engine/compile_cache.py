"""Compiled steps, kept so that a second start with the same shapes compiles nothing.

JAX keeps what it compiles as files in a folder. That folder is on this machine; of a cache at
another store's URL it is a copy, filled before anything is compiled, from which new files are
brought there afterwards. What a cache holds is machine code: one on this machine must be the
account's own, and whoever may write to a bucket that is named as one is trusted as well.
"""

import hashlib
import logging
import tempfile
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from model.checkpoint import files, sink
from model.engine.machine import versions
from model.private_folder import ensure_private, own_cache
from schemas.error import SetupError

_log = logging.getLogger(__name__)

NONE = "none"
"""In place of a URL: keep nothing."""

_MOST_BYTES = 1 << 30
"""Of one compiled step."""


class CompileCache:
    """What JAX compiles from now on in this process is looked up and kept here."""

    def __init__(self, url: str | None, mesh: Mesh) -> None:
        """``url`` is a folder, or ``NONE``; by default one of the account's own.

        Raises:
          SetupError: others may write to it, or it cannot be read.
        """
        self._url: str | None = None
        folder = self._open(url, mesh)
        if folder is None:
            return
        # What was compiled before the first look would else decide that there is no cache.
        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        # Their folders lie in this one, and would make its path part of every key.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")

    def _open(self, url: str | None, mesh: Mesh) -> Path | None:
        if url == NONE:
            return None
        name = _machine_name(mesh)
        if url is None:
            chosen = jax.config.values["jax_compilation_cache_dir"]  # in JAX's own way
            if chosen and files.local_path(chosen) is not None:
                ensure_private(Path(chosen), "JAX_COMPILATION_CACHE_DIR")
            if chosen:
                return None
            return own_cache(f"compiled/{name}")
        local = files.local_path(url)
        if local is not None:
            folder = ensure_private(Path(local), "--compile-cache")
            return ensure_private(folder / name, "--compile-cache")
        self._url = files.join(url, name)
        self._holder = tempfile.TemporaryDirectory(prefix="grok1-compiled-")
        self._folder = Path(self._holder.name)

        def fetch(name: str) -> None:
            data = files.read_bytes(files.join(str(self._url), name), _MOST_BYTES)
            (self._folder / name).write_bytes(data)

        files.in_parallel(fetch, files.list_files(self._url))
        return self._folder

    def keep(self) -> None:
        """Brings what was compiled since to where it is kept; on this machine it is there.

        Workers may well be let to read it only: then it stays as it is, and a warning says so.
        """
        if self._url is None:
            return
        try:
            kept = files.list_files(self._url)
            new = [path for path in sorted(self._folder.iterdir()) if path.name not in kept]
            files.in_parallel(self._write, new)
        except SetupError as error:
            _log.warning("what was compiled is not kept for the next start: %s", error)

    def _write(self, path: Path) -> None:
        sink.write_bytes(files.join(str(self._url), path.name), path.read_bytes())


def _machine_name(mesh: Mesh) -> str:
    """Of the machines that may share compiled steps: another processor runs other code."""
    facts = versions(mesh)
    digest = hashlib.sha256(repr(sorted(facts.items())).encode())
    return f"{facts['platform']}-{digest.hexdigest()[:12]}"
