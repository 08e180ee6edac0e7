"""What every kind of checkpoint offers, so that readers need not know which kind they hold."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from model.checkpoint import files
from model.config import Grok1Config
from model.params import Param, Tensor
from schemas.error import SetupError

_END_BYTES = 64 << 10


@dataclasses.dataclass(frozen=True, slots=True)
class HostTensor:
    """One tensor in host memory, or a part of it, as its declaration (``Tensor.param``) says.

    Attributes:
      values: int8 if quantised, else float32.
      scales: bfloat16 ``[..., G, out]`` beside quantised values: rows ``[g K/G, (g+1) K/G)`` of
        the contracted axis times ``scales[..., g, :]`` are the weight. None otherwise.
    """

    values: np.ndarray
    scales: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)


ReadParts = Callable[[Tensor, int], Iterable[HostTensor]]
"""Reads what each of so many devices holds of a tensor; see ``Checkpoint.read_parts``."""


class Checkpoint(Protocol):
    """A checkpoint of one kind. Reads nothing large before it is asked to; thread-safe.

    Attributes:
      kind: ``release`` or another layout's name.
      url: its folder, with no secret in it.
      config: the model's shape.
      weights: what its matrices are stored as, one of ``params.WEIGHTS``.
      tokenizer_url: its ``tokenizer.model``, or None.
      nbytes: size of its tensor files.
    """

    kind: str
    url: str
    config: Grok1Config
    weights: str
    tokenizer_url: str | None
    nbytes: int

    def tensors(self) -> list[Tensor]:
        """All tensors of the model, in the order of the files."""
        ...

    def name_of(self, tensor: Tensor) -> str:
        """How messages call a tensor: its label and its file."""
        ...

    def missing(self) -> list[str]:
        """The tensors that have no file, as ``name_of`` calls them."""
        ...

    def unexpected(self) -> list[str]:
        """Names of tensor files that no tensor of the model belongs to."""
        ...

    def verify(self) -> None:
        """Makes sure, without reading any weights, that all is there.

        Raises:
          SetupError: tensors are missing, cut short, or of another model.
        """
        ...

    def check(self, tensor: Tensor) -> Mapping[str, int]:
        """Compares a tensor's file with its declaration; how many numbers it has of each dtype.

        Raises:
          SetupError: it differs; the message names file, tensor, what is expected and found.
        """
        ...

    def identity(self) -> str:
        """Hash that tells this checkpoint from another; see ``identify``."""
        ...

    def read(self, tensor: Tensor) -> HostTensor:
        """Reads one tensor, checked against its declaration.

        Raises:
          SetupError: it is missing, unreadable or unlike its declaration.
        """
        ...

    def read_parts(
        self, tensor: Tensor, count: int, wanted: Sequence[int] | None = None
    ) -> Iterator[HostTensor]:
        """Reads what ``count`` devices hold of a tensor, device after device.

        Each part is as ``tensor.param.part(count)`` declares. A tensor that is not split has one
        part, whatever the count. As few bytes as the layout allows are read and kept: no part is
        kept once it is handed over.

        Args:
          tensor: which.
          count: devices that share it.
          wanted: which of their parts, in rising order; by default all.

        Raises:
          SetupError: it is missing, unreadable or unlike its declaration.
        """
        ...

    def stream(self) -> Iterator[tuple[Tensor, HostTensor]]:
        """Reads tensor after tensor in the order of the files, holding one at a time."""
        ...


def identify(members: Iterable[tuple[str, str, int]]) -> str:
    """Hash of files' names, sizes, first and last 64 KiB: cheap even for 770 remote files.

    Args:
      members: name within the checkpoint, URL, and size in bytes of each.
    """

    def digest(member: tuple[str, str, int]) -> str:
        name, url, size = member
        head = hashlib.sha256(files.read_range(url, 0, min(size, _END_BYTES)))
        tail = hashlib.sha256(files.read_range(url, max(0, size - _END_BYTES), size))
        return f"{name}\0{size}\0{head.hexdigest()}\0{tail.hexdigest()}\n"

    whole = hashlib.sha256()
    for line in files.in_parallel(digest, sorted(members)):
        whole.update(line.encode())
    return whole.hexdigest()


def wanted_parts(tensor: Tensor, count: int, wanted: Sequence[int] | None) -> Sequence[int]:
    """The parts that ``read_parts`` is to give: a tensor that is not split has one."""
    if tensor.param.split_axis is None:
        return (0,)
    return range(count) if wanted is None else wanted


def scales_of_part(param: Param, scales: np.ndarray, index: int, count: int) -> np.ndarray:
    """The scales ``[..., G', out']`` of one device's part of a weight, from those of the whole."""
    axis = param.split_axis
    if axis is None or count == 1:
        return scales
    size = param.part(count).scales_shape[axis]
    start = index * scales.shape[axis] // count
    at = (slice(None),) * axis
    return np.ascontiguousarray(scales[(*at, slice(start, start + size))])


def first_names(names: Sequence[str]) -> str:
    """The first few of many names, for a message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
      SetupError: the text is none.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SetupError(
            f"{where} is not readable as JSON: {str(error)[:80]}; fetch it again"
        ) from None
    if not isinstance(found, dict):
        raise SetupError(f"{where} is no JSON object; fetch it again")
    return found
