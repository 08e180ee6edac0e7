"""Folders whose files are run as code, which therefore nobody else may write to."""

import os
import stat
from pathlib import Path

from schemas.error import SetupError


def own_cache(name: str) -> Path | None:
    """A folder of this account's own for what can be made again; None if it cannot have one."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "grok1-batch"
    try:
        # Each folder on the way, for whoever may write to one may put another below it.
        for part in ("", *name.split("/")):
            folder = ensure_private(folder / part, "the cache")
    except SetupError:
        return None
    return folder


def ensure_private(folder: Path, what: str) -> Path:
    """The folder, made if it is not there.

    Raises:
      SetupError: it cannot be made, is another's, or others may write to it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise SetupError(
            f"{what}: cannot use {folder}: {error.strerror}; name a folder of your own"
        ) from None
    if found.st_uid != os.getuid():
        raise SetupError(f"{what}: {folder} belongs to another account; name a folder of your own")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SetupError(
            f"{what}: others may write to {folder}, and what it holds is run; "
            f"chmod go-w it, or name another"
        )
    return folder
