"""Files that are written: they appear whole or not at all, wherever they lie."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile

from model.checkpoint import files

_FOLDER_PROTOCOLS = {"sftp", "ssh", "hdfs", "webhdfs", "smb", "ftp"}
"""Stores where a folder must exist before a file in it. Elsewhere a "folder" is only a prefix, and
making one may make a bucket."""


def write_bytes(url: str, data: bytes) -> None:
    """Writes a file whole, with the folders above it."""
    with open_write(url) as file:
        file.write(data)


@contextlib.contextmanager
def open_write(url: str) -> Iterator[BinaryIO]:
    """A file to be written from its beginning, with the folders above it.

    It appears whole: a local one under its name once it is on the disk, one in an object store once
    it is closed. What a killed process leaves is hidden, and replaced when it is written again. Of
    one whose writer fails nothing appears; that failure is the writer's, and passed on as it is.
    """
    fs, path = files.split(url)
    with files.faults("write", url):
        if isinstance(fs, LocalFileSystem):
            folder, name = os.path.split(path)
            os.makedirs(folder, exist_ok=True)
            unfinished = os.path.join(folder, f".{name}.unfinished")
            file: Any = open(unfinished, "wb")  # noqa: SIM115, since its end may be no close
        else:
            protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
            if protocols & _FOLDER_PROTOCOLS:
                fs.makedirs(fs._parent(path), exist_ok=True)
            file = fs.open(path, "wb")
    try:
        yield cast(BinaryIO, _Sink(file, url))
    except BaseException:
        _discard(file)
        raise
    with files.faults("write", url):
        if isinstance(fs, LocalFileSystem):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(unfinished, path)
        else:
            file.close()


class _Sink:
    """A file that tells what it cannot write. What goes wrong with its writer is not its fault."""

    def __init__(self, file: Any, url: str) -> None:
        self._file, self._url = file, url

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        with files.faults("write", self._url):
            return self._file.write(data)


def _discard(file: Any) -> None:
    """Ends a file that is not whole."""
    with contextlib.suppress(Exception):
        if isinstance(file, AbstractBufferedFile):
            file.closed = True  # it would be sent when it is closed, or collected
            file.discard()
        else:
            file.close()
