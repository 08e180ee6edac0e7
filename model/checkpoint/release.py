"""The released checkpoint's own layout: ``ckpt-0/tensor00000_000`` and so on, one pickle a tensor.

Files are numbered in the order of the tensors' names sorted as text: layer 10 before layer 2. No
pickle is unpickled; see ``pickle_read``.
"""

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from model.checkpoint import files
from model.checkpoint.base import (
    HostTensor,
    first_names,
    identify,
    scales_of_part,
    wanted_parts,
)
from model.checkpoint.location import ArrayLocation, TensorLocation, describe
from model.checkpoint.parts import read_parts
from model.checkpoint.pickle_read import locate_arrays
from model.config import GROK_1, Grok1Config
from model.params import Tensor, tensors
from schemas.error import SetupError

FOLDER = "ckpt-0"
CONFIG = "config.json"
TOKENIZER = "tokenizer.model"
TENSOR_FILE = re.compile(r"tensor\d{5,}_\d{3}")

_CONFIG_BYTES = 1 << 20


def file_order(config: Grok1Config) -> list[Tensor]:
    """All tensors in the order of the files: by the text of their release names."""
    return sorted(tensors(config), key=lambda tensor: tensor.release_name)


def file_name(index: int) -> str:
    """The name of the file that holds the tensor at this place of the order."""
    return f"tensor{index:05d}_000"


class ReleaseCheckpoint:
    """A checkpoint in the release's layout; see ``base.Checkpoint`` for what it offers."""

    kind = "release"
    weights = "int8"

    def __init__(self, root: str, folder: str, sizes: dict[str, int]) -> None:
        """Args: the URL of the checkpoint, that of its tensor files, and these files' sizes."""
        self.url = files.redact(root)
        self._root, self._folder, self._sizes = root, folder, sizes
        self.nbytes = sum(sizes.values())
        self._config_url = self._beside(CONFIG)
        self.tokenizer_url = self._beside(TOKENIZER)
        self.config = self._read_config()
        self._names = {t: file_name(i) for i, t in enumerate(file_order(self.config))}
        # What ``verify`` finds out, a load need not ask the store for again.
        self._located: dict[Tensor, TensorLocation] = {}

    @classmethod
    def find(cls, url: str) -> "ReleaseCheckpoint | None":
        """The checkpoint at a URL: a folder that holds ``ckpt-0``, or ``ckpt-0`` itself."""
        inner = files.join(url, FOLDER)
        above = files.parent(url) if files.basename(url) == FOLDER else url
        for root, folder in ((url, inner), (above, url)):
            found = files.list_files(folder).items()
            if sizes := {name: size for name, size in found if TENSOR_FILE.fullmatch(name)}:
                return cls(root, folder, sizes)
        return None

    def tensors(self) -> list[Tensor]:
        """All tensors of the model, in the order of the files."""
        return list(self._names)

    def name_of(self, tensor: Tensor) -> str:
        """How messages call a tensor: ``layers.3.gate (ckpt-0/tensor00038_000)``."""
        return f"{tensor.label} ({FOLDER}/{self._names[tensor]})"

    def missing(self) -> list[str]:
        """The tensors that have no file, as ``name_of`` calls them."""
        return [self.name_of(t) for t, name in self._names.items() if name not in self._sizes]

    def unexpected(self) -> list[str]:
        """Tensor files that no tensor of the model belongs to."""
        return sorted(set(self._sizes) - set(self._names.values()))

    def verify(self) -> None:
        """Makes sure from names, sizes and the files' beginnings that all is there.

        Raises:
          SetupError: tensors are missing, cut short, or of another model.
        """
        whose = "" if self._config_url else f" (there is no {CONFIG}, so it should be Grok-1's)"
        if missing := self.missing():
            raise SetupError(
                f"the checkpoint at {self.url} misses {len(missing)} of {len(self._names)} "
                f"tensors{whose}: {first_names(missing)}; complete the download"
            )
        if extra := self.unexpected():
            raise SetupError(
                f"the checkpoint at {self.url} has files beyond the "
                f"{len(self._names)} tensors of its config{whose}: {first_names(extra)}; "
                f"put the {CONFIG} that belongs to it beside {FOLDER}"
            )
        sizes = {tensor: self._sizes[name] for tensor, name in self._names.items()}
        if short := [self.name_of(t) for t, size in sizes.items() if size < _least_bytes(t)]:
            raise SetupError(
                f"the checkpoint at {self.url} has files too small for their tensors{whose}: "
                f"{first_names(short)}; complete the download"
            )
        files.in_parallel(self.check, self._names)

    def check(self, tensor: Tensor) -> Mapping[str, int]:
        """Compares a tensor's file with its declaration; how many numbers it has of each dtype.

        Raises:
          SetupError: it differs; the message names file, tensor, what is expected and found.
        """
        location = self.locate(tensor)
        parts = (location.values, location.scales)
        return {part.dtype.name: math.prod(part.shape) for part in parts if part}

    def identity(self) -> str:
        """Hash over ``config.json`` and the tensor files that belong to the model."""
        members = [
            (f"{FOLDER}/{name}", files.join(self._folder, name), self._sizes[name])
            for name in self._names.values()
            if name in self._sizes
        ]
        if url := self._config_url:
            members.append((CONFIG, url, len(files.read_bytes(url, _CONFIG_BYTES))))
        return identify(members)

    def locate(self, tensor: Tensor) -> TensorLocation:
        """Where a tensor's arrays lie in its file, compared with its declaration.

        Raises:
          UnsafePickle: the file asks for something beyond arrays.
          SetupError: it is missing, unreadable or unlike its declaration.
        """
        if (known := self._located.get(tensor)) is not None:
            return known
        location = self._locate(tensor, self._names[tensor])
        expected, found = _declared(tensor), str(location)
        if found != expected:
            raise SetupError(
                f"{self.name_of(tensor)} in {self.url} holds {found}, but its config asks for "
                f"{expected}: use the {CONFIG} that belongs to the checkpoint"
            )
        self._located[tensor] = location
        return location

    def read(self, tensor: Tensor) -> HostTensor:
        """Reads one tensor.

        Raises:
          SetupError: it is missing, unreadable or unlike its declaration.
        """
        return next(self.read_parts(tensor, 1))

    def read_parts(
        self, tensor: Tensor, count: int, wanted: Sequence[int] | None = None
    ) -> Iterator[HostTensor]:
        """Reads what devices hold of a tensor; see ``base.Checkpoint``.

        Weights that are split along their last axis are in memory together, since each line of
        their file holds a piece of every part.
        """
        location, param, url = self.locate(tensor), tensor.param, self.file_url(tensor)
        wanted = wanted_parts(tensor, count, wanted)
        axis, count = (0, 1) if param.split_axis is None else (param.split_axis, count)
        values = _read_array_parts(url, location.values, axis, count, wanted)
        scales = None if location.scales is None else _read_array(url, location.scales)
        for index, part in zip(wanted, values, strict=True):
            own = None if scales is None else scales_of_part(param, scales, index, count)
            yield HostTensor(part, own)

    def stream(self) -> Iterator[tuple[Tensor, HostTensor]]:
        """Reads tensor after tensor in the order of the files, holding one at a time."""
        for tensor in self._names:
            yield tensor, self.read(tensor)

    def file_url(self, tensor: Tensor) -> str:
        """The URL of a tensor's file, with its secrets, for ranged reads."""
        return files.join(self._folder, self._names[tensor])

    def _locate(self, tensor: Tensor, name: str) -> TensorLocation:
        where = f"{tensor.label} ({FOLDER}/{name}) in {self.url}"
        if name not in self._sizes:
            raise SetupError(f"{where} is missing; complete the download")
        url = files.join(self._folder, name)
        return locate_arrays(lambda a, b: files.read_range(url, a, b), self._sizes[name], where)

    def _beside(self, name: str) -> str | None:
        """The URL of a file in the checkpoint's folder, or beside the tensor files."""
        for folder in dict.fromkeys((self._root, self._folder)):
            if files.exists(url := files.join(folder, name)):
                return url
        return None

    def _read_config(self) -> Grok1Config:
        values: Any = dataclasses.asdict(GROK_1)
        if self._config_url is None:
            del values["model_shards"]
            return self._with_shards(values)
        text = files.read_bytes(self._config_url, _CONFIG_BYTES)
        with contextlib.suppress(ValueError, RecursionError):  # from_json says what is wrong
            values = json.loads(text)
        try:
            if isinstance(values, dict) and "model_shards" not in values:
                return self._with_shards(values)
            return Grok1Config.from_json(text)
        except SetupError as error:
            raise SetupError(
                f"{files.redact(self._config_url)}: {error}; use the {CONFIG} that belongs to the "
                "checkpoint"
            ) from None

    def _with_shards(self, values: dict[str, Any]) -> Grok1Config:
        """The config with ``model_shards`` (G) as the scales of a row-parallel weight have it."""
        order = file_order(Grok1Config.from_mapping({**values, "model_shards": 1}))
        index = next(i for i, tensor in enumerate(order) if tensor.param.name == "attn_out")
        with contextlib.suppress(SetupError):  # a fault of the file is told when it is read
            location = self._locate(order[index], file_name(index))
            shape = location.scales.shape if location.scales else ()
            groups = {"model_shards": shape[0] if shape else 0}
            config = Grok1Config.from_mapping({**values, **groups})
            if str(location) == _declared(file_order(config)[index]):
                return config
        return Grok1Config.from_mapping(values)


def _declared(tensor: Tensor) -> str:
    param = tensor.param
    if not param.quantized:
        return describe("float32", param.shape)
    scales = describe("bfloat16", param.scales_shape)
    return f"{describe('int8', param.shape)} with scales {scales}"


def _least_bytes(tensor: Tensor) -> int:
    param = tensor.param
    if not param.quantized:
        return 4 * math.prod(param.shape)
    return math.prod(param.shape) + 2 * math.prod(param.scales_shape)


def _read_array_parts(
    url: str, location: ArrayLocation, axis: int, count: int, wanted: Sequence[int]
) -> Iterator[np.ndarray]:
    if location.sliceable:
        yield from read_parts(partial(files.read_into, url), location, axis, count, wanted)
        return
    whole = np.split(_read_array(url, location), count, axis)
    for index in wanted:
        yield np.ascontiguousarray(whole[index])


def _read_array(url: str, location: ArrayLocation) -> np.ndarray:
    data = files.read_buffer(url, location.offset, location.offset + location.length)
    if location.latin1:
        data = _from_latin1(data, url)
    if data.size != math.prod(location.shape) * location.dtype.itemsize:
        raise SetupError(
            f"{files.redact(url)} does not store as many bytes as its shape takes; fetch it again"
        )
    return data.view(location.dtype).reshape(location.shape, order=location.order)


def _from_latin1(data: np.ndarray, url: str) -> np.ndarray:
    try:
        return np.frombuffer(data.tobytes().decode().encode("latin-1"), np.uint8)
    except UnicodeError:
        raise SetupError(
            f"{files.redact(url)} stores text that is no bytes; fetch it again"
        ) from None
