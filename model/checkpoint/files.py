"""Paths and URLs: a thin layer over fsspec, with one sentence for each fault and no secret in it.

Whatever takes a path takes any fsspec URL (``s3://``, ``gs://``, ``memory://``, chained ones) or a
local path, relative or with ``~``. Faults are ``SetupError``, whatever the store's own class.
"""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import unquote

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from model.checkpoint.answers import Answer, answer, telling
from schemas.error import SetupError

_T = TypeVar("_T")
_R = TypeVar("_R")

_THREADS = 32
_ALIGNMENT = 64
RANGE_BYTES = 16 << 20
"""One request of a parallel read."""

_USER = re.compile(r"(?<=://)(?:[^/:\s]*:\S*|[^/\s]*)@")
"""A password may hold ``/`` and ``@``: after a colon, all up to the last ``@`` may belong to it."""
_QUERY = re.compile(r"(\w://[^?\s]*)\?[^\s'\"]+(?:['\"][^\s'\",;:.)\]]+)*")
_HTTP = re.compile(r"(?:^|::)https?://")
_URL_USER = re.compile(r"(?<=://)(?:[^/:]*:.*|[^/]*)@", re.DOTALL)
_HOST_USER = re.compile(r"(?<=://)[^/]*@")


class Gone(SetupError):
    """There is no such file."""


class Refused(SetupError):
    """This account may not do that with the file."""


class OutOfReach(SetupError):
    """The store has not answered: another time it may."""


def redact(url: str) -> str:
    """A URL, or a path, with user names, passwords and query strings blotted out."""
    if "://" not in url:
        return url
    if not _HTTP.search(url):
        path, mark, _ = _URL_USER.sub("***@", url).partition("?")
        return f"{path}?***" if mark else path
    # Here a mark begins what is no path, whatever stands in it; a fragment may be a secret, too.
    url = _HOST_USER.sub("***@", url)
    path = re.split("[?#]", url, maxsplit=1)[0]
    return _URL_USER.sub("***@", path) + (f"{url[len(path)]}***" if path != url else "")


def redact_text(text: str) -> str:
    """The same for all URLs that stand in a text, as far as it can be told where they end."""
    return _QUERY.sub(r"\1?***", _USER.sub("***@", text))


def split(url: str | os.PathLike[str]) -> tuple[Any, str]:
    """The file system of a URL or local path, and the path in it.

    Raises:
      SetupError: the protocol is unknown, or its package is not installed.
    """
    url = os.fspath(url)
    with faults("use", url):
        return fsspec.core.url_to_fs(url)


def absolute(url: str) -> str:
    """The URL as it is, a local path as an absolute one: it outlives a change of folder."""
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))


def local_path(url: str) -> str | None:
    """The absolute path of a file on this machine; None for one elsewhere."""
    fs, path = split(url)
    return path if isinstance(fs, LocalFileSystem) else None


def join(url: str, *names: str) -> str:
    """The URL of a file below a folder; a chained URL and a query string keep their place."""
    before, path, after = _cut(url)
    return before + "/".join(("" if path == "/" else path.rstrip("/"), *names)) + after


def parent(url: str) -> str:
    """The URL of the folder that holds a file or folder."""
    before, path, after = _cut(absolute(url))
    return before + path.rstrip("/").rpartition("/")[0] + after


def basename(url: str) -> str:
    """The last name of a URL's path."""
    return _cut(absolute(url))[1].rstrip("/").rpartition("/")[2]


def list_files(url: str) -> dict[str, int]:
    """Names and sizes in bytes of the files right in a folder; none if there is no such folder."""
    fs, path = split(url)
    with faults("list", url):
        fs.invalidate_cache(path)
        try:
            entries = fs.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        found = {}
        for entry in entries:
            name = entry["name"].rstrip("/")
            if entry["type"] == "directory" or name == path.rstrip("/"):
                continue
            size = entry.get("size")
            found[name.rpartition("/")[2]] = fs.size(name) if size is None else size
        return found


def exists(url: str) -> bool:
    """Whether a file or folder is there; a store that refuses to say is a fault, not a no."""
    fs, path = split(url)
    with faults("look for", url):
        try:
            fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def read_bytes(url: str, limit: int) -> bytes:
    """A small file's bytes.

    Raises:
      SetupError: it cannot be read, or is larger than ``limit`` bytes.
    """
    fs, path = split(url)
    with faults("read", url):
        size = fs.size(path)
        if size is not None and size > limit:
            raise SetupError(
                f"{redact(url)} has {size} bytes, more than the {limit} expected; name another file"
            )
        return fs.cat_file(path)


def read_range(url: str, start: int, stop: int) -> bytes:
    """Bytes ``[start, stop)`` of a file.

    Raises:
      SetupError: they cannot be read, or the file ends before them.
    """
    fs, path = split(url)
    with faults("read", url):
        data = fs.cat_file(path, start=start, end=stop) if stop > start else b""
    if len(data) != stop - start:
        raise SetupError(
            f"{redact(url)}: asked for bytes {start} to {stop}, got {len(data)}; "
            "the file is cut short, or its server cannot serve ranges"
        )
    return data


def read_into(url: str, start: int, buffer: np.ndarray) -> None:
    """Fills a contiguous uint8 array with a file's bytes from ``start`` on, by one request.

    The caller has compared the end with the file's size: it bounds what is allocated.
    """
    if (path := local_path(url)) is None:
        buffer[:] = np.frombuffer(read_range(url, start, start + buffer.size), np.uint8)
        return
    with faults("read", url), open(path, "rb", buffering=0) as file:
        at = 0
        while at < buffer.size:
            if not (got := os.preadv(file.fileno(), [buffer[at:].data], start + at)):
                raise SetupError(
                    f"{redact(url)} is cut short: byte {start + buffer.size} is past its end; "
                    "fetch it again"
                )
            at += got


def read_buffer(url: str, start: int, stop: int) -> np.ndarray:
    """Bytes ``[start, stop)`` of a large file as uint8, aligned, by parallel ranged reads."""
    buffer = empty(stop - start)

    def fill(at: int) -> None:
        read_into(url, start + at, buffer[at : at + RANGE_BYTES])

    in_parallel(fill, range(0, stop - start, RANGE_BYTES), threads=8)
    return buffer


def empty(size: int) -> np.ndarray:
    """A new uint8 array that begins where a device of the CPU can take it over without a copy."""
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    skip = -buffer.ctypes.data % _ALIGNMENT
    return buffer[skip : skip + size]


def remove(url: str) -> None:
    """Removes a file."""
    fs, path = split(url)
    with faults("remove", url):
        fs.rm_file(path)


def remove_folder(url: str) -> None:
    """Removes a folder with all that is in it, if it is there."""
    fs, path = split(url)
    with faults("remove", url), contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


def in_parallel(
    function: Callable[[_T], _R], items: Iterable[_T], threads: int = _THREADS
) -> list[_R]:
    """The function's results in the items' order, computed by threads that wait on a store."""
    items = list(items)
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items)), thread_name_prefix="checkpoint-io") as pool:
        try:
            return list(pool.map(function, items))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _cut(url: str) -> tuple[str, str, str]:
    """A URL in three: what stands before the path that files lie under, that path, and the rest."""
    parts = os.fspath(url).split("::")
    at = next((i for i, part in enumerate(parts) if "://" in part), 0)
    path, mark, query = parts[at], "", ""
    if path.startswith(("http://", "https://")):
        path, mark, query = path.partition("?")
    rest = "".join(f"::{part}" for part in parts[at + 1 :])
    return "".join(f"{part}::" for part in parts[:at]), path, mark + query + rest


@contextlib.contextmanager
def faults(action: str, url: str) -> Iterator[None]:
    """Tells any fault in one sentence: what could not be done with which file, and why.

    Raises:
      Gone, Refused: what the store said.
      OutOfReach: it has said neither.
      SetupError: as it was raised inside.
    """
    try:
        yield
    except SetupError:
        raise
    except Exception as error:  # each store's client brings exception classes of its own
        said, _ = answer(error)
        if said is Answer.GONE:
            raise Gone(
                f"cannot {action} {redact(url)}: no such file or bucket; check how it is spelled"
            ) from None
        error = telling(error)
        reason = " ".join(without_secrets(str(error), url).split())[:300]
        sentence = (
            f"cannot {action} {redact(url)}: {reason or type(error).__name__}; check the path, and "
            "this account's rights to it"
        )
        # Without its cause: that may quote the URL as it is.
        if said is Answer.REFUSED:
            raise Refused(sentence) from None
        if type(error) is OSError and error.errno == errno.EIO and error.__cause__ is None:
            raise SetupError(sentence) from None  # a disk says so of its own bytes
        raise OutOfReach(f"{sentence}, or start again if its store is out of reach") from None


def without_secrets(text: str, url: str) -> str:
    """A client's message about a URL: it may quote the URL whole, in part, or decoded."""
    text = redact_text(text.replace(url, redact(url)))
    hidden = [found.rstrip("@") for found in _URL_USER.findall(url)]
    hidden += [query for part in url.split("::") if "://" in part for query in part.split("?")[1:]]
    for whole in filter(None, hidden):
        parts = [part for part in re.split(r"[:/@&=]", whole) if len(part) >= 4]
        for secret in sorted({whole, *parts}, key=len, reverse=True):
            text = text.replace(secret, "***").replace(unquote(secret), "***")
    return text
