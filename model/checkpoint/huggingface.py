"""The ports of Grok-1 to Hugging Face: safetensors shards that hold the weights as numbers.

The port's numbers are the release's int8 weights times their scales, rounded; the integers are
found again where they can be (``quantize_int8``). PyTorch stores a matrix as [out, in].
"""

import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import ml_dtypes
import numpy as np

from model.checkpoint import files
from model.checkpoint.base import HostTensor, first_names, identify, parse_object, wanted_parts
from model.checkpoint.location import ArrayLocation, describe
from model.checkpoint.parts import read_parts
from model.checkpoint.ports import HEAD, Port, count_names, find_port, port_config, weight_map
from model.checkpoint.quantize_int8 import Recovery, quantize_int8
from model.checkpoint.safetensors_header import read_header
from model.config import Grok1Config
from model.params import Param, Tensor, tensors
from schemas.error import SetupError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
CONFIG = "config.json"
TOKENIZER = "tokenizer.model"

_INDEX_BYTES = 16 << 20
_CONFIG_BYTES = 1 << 20
_MOST_MISSING = 10
"""A config that asks for so many times what there is is not worth a list of what is missing, which
would be as long as it likes."""

_FLOATS = ("bfloat16", "float16", "float32")
_NO_WEIGHT = re.compile(r"(.*\.)?rotary_emb\.inv_freq")


class HuggingFaceCheckpoint:
    """A port's checkpoint; see ``base.Checkpoint`` for what it offers.

    Attributes:
      recovery: how many scale groups of what was read were found again exactly.
    """

    kind = "huggingface"

    def __init__(
        self,
        url: str,
        port: Port,
        config: Grok1Config,
        shard_of: Mapping[str, str],
        sizes: Mapping[str, int],
        weights: str = "int8",
    ) -> None:
        """Args: the folder, its port and config, each name's shard, the files' sizes."""
        self.url = files.redact(url)
        self.config, self.weights = config, weights
        self.recovery = Recovery()
        self.nbytes = sum(sizes.get(name, 0) for name in set(shard_of.values()))
        self.tokenizer_url = files.join(url, TOKENIZER) if TOKENIZER in sizes else None
        self._folder, self._port, self._shard_of, self._sizes = url, port, shard_of, sizes
        self._names = {t: port.names_of(t) for t in tensors(config, weights)}
        self._headers: dict[str, dict[str, ArrayLocation]] = {}
        self._lock = threading.Lock()

    @classmethod
    def find(cls, url: str) -> "HuggingFaceCheckpoint | None":
        """The port's checkpoint in a folder.

        Raises:
          SetupError: its index or config cannot be read, or it is of another model.
        """
        sizes = files.list_files(url)
        if INDEX in sizes:
            where = files.join(url, INDEX)
            index = parse_object(files.read_bytes(where, _INDEX_BYTES), files.redact(where))
            shard_of = weight_map(index, files.redact(where))
        elif WHOLE in sizes:
            shard_of = dict.fromkeys(_header(url, WHOLE, sizes), WHOLE)
        else:
            if any(name.startswith("pytorch_model") for name in sizes):
                raise SetupError(
                    f"{files.redact(url)} holds PyTorch pickles, which run what they ask for and "
                    "are not read here: save the model as safetensors"
                )
            return None
        port = find_port(shard_of)
        if port is None:
            raise SetupError(
                f"{files.redact(url)} is a checkpoint of another model: its tensors have not the "
                "names of either port of Grok-1"
            )
        where = files.join(url, CONFIG)
        if CONFIG not in sizes:
            raise SetupError(f"{files.redact(url)} has no {CONFIG}: complete the download")
        values = parse_object(files.read_bytes(where, _CONFIG_BYTES), files.redact(where))
        try:
            config = port_config(values)
        except SetupError as error:
            raise SetupError(
                f"{files.redact(where)}: {error}; use the {CONFIG} that belongs to the checkpoint"
            ) from None
        asked = sum(count_names(tensor) for tensor in tensors(config))
        if asked > _MOST_MISSING * len(shard_of):
            raise SetupError(
                f"{files.redact(where)} asks for {asked:,} arrays, of which {INDEX} names no more "
                f"than {len(shard_of):,}: use the {CONFIG} that belongs to the checkpoint"
            )
        return cls(url, port, config, shard_of, sizes)

    def as_numbers(self) -> "HuggingFaceCheckpoint":
        """The same checkpoint with its matrices as bfloat16 numbers."""
        return HuggingFaceCheckpoint(
            self._folder, self._port, self.config, self._shard_of, self._sizes, "bf16"
        )

    def tensors(self) -> list[Tensor]:
        """All tensors of the model, layer by layer."""
        return list(self._names)

    def name_of(self, tensor: Tensor) -> str:
        """How messages call a tensor: ``layers.3.gate (model.layers.3.moe_block...)``."""
        return f"{tensor.label} ({self._names[tensor][0]})"

    def missing(self) -> list[str]:
        """The tensors that are not there whole, as ``name_of`` calls them."""

        def there(name: str) -> bool:
            return self._shard_of.get(name) in self._sizes

        return [self.name_of(t) for t, names in self._names.items() if not all(map(there, names))]

    def unexpected(self) -> list[str]:
        """Names of arrays that no tensor of the model belongs to."""
        known = {name for names in self._names.values() for name in names} | {HEAD}
        return sorted(n for n in self._shard_of if n not in known and not _NO_WEIGHT.fullmatch(n))

    def verify(self) -> None:
        """Makes sure from names, sizes and the shards' headers that all is there.

        Raises:
          SetupError: tensors are missing, cut short, or of another model.
        """
        if missing := self.missing():
            raise SetupError(
                f"the checkpoint at {self.url} misses {len(missing)} of {len(self._names)} "
                f"tensors: {first_names(missing)}; complete the download"
            )
        if extra := self.unexpected():
            raise SetupError(
                f"the checkpoint at {self.url} has {len(extra)} more arrays than its {CONFIG} "
                f"asks for: {first_names(extra)}; use the {CONFIG} that belongs to it"
            )
        files.in_parallel(self._read_header, sorted(set(self._shard_of.values())))
        for tensor in self._names:
            self.check(tensor)

    def check(self, tensor: Tensor) -> Mapping[str, int]:
        """Compares a tensor's arrays with its declaration; how many numbers it has of each dtype.

        Raises:
          SetupError: they differ; the message names tensor, array, what is expected and found.
        """
        counts: dict[str, int] = {}
        for name in self._names[tensor]:
            array = self._locate(tensor, name)
            counts[array.dtype.name] = counts.get(array.dtype.name, 0) + math.prod(array.shape)
        return counts

    def identity(self) -> str:
        """Hash over config, index and the ends of the shards."""
        names = {INDEX, CONFIG, *self._shard_of.values()} & set(self._sizes)
        return identify((n, files.join(self._folder, n), self._sizes[n]) for n in names)

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

        Experts are stored apart, so that one matrix of numbers is in memory at a time. Weights that
        are split by rows of ours, columns of the port, are made for all devices together.
        """
        param, wanted = tensor.param, wanted_parts(tensor, count, wanted)
        if param.stored == "float32":
            yield from self._read_numbers(tensor, count, wanted)
            return
        by_columns = param.split_axis == len(param.shape) - 1
        for some in ([index] for index in wanted) if by_columns else [list(wanted)]:
            made = [_empty(param.part(count)) for _ in some]
            for expert, name in enumerate(self._names[tensor]):
                axis = 0 if by_columns else 1
                arrays = self._read_array(tensor, name, axis, count, some)
                for part, numbers in zip(made, arrays, strict=True):
                    self._fill(part, expert, numbers)
            while made:
                yield made.pop(0)

    def stream(self) -> Iterator[tuple[Tensor, HostTensor]]:
        """Reads tensor after tensor, holding one at a time."""
        for tensor in self._names:
            yield tensor, self.read(tensor)

    def _read_numbers(
        self, tensor: Tensor, count: int, wanted: Sequence[int]
    ) -> Iterator[HostTensor]:
        """A weight that is float32 in ours: norms, the router, the embedding."""
        (name,) = self._names[tensor]
        count = 1 if tensor.param.split_axis is None else count
        heads: Iterator[np.ndarray | None] = iter([None] * len(wanted))
        if name == self._port.names["embedding"] and HEAD in self._shard_of:
            heads = self._read_array(tensor, HEAD, 0, count, wanted)
        arrays = self._read_array(tensor, name, 0, count, wanted)
        for array, head in zip(arrays, heads, strict=True):
            if head is not None and not np.array_equal(array, head):
                raise SetupError(
                    f"{self.url}: {HEAD} differs from {name}, which the model uses for both: the "
                    "checkpoint is of another model"
                )
            numbers = array.T if tensor.param.name == "router" else array
            yield HostTensor(np.ascontiguousarray(numbers.astype(np.float32)))

    def _fill(self, part: HostTensor, expert: int, numbers: np.ndarray) -> None:
        """Puts a matrix [out, in] of numbers into a part, of which it may be one expert's."""
        lead = (expert,) if part.values.ndim == 3 else ()
        if part.scales is None:
            part.values[lead] = numbers.T
            return
        groups = part.scales.shape[-2]
        out, rows = numbers.shape
        values, scales, exact = quantize_int8(numbers.reshape(out * groups, rows // groups))
        self.recovery.add(exact)
        part.values[lead] = values.reshape(out, rows).T
        part.scales[lead] = scales.reshape(out, groups).T

    def _read_array(
        self, tensor: Tensor, name: str, axis: int, count: int, wanted: Sequence[int]
    ) -> Iterator[np.ndarray]:
        array = self._locate(tensor, name)
        url = files.join(self._folder, self._shard_of[name])
        return read_parts(partial(files.read_into, url), array, axis, count, wanted)

    def _locate(self, tensor: Tensor, name: str) -> ArrayLocation:
        shard = self._shard_of.get(name, "")
        if shard not in self._sizes:
            raise SetupError(f"{name} in {self.url} is missing; complete the download")
        array = self._read_header(shard).get(name)
        shape = tensor.param.shape if name in (HEAD, self._port.names["embedding"]) else None
        shape = shape or tuple(reversed(tensor.param.shape[-2:]))
        if array is None or array.shape != shape or array.dtype.name not in _FLOATS:
            found = array or "nothing of that name"
            raise SetupError(
                f"{name} in {shard} of {self.url} is {found}, but its {CONFIG} asks for "
                f"{describe('bfloat16', shape)}: use the {CONFIG} that belongs to the checkpoint"
            )
        return array

    def _read_header(self, shard: str) -> dict[str, ArrayLocation]:
        with self._lock:
            if (header := self._headers.get(shard)) is not None:
                return header
        header = _header(self._folder, shard, self._sizes)
        with self._lock:
            return self._headers.setdefault(shard, header)


def _header(url: str, shard: str, sizes: Mapping[str, int]) -> dict[str, ArrayLocation]:
    path = files.join(url, shard)
    where = f"{shard} in {files.redact(url)}"
    return read_header(lambda a, b: files.read_range(path, a, b), sizes[shard], where)


def _empty(param: Param) -> HostTensor:
    """A part to be filled."""
    if not param.quantized:
        return HostTensor(np.empty(param.shape, ml_dtypes.bfloat16))
    scales = np.empty(param.scales_shape, ml_dtypes.bfloat16)
    return HostTensor(np.empty(param.shape, np.int8), scales)
