"""Makes a store of any checkpoint: file by file, streamed, taken up again where it was killed.

At the end all files are read again and compared with their checksums; only then the index appears.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

import ml_dtypes
import numpy as np

from model.checkpoint import files, sink
from model.checkpoint.base import HostTensor, ReadParts
from model.checkpoint.huggingface import HuggingFaceCheckpoint
from model.checkpoint.int4 import pack_int4
from model.checkpoint.journal import Journal, Sums
from model.checkpoint.quantize_int8 import Recovery
from model.checkpoint.recode import read_as
from model.checkpoint.source import open_checkpoint
from model.checkpoint.store import TOKENIZER, StoreCheckpoint
from model.checkpoint.store_index import INDEX, StoreIndex, checksum
from model.checkpoint.store_plan import BLOCK_BYTES, Piece, StoreFile, default_shards
from model.memory import peak_bytes
from model.tokenizer import Tokenizer
from schemas.error import SetupError

CONFIG = "config.json"
_WORKERS = 2
"""Files in the making at once; each holds up to one tensor in memory."""

Progress = Callable[[str, int, int], None]
"""Told of a phase (``converting``, ``verifying``), bytes done, and bytes in all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a conversion did, of JSON-ready types.

    Attributes:
      url: where the store lies, with no secret in it.
      source: what it was made from: ``kind`` and ``identity``.
      identity: the store's own.
      weights: what its matrices are stored as.
      shards: devices that they are cut for.
      nbytes: size of its tensor files.
      files: how many these are.
      resumed: how many of them were there before.
      groups: scale groups that were made of a port's numbers.
      exact_groups: those of them that give these numbers back, bit for bit.
      seconds: that writing took.
      verify_seconds: that reading again and comparing took.
      peak_bytes: most memory that the process held.
    """

    url: str
    source: Mapping[str, str]
    identity: str
    weights: str
    shards: int
    nbytes: int
    files: int
    resumed: int
    groups: int
    exact_groups: int
    seconds: float
    verify_seconds: float
    peak_bytes: int


def convert(
    source_url: str,
    url: str,
    *,
    weights: str | None = None,
    shards: int | None = None,
    overwrite: bool = False,
    progress: Progress = lambda phase, done, total: None,
) -> Conversion:
    """Makes a store; started again after an interruption, it goes on.

    Args:
      source_url: a checkpoint of any kind.
      url: the folder to write, by fsspec URL or local path.
      weights: one of ``params.WEIGHTS``; by default the source's.
      shards: devices that the weights are cut for, 1, 2, 4 or 8; by default the most that fit. Any
        of these numbers of devices can load the store; for this one it is fastest.
      overwrite: whether to replace what is there.
      progress: told how far it is.

    Raises:
      SetupError: the source is faulty or cannot be stored so, the folder holds something else, or
        what was written does not read back as it should.
    """
    source, url = open_checkpoint(source_url), files.absolute(url)
    source.verify()
    tokenizer = source.tokenizer_url and Tokenizer.load(source.tokenizer_url)
    if tokenizer:
        tokenizer.check_against(source.config)
    if url.rstrip("/") == files.absolute(source_url).rstrip("/"):
        raise SetupError(f"--to {files.redact(url)}: is the source itself; choose another folder")
    index = StoreIndex(
        source.config,
        weights or source.weights,
        shards or default_shards(source.config),
        {"kind": source.kind, "identity": source.identity()},
        {},
    )
    read = read_as(source, index.weights)
    planned = index.files()
    started = time.perf_counter()
    journal = Journal(url, index, overwrite)
    resumed = len(journal.done)
    _write_files(read, url, planned, journal, progress)
    index = dataclasses.replace(index, checksums={f.name: journal.done[f.name] for f in planned})
    recovery = source.recovery if isinstance(source, HuggingFaceCheckpoint) else Recovery()
    written = time.perf_counter()
    store = StoreCheckpoint(url, index)
    _verify_files(store, planned, journal, progress)
    if tokenizer:
        sink.write_bytes(files.join(url, TOKENIZER), tokenizer.model)
    sink.write_bytes(files.join(url, CONFIG), index.config.to_json().encode())
    sink.write_bytes(files.join(url, INDEX), index.to_json().encode())
    journal.close()
    return Conversion(
        url=store.url,
        source=index.source,
        identity=store.identity(),
        weights=index.weights,
        shards=index.shards,
        nbytes=store.nbytes,
        files=len(planned),
        resumed=resumed,
        groups=recovery.groups,
        exact_groups=recovery.exact,
        seconds=written - started,
        verify_seconds=time.perf_counter() - written,
        peak_bytes=peak_bytes(),
    )


def _write_files(
    read: ReadParts,
    url: str,
    planned: list[StoreFile],
    journal: Journal,
    progress: Progress,
) -> None:
    count = _Counter("converting", planned, progress)
    for file in planned:
        if file.name in journal.done:
            count.add(file)

    def write(file: StoreFile) -> None:
        sums: Sums = {}
        with sink.open_write(files.join(url, file.name)) as out:
            out.write(file.header)
            for piece, array in _arrays(read, file):
                sums[piece.name] = _write_array(out, array)
        journal.add(file, sums)
        count.add(file)

    rest = [file for file in planned if file.name not in journal.done]
    files.in_parallel(write, rest, _WORKERS)


def _arrays(read: ReadParts, file: StoreFile) -> Iterator[tuple[Piece, np.ndarray]]:
    """The arrays of a file in the order of its pieces, each tensor's parts read once they are due.

    Parts come device by device, and of each device tensor by tensor: the readers take turns.
    """
    shards = 1 + max((piece.index or 0) for piece in file.pieces)
    readers = {tensor: iter(read(tensor, shards)) for tensor in file.tensors}
    part: HostTensor | None = None
    for piece in file.pieces:
        if piece.field == "values":
            part = None  # none is held while the next is read
            part = next(readers[piece.tensor])
        assert part is not None
        array = getattr(part, piece.field)
        if array.dtype == ml_dtypes.int4:
            array = pack_int4(array)
        assert (array.dtype, array.shape) == (piece.dtype, piece.shape), piece.name
        yield piece, array


def _write_array(out: BinaryIO, array: np.ndarray) -> str:
    """Writes an array's bytes; the checksums of its blocks."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    sums = []
    for at in range(0, data.size, BLOCK_BYTES):
        block = data[at : at + BLOCK_BYTES]
        sums.append(checksum(block))
        out.write(block.data)
    return "".join(sums)


def _verify_files(
    store: StoreCheckpoint, planned: list[StoreFile], journal: Journal, progress: Progress
) -> None:
    """Reads everything again and compares it; forgets a file that is damaged."""
    store.verify()
    count = _Counter("verifying", planned, progress)

    def check(file: StoreFile) -> SetupError | None:
        try:
            store.check_file(file)
        except SetupError as fault:
            return fault
        count.add(file)
        return None

    faults = files.in_parallel(check, planned, _WORKERS)
    found = [(file, fault) for file, fault in zip(planned, faults, strict=True) if fault]
    if found:
        journal.forget([file for file, _ in found])
        more = f" ({len(found) - 1} more files are faulty)" if len(found) > 1 else ""
        raise SetupError(
            f"{found[0][1]}{more}; start the conversion again, and it writes them anew"
        )


class _Counter:
    """Adds up what several threads have done."""

    def __init__(self, phase: str, planned: list[StoreFile], progress: Progress) -> None:
        self._phase, self._progress = phase, progress
        self._done, self._total = 0, sum(file.nbytes for file in planned)
        self._lock = threading.Lock()

    def add(self, file: StoreFile) -> None:
        with self._lock:
            self._done += file.nbytes
            self._progress(self._phase, self._done, self._total)
