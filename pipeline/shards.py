"""The input: which Parquet files it is made of, what their footers say, and their one schema."""

import dataclasses
import datetime
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from model.checkpoint import files
from model.checkpoint.answers import Answer, answer, telling
from pipeline.footer import read_footer
from schemas.error import ErrorCode, RowError, SetupError

_VERSION_KEYS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "created")

_HTTP = ("http://", "https://")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listed:
    """A file that the input names.

    Attributes:
      base: the folder or URL that it was found under.
      name: its path below ``base``.
      path: what its rows' ids derive from: ``name``, or its path below ``--input-root``.
      size: in bytes.
      version: ETag, generation or time of change; only tells whether the file changed.
      refused: why its store says nothing of it, though somebody named it; empty if it does.
    """

    base: str
    name: str
    path: str
    size: int
    version: str
    refused: str = ""

    @property
    def url(self) -> str:
        """Where it is read."""
        return files.join(self.base, self.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A listed file with what its footer says.

    Attributes:
      file: the file.
      footer: hash of the file's end: the footer, and some of what stands before it; empty if it
        cannot be read.
      metadata: the parsed footer; None if it cannot be read.
      fault: why none of the file's rows can be taken, or None.
    """

    file: Listed
    footer: str = ""
    metadata: pq.FileMetaData | None = None
    fault: RowError | None = None


def list_inputs(
    inputs: Sequence[str], root: str | None = None, output: str | None = None
) -> list[Listed]:
    """All files of the input, sorted by the path that their rows' ids derive from.

    A folder stands for all ``*.parquet`` below it. In folders and globs, names that start with
    ``_`` or ``.`` are left out, as dataset readers do, and so is what lies in the output folder,
    which may be one of theirs; a file named outright is always taken.

    Args:
      inputs: files, globs, folders.
      root: folder that the ids' paths are relative to; None takes, for each input, the longest
        folder without a wildcard.
      output: folder whose files are the run's own.

    Raises:
      SetupError: nothing matched, or two files would have the same ids.
    """
    listed: dict[str, Listed] = {}
    for pattern in inputs:
        found = _find(pattern, root, output)
        if not found and output is not None and _find(pattern, root, None):
            raise SetupError(
                f"all input files that match {files.redact(pattern)} lie in the output folder "
                f"{files.redact(output)}, whose files are the run's own; choose another --output"
            )
        if not found:
            raise SetupError(
                f"no input file matches {files.redact(pattern)}; give Parquet files, a folder that "
                "holds them, or a quoted glob"
            )
        for file in found:
            other = listed.setdefault(file.path, file)
            if other.url != file.url:
                raise SetupError(
                    f"input files {files.redact(other.url)} and {files.redact(file.url)} are both "
                    f"{file.path!r} below their folders, so their rows would share ids; "
                    "name a folder above both: --input-root FOLDER"
                )
    return sorted(listed.values(), key=lambda file: file.path)


def read_footers(listed: Iterable[Listed]) -> list[Shard]:
    """The footers of all files, read in parallel; a file without a readable one has a fault.

    Raises:
      OutOfReach: a store does not answer, which says nothing of its file.
    """

    def read(file: Listed) -> Shard:
        if file.refused:
            message = f"{files.redact(file.url)} may not be read: {file.refused}"
            return Shard(file=file, fault=RowError(ErrorCode.INPUT_UNREADABLE, message))
        try:
            end, metadata = read_footer(file.url, file.size)
        except files.OutOfReach:
            raise
        except SetupError as error:
            return Shard(file=file, fault=RowError(ErrorCode.INPUT_UNREADABLE, str(error)))
        return Shard(file=file, footer=end_digest(end), metadata=metadata)

    return files.in_parallel(read, list(listed))


def end_digest(end: bytes) -> str:
    """Hash of a file's last bytes, as ``read_footer`` gives them."""
    return hashlib.blake2b(end, digest_size=16).hexdigest()


def version_of(info: Mapping[str, Any]) -> str:
    """What tells whether a file changed: its ETag, generation or time of change, by its store."""
    value = next((info[key] for key in _VERSION_KEYS if info.get(key)), "")
    # Some stores tell one time as a number in a listing, and as a date when asked for the file.
    return str(value.timestamp() if isinstance(value, datetime.datetime) else value)


def _find(pattern: str, root: str | None, output: str | None) -> list[Listed]:
    pattern = files.absolute(pattern)
    fs, path = files.split(pattern)
    try:
        fs.invalidate_cache()
        literal = not _is_glob(pattern) or fs.exists(path)
        info = _info(fs, path, pattern) if literal else None
        if info and info["type"] == "directory":
            base, entries = pattern, fs.find(path, detail=True)
            keep = _visible_parquet
        elif literal:
            entries = {path: info} if info else {}
            base, keep = files.parent(pattern), _anything
        else:
            base, entries = _wildcard_free(pattern), fs.glob(path, detail=True)
            keep = _visible
    except SetupError:
        raise
    except Exception as error:  # each store's client brings exception classes of its own
        reason = files.without_secrets(" ".join(str(error).split()), pattern)[:300]
        reason = reason or type(error).__name__
        raise SetupError(
            f"cannot list {files.redact(pattern)}: {reason}; check the path, and this account's "
            "rights to it"
        ) from None
    prefix = _prefix(_unsigned(base))
    own = None
    if output is not None and keep is not _anything and type(files.split(output)[0]) is type(fs):
        own = _prefix(output)
    found = []
    for key, info in entries.items():
        name = _unsigned(key).removeprefix(prefix)
        if info["type"] == "directory" or not keep(name) or (own and key.startswith(own)):
            continue
        found.append(
            Listed(
                base=base,
                name=name,
                path=name if root is None else _below(root, key),
                size=fs.size(key) if info["size"] is None else info["size"],
                version=version_of(info),
                refused=info.get("refused", ""),
            )
        )
    return found


def _info(fs: Any, path: str, url: str) -> dict[str, Any] | None:
    """What stands there, or None; a store that is out of reach has not said that nothing does.

    Nor has one that refuses to tell: what it refuses is a file with a fault, and others beside it
    may be good.
    """
    try:
        return fs.info(path)
    except Exception as error:
        said, why = answer(error)
        if said is Answer.REFUSED:
            reason = getattr(error, "strerror", None) or str(error) or "permission denied"
            return _refused(why or reason, url)
        if said is Answer.GONE:
            return None
        if (cause := telling(error)) is not error:
            raise cause from None
        raise


def _refused(why: str, url: str) -> dict[str, Any]:
    reason = files.without_secrets(" ".join(why.split()), url)[:200]
    return {"type": "file", "size": 0, "refused": reason}


def _prefix(folder: str) -> str:
    return files.split(folder)[1].rstrip("/") + "/"


def _is_glob(pattern: str) -> bool:
    # In http URLs a question mark starts the query.
    magic = "[*\\[]" if pattern.startswith(_HTTP) else "[*?\\[]"
    return re.search(magic, pattern) is not None


def _wildcard_free(pattern: str) -> str:
    while _is_glob(pattern):
        pattern = pattern.rpartition("/")[0] if "/" in pattern else "."
    return pattern or "/"


def _visible(name: str) -> bool:
    return not any(part.startswith(("_", ".")) for part in name.split("/"))


def _visible_parquet(name: str) -> bool:
    return _visible(name) and name.endswith((".parquet", ".pq"))


def _anything(name: str) -> bool:
    return True


def _unsigned(url: str) -> str:
    """Without an http URL's query: a signature, maybe, which is secret and no part of a name."""
    return url.partition("?")[0] if url.startswith(_HTTP) else url


def _below(root: str, key: str) -> str:
    path, prefix = _unsigned(key), _prefix(_unsigned(root))
    if not path.startswith(prefix):
        raise SetupError(
            f"input file {path} does not lie below --input-root {files.redact(root)}; "
            "name a folder above all inputs"
        )
    return path.removeprefix(prefix)
