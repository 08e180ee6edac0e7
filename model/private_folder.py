"""Folders whose files are run as code, which therefore nobody else may write to."""

import os
import stat
from pathlib import Path

from schemas.error import SetupError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


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
      SetupError: it cannot be made, it or a file in it is another's, or others may write to it or
        put another in its place.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve()
        found = folder.stat()
        above = [(path, path.stat()) for path in folder.parents]
        owners = {
            entry.name: entry.stat(follow_symlinks=False).st_uid for entry in os.scandir(folder)
        }
    except OSError as error:
        raise SetupError(
            f"{what}: cannot use {folder}: {error.strerror}; name a folder of your own"
        ) from None
    if found.st_uid != os.getuid():
        raise SetupError(f"{what}: {folder} belongs to another account; name a folder of your own")
    if found.st_mode & _OTHERS_WRITE:
        # Taking the right away would not do: what they wrote is there.
        raise SetupError(
            f"{what}: others may write to {folder}, and what it holds is run; name a new folder"
        )
    for path, state in above:
        # Of a folder with the sticky bit others rename their own alone.
        if state.st_mode & _OTHERS_WRITE and not state.st_mode & stat.S_ISVTX:
            raise SetupError(
                f"{what}: others may write to {path}, and so put another folder in the place of "
                f"{folder}, whose files are run; name a folder elsewhere"
            )
    if strange := sorted(name for name, owner in owners.items() if owner != os.getuid()):
        raise SetupError(
            f"{what}: {folder / strange[0]} belongs to another account; name a new folder"
        )
    return folder
