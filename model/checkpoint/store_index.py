"""The index of a store: what it is, what it was made from, and a checksum for each block of it."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.checkpoint import files
from model.checkpoint.base import parse_object
from model.checkpoint.store_plan import BLOCK_BYTES, StoreFile, plan_files
from model.config import Grok1Config
from schemas.error import SetupError

try:
    from isal.isal_zlib import crc32  # ten times as fast
except ImportError:  # there is none for this processor
    from zlib import crc32

INDEX = "store.json"
_INDEX_BYTES = 64 << 20
"""No index is larger: that of the released model takes a hundredth."""

_FORMAT = "grok1-store"
_VERSION = 1
_HEX = re.compile(r"(?:[0-9a-f]{8})*")

Checksums = Mapping[str, str]
"""By piece: eight hexadecimal digits a block, in order."""


def checksum(block: np.ndarray) -> str:
    """CRC-32 of a block, as eight hexadecimal digits: it finds any run of up to 32 wrong bits."""
    return f"{crc32(block.data):08x}"


@dataclasses.dataclass(frozen=True)
class StoreIndex:
    """What ``store.json`` says.

    Attributes:
      config: the model's shape.
      weights: one of ``params.WEIGHTS``.
      shards: devices that the weights are cut for.
      source: ``kind`` and ``identity`` of the checkpoint that it was made from.
      checksums: by file and piece.
    """

    config: Grok1Config
    weights: str
    shards: int
    source: Mapping[str, str]
    checksums: Mapping[str, Checksums]

    def files(self) -> list[StoreFile]:
        """Its files."""
        return plan_files(self.config, self.weights, self.shards)

    @property
    def subject(self) -> dict[str, Any]:
        """All that it says but the checksums, of JSON's types: what a conversion is to make."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "weights": self.weights,
            "shards": self.shards,
            "block_bytes": BLOCK_BYTES,
            "source": dict(self.source),
            "config": dataclasses.asdict(self.config),
        }

    def to_json(self) -> str:
        """The text of ``store.json``."""
        sums = {name: dict(sums) for name, sums in self.checksums.items()}
        return json.dumps({**self.subject, "checksums": sums}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: bytes, where: str) -> "StoreIndex":
        """Reads ``store.json``, and believes it in nothing.

        Raises:
          SetupError: it is none, or of another version; or its checksums are not those of the files
            that its config, weights and shards ask for.
        """
        head = parse_object(text, where)
        if head.get("format") != _FORMAT:
            raise SetupError(f"{where} is no index of a store: convert the checkpoint again")
        if head.get("version") != _VERSION or head.get("block_bytes") != BLOCK_BYTES:
            raise SetupError(
                f"{where} is of version {head.get('version')!r:.20}, not {_VERSION}: "
                "convert the checkpoint again"
            )
        config, source, sums = (_mapping(head, key) for key in ("config", "source", "checksums"))
        weights, shards = head.get("weights"), head.get("shards")
        told = all(isinstance(source.get(key), str) for key in ("kind", "identity"))
        if not told or type(shards) is not int:
            raise SetupError(f"{where} lacks what an index says: convert the checkpoint again")
        try:
            index = cls(Grok1Config.from_mapping(config), str(weights), shards, source, sums)
            planned = index.files()
        except SetupError as error:
            raise SetupError(f"{where}: {error}; convert the checkpoint again") from None
        for file in planned:
            if not are_checksums_of(file, sums.get(file.name)):
                raise SetupError(
                    f"{where} has no checksums for what {file.name} should hold by its config: "
                    "convert the checkpoint again"
                )
        return index


def read_index(url: str) -> StoreIndex:
    """The index of the store in a folder.

    Raises:
      SetupError: it cannot be read; see ``StoreIndex.from_json``.
    """
    where = files.join(url, INDEX)
    return StoreIndex.from_json(files.read_bytes(where, _INDEX_BYTES), files.redact(where))


def _mapping(head: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = head.get(key)
    return found if isinstance(found, dict) else {}


def are_checksums_of(file: StoreFile, found: Any) -> bool:
    """Whether these are checksums of each block of each piece of a file."""
    if not isinstance(found, dict) or set(found) != {piece.name for piece in file.pieces}:
        return False
    texts: Sequence[Any] = [found[piece.name] for piece in file.pieces]
    return all(
        isinstance(text, str) and len(text) == 8 * len(piece.blocks) and _HEX.fullmatch(text)
        for piece, text in zip(file.pieces, texts, strict=True)
    )
