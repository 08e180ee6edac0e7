"""A checkpoint made for serving: see ``store_plan`` for how it lies, ``convert`` for its making."""

import dataclasses
import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from model.checkpoint import files
from model.checkpoint.base import HostTensor, first_names, scales_of_part, wanted_parts
from model.checkpoint.int4 import unpack_int4
from model.checkpoint.location import describe
from model.checkpoint.safetensors_header import read_header
from model.checkpoint.store_index import INDEX, StoreIndex, checksum, read_index
from model.checkpoint.store_plan import BLOCK_BYTES, SUFFIX, Piece, StoreFile
from model.params import Tensor
from schemas.error import SetupError

TOKENIZER = "tokenizer.model"
JOURNAL = "_conversion"
"""Folder of what a conversion has done so far; gone once it is finished."""

_THREADS = 8


class StoreCheckpoint:
    """A store; see ``base.Checkpoint`` for what it offers.

    Attributes:
      index: what it says of itself.
    """

    kind = "store"

    def __init__(self, url: str, index: StoreIndex) -> None:
        """Args: the URL of the folder, and its index."""
        self.url = files.redact(url)
        self.index = index
        self.config, self.weights = index.config, index.weights
        self._folder = url
        self._files = index.files()
        self._sizes = files.list_files(url)
        self.nbytes = sum(self._sizes.get(file.name, 0) for file in self._files)
        tokenizer = files.join(url, TOKENIZER)
        self.tokenizer_url = tokenizer if TOKENIZER in self._sizes else None
        self._file_of = {tensor: file for file in self._files for tensor in file.tensors}
        self._starts: dict[str, dict[str, int]] = {}
        self._lock = threading.Lock()

    @classmethod
    def find(cls, url: str) -> "StoreCheckpoint | None":
        """The store at a URL.

        Raises:
          SetupError: its index cannot be read, or its conversion is not finished.
        """
        if files.exists(files.join(url, INDEX)):
            return cls(url, read_index(url))
        if files.list_files(files.join(url, JOURNAL)):
            raise SetupError(
                f"the conversion into {files.redact(url)} is not finished: start the same "
                "grok1 convert again, and it goes on"
            )
        return None

    def tensors(self) -> list[Tensor]:
        """All tensors of the model, in the order of the files."""
        return list(self._file_of)

    def name_of(self, tensor: Tensor) -> str:
        """How messages call a tensor: ``layers.3.gate (layer-003-gate.safetensors)``."""
        return f"{tensor.label} ({self._file_of[tensor].name})"

    def missing(self) -> list[str]:
        """The tensors that have no file, as ``name_of`` calls them."""
        absent = [file for file in self._files if file.name not in self._sizes]
        return [self.name_of(tensor) for file in absent for tensor in file.tensors]

    def unexpected(self) -> list[str]:
        """Tensor files that no tensor of the model belongs to."""
        known = {file.name for file in self._files}
        return sorted(name for name in self._sizes if name.endswith(SUFFIX) and name not in known)

    def verify(self) -> None:
        """Makes sure from names and sizes alone that all is there.

        Raises:
          SetupError: files are missing or of the wrong size.
        """
        absent = [file.name for file in self._files if file.name not in self._sizes]
        if absent:
            raise SetupError(
                f"the store at {self.url} misses {len(absent)} of {len(self._files)} files: "
                f"{first_names(absent)}; copy them again, or convert again"
            )
        wrong = [
            f"{file.name} has {self._sizes[file.name]} bytes instead of {file.nbytes}"
            for file in self._files
            if self._sizes[file.name] != file.nbytes
        ]
        if wrong:
            raise SetupError(
                f"the store at {self.url} has files of the wrong size: "
                f"{first_names(wrong)}; copy them again, or convert again"
            )

    def check(self, tensor: Tensor) -> Mapping[str, int]:
        """Compares a tensor's file with its declaration; how many numbers it has of each dtype.

        Raises:
          SetupError: it differs; the message names file, tensor, what is expected and found.
        """
        self._located(self._file_of[tensor])
        param = tensor.param
        counts = {param.stored: math.prod(param.shape)}
        if param.quantized:
            counts["bfloat16"] = math.prod(param.scales_shape)
        return counts

    def check_file(self, file: StoreFile) -> None:
        """Reads all of a file, and compares it with its checksums.

        Raises:
          SetupError: it is missing, cut short, damaged, or not what the index describes.
        """
        self._read_pieces(file, file.pieces, lambda _, size: np.empty(size, np.uint8))

    def identity(self) -> str:
        """Hash of the index, which has a checksum of every block."""
        return hashlib.sha256(self.index.to_json().encode()).hexdigest()

    def read(self, tensor: Tensor) -> HostTensor:
        """Reads one tensor, and compares it with its checksums.

        Raises:
          SetupError: it is missing, unreadable, damaged or unlike its declaration.
        """
        return next(self.read_parts(tensor, 1))

    def read_parts(
        self, tensor: Tensor, count: int, wanted: Sequence[int] | None = None
    ) -> Iterator[HostTensor]:
        """Reads what devices hold of a tensor; see ``base.Checkpoint``.

        For as many devices as the store was made for, or fewer, only the bytes of the wanted parts
        are read; for more of them, whole stored parts.
        """
        param, shards = tensor.param, self.index.shards
        wanted = wanted_parts(tensor, count, wanted)
        if param.split_axis is None:
            yield self._read_stored(tensor, None)
        elif shards % count == 0:
            for index in wanted:
                yield self._joined(tensor, index, count)
        else:
            more, stored = count // shards, param.part(shards)
            held, at = None, -1
            for index in wanted:
                if held is None or at != index // more:
                    held, at = None, index // more
                    held = self._read_stored(tensor, at)
                cut = np.split(held.values, more, param.split_axis)[index % more]
                scales = held.scales
                if scales is not None:
                    scales = scales_of_part(stored, scales, index % more, more)
                yield HostTensor(np.ascontiguousarray(cut), scales)

    def stream(self) -> Iterator[tuple[Tensor, HostTensor]]:
        """Reads tensor after tensor in the order of the files, holding one at a time."""
        for tensor in self._file_of:
            yield tensor, self.read(tensor)

    def _joined(self, tensor: Tensor, index: int, count: int) -> HostTensor:
        """One of ``count`` parts, from as many stored ones as make it up."""
        param, several = tensor.param, self.index.shards // count
        axis = param.split_axis
        assert axis is not None
        if several == 1:
            return self._read_stored(tensor, index)
        values, scales = None, []
        at = (slice(None),) * axis
        for place in range(several):
            stored = self._read_stored(tensor, index * several + place)
            if values is None:
                shape, dtype = param.part(count).shape, stored.values.dtype
                values = files.empty(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
            width = stored.values.shape[axis]
            values[(*at, slice(place * width, (place + 1) * width))] = stored.values
            if stored.scales is not None:
                scales.append(stored.scales)
        assert values is not None
        if not scales:
            return HostTensor(values)
        joined = np.concatenate(scales, axis)
        # Devices that share a scale group have stored it each.
        repeated = joined.shape[axis] // param.part(count).scales_shape[axis]
        return HostTensor(values, np.ascontiguousarray(joined[(*at, slice(None, None, repeated))]))

    def _read_stored(self, tensor: Tensor, index: int | None) -> HostTensor:
        """What the files have of a tensor for one device: values and scales, side by side."""
        file = self._file_of[tensor]
        pieces = [p for p in file.pieces if p.tensor == tensor and p.index == index]
        buffer = files.empty(sum(piece.nbytes for piece in pieces))

        self._read_pieces(file, pieces, lambda at, size: buffer[at : at + size])
        cut = pieces[0].nbytes
        values = buffer[:cut].view(pieces[0].dtype).reshape(pieces[0].shape)
        if tensor.param.stored == "int4":
            values = unpack_int4(values)
        if len(pieces) == 1:
            return HostTensor(values)
        scales = buffer[cut:].copy().view(pieces[1].dtype).reshape(pieces[1].shape)
        return HostTensor(values, scales)

    def _read_pieces(
        self, file: StoreFile, pieces: Sequence[Piece], place: Callable[[int, int], np.ndarray]
    ) -> None:
        """Reads pieces that lie one after another, and compares them with their checksums.

        Small ones are read by one request, large ones by several.

        Args:
          file: that holds them.
          pieces: which.
          place: gives the array to read so many bytes into that begin so far from the first.
        """
        url, start = files.join(self._folder, file.name), self._located(file)[pieces[0].name]

        def read(blocks: list[_Block]) -> None:
            first, size = blocks[0].at, sum(block.size for block in blocks)
            buffer = place(first, size)
            files.read_into(url, start + first, buffer)
            for block in blocks:
                at = block.at - first
                if checksum(buffer[at : at + block.size]) != block.checksum:
                    begin = start + block.at
                    raise SetupError(
                        f"{file.name} in {self.url} is damaged between bytes {begin} and "
                        f"{begin + block.size} ({block.piece.name}): its checksum differs; copy it "
                        "again, or convert again"
                    )

        requests: list[list[_Block]] = []
        room = 0
        for block in self._blocks(file, pieces):
            if block.size > room:
                requests.append([])
                room = BLOCK_BYTES
            requests[-1].append(block)
            room -= block.size
        files.in_parallel(read, requests, _THREADS)

    def _blocks(self, file: StoreFile, pieces: Sequence[Piece]) -> Iterator["_Block"]:
        at = 0
        for piece in pieces:
            sums = self.index.checksums[file.name][piece.name]
            for number, begin in enumerate(piece.blocks):
                size = min(BLOCK_BYTES, piece.nbytes - begin)
                yield _Block(piece, at + begin, size, sums[8 * number : 8 * number + 8])
            at += piece.nbytes

    def _located(self, file: StoreFile) -> dict[str, int]:
        """Where the pieces of a file begin, by its own header, compared with what it should hold.

        Raises:
          SetupError: the file is missing, cut short, or holds something else.
        """
        with self._lock:
            if (starts := self._starts.get(file.name)) is not None:
                return starts
        where, url = f"{file.name} in {self.url}", files.join(self._folder, file.name)
        if file.name not in self._sizes:
            raise SetupError(f"{where} is missing; copy it again, or convert again")
        found = read_header(lambda a, b: files.read_range(url, a, b), self._sizes[file.name], where)
        for piece in file.pieces:
            expected = describe(piece.dtype.name, piece.shape)
            held = found.get(piece.name)
            if str(held) != expected:
                raise SetupError(
                    f"{where} holds {held or 'no'} {piece.name} where its {INDEX} asks for "
                    f"{expected}: the two are not of one conversion; convert the checkpoint again"
                )
        starts = {piece.name: found[piece.name].offset for piece in file.pieces}
        with self._lock:
            self._starts[file.name] = starts
        return starts


@dataclasses.dataclass(frozen=True)
class _Block:
    """Bytes with one checksum: ``size`` of them, ``at`` so many from the first piece's begin."""

    piece: Piece
    at: int
    size: int
    checksum: str
