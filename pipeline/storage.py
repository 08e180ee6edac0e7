"""The output folder: files that appear whole or not at all, made by the first writer only."""

import contextlib
import dataclasses
import os
import threading
import uuid
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from model.checkpoint import files

TEMPORARY = "_tmp-"
"""Begins the names of local files not yet whole; a killed process may leave some."""

_PIECEMEAL = {"s3", "gs"}
"""Stores whose clients cut a large file into pieces."""

_memory_lock = threading.Lock()

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder at a path or fsspec URL. Small and picklable: it holds nothing but the URL.

    Creation is atomic and exclusive where the store can do it: a hard link locally, a conditional
    request on S3 and Google Cloud Storage. On other stores fsspec only looks before it writes, so
    two writers at the same instant may both believe to be first; since both write the same bytes,
    only their counts could differ.

    Attributes:
      url: where it is.
    """

    url: str

    def at(self, name: str) -> str:
        """The URL of a file in the folder."""
        return files.join(self.url, name)

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file if there is none; returns whether this call made it."""
        fs, path = files.split(self.at(name))
        if isinstance(fs, LocalFileSystem):
            return _twice(lambda: self._create_locally(path, data))
        guard = _memory_lock if isinstance(fs, MemoryFileSystem) else contextlib.nullcontext()
        with guard:
            try:
                fs.pipe_file(path, data, mode="create", **_in_one_request(fs, data))
            except Exception:
                # Stores name a lost race in many ways; what counts is whether the file is there.
                if self.exists(name):
                    return False
                raise
        return True

    def replace(self, name: str, data: bytes, *, flush: bool = True) -> None:
        """Writes a file, whole, in place of another of its name.

        Args:
          name: of the file.
          data: its bytes.
          flush: whether it must outlive the machine, not only the process.
        """
        fs, path = files.split(self.at(name))
        if isinstance(fs, LocalFileSystem):
            _twice(lambda: os.replace(self._write_temporary(path, data, flush), path))
        else:
            fs.pipe_file(path, data, **_in_one_request(fs, data))

    def read(self, name: str) -> bytes | None:
        """A file's bytes, or None if there is no such file."""
        return read_file(self.at(name))

    def exists(self, name: str) -> bool:
        """Whether a file is there now, by one request."""
        fs, path = files.split(self.at(name))
        fs.invalidate_cache(path)
        fs.invalidate_cache(fs._parent(path))
        try:
            fs.info(path)
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        """A file's size in bytes."""
        fs, path = files.split(self.at(name))
        return fs.size(path)

    def names(self) -> dict[str, int]:
        """Names and sizes of the files right in the folder, from one listing."""
        return files.list_files(self.url)

    def remove(self, names: Iterable[str]) -> None:
        """Removes files; those already gone are fine."""

        def remove(name: str) -> None:
            fs, path = files.split(self.at(name))
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(path)

        files.in_parallel(remove, names)

    def _create_locally(self, path: str, data: bytes) -> bool:
        temporary = self._write_temporary(path, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:
            # No hard links on this file system (some network mounts): look, then rename.
            if os.path.exists(path):
                return False
            os.rename(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        return True

    def _write_temporary(self, path: str, data: bytes, flush: bool = True) -> str:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = os.path.join(files.split(self.url)[1], TEMPORARY + uuid.uuid4().hex)
        with open(temporary, "xb") as file:
            file.write(data)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        return temporary


def _twice(place: Callable[[], _T]) -> _T:
    """Puts a file in its place, once more if what was to be it is gone.

    A new owner of a folder sweeps it, and what another writes there in just that moment.
    """
    try:
        return place()
    except FileNotFoundError:
        return place()


def _in_one_request(fs: Any, data: bytes) -> dict[str, int]:
    """Keeps a client from uploading in pieces, of which a kill would leave some to be paid for."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    return {"chunksize": len(data) + 1} if protocols & _PIECEMEAL else {}


def read_file(url: str) -> bytes | None:
    """A whole file's bytes, or None if there is no such file."""
    fs, path = files.split(url)
    if isinstance(fs, MemoryFileSystem):
        # All its readers share one file position, so two threads must not both seek.
        file = fs.store.get(path)
        return None if file is None else file.getvalue()
    try:
        return fs.cat_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_tail(url: str, size: int, length: int) -> bytes:
    """The last bytes of a file of known size, at most all.

    Raises:
      SetupError: they cannot be read.
    """
    if isinstance(files.split(url)[0], MemoryFileSystem):
        return (read_file(url) or b"")[-length:]
    return files.read_range(url, max(0, size - length), size)


def open_parquet(url: str, buffer_bytes: int) -> Any:
    """A file for ``pyarrow.parquet.ParquetFile`` that fetches just the ranges it is asked for.

    Args:
      url: the file.
      buffer_bytes: what a remote read asks for at least.

    Raises:
      FileNotFoundError: there is no such file.
    """
    fs, path = files.split(url)
    if isinstance(fs, LocalFileSystem):
        # Not a memory map: a file cut short under a map kills the process.
        return pa.OSFile(path)
    if isinstance(fs, MemoryFileSystem):
        data = read_file(url)
        if data is None:
            raise FileNotFoundError(path)
        return pa.BufferReader(data)
    # A cache would be torn to and fro between columns; the Parquet reader has buffers of its own.
    return fs.open(path, "rb", cache_type="none", block_size=buffer_bytes)
