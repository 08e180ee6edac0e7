"""What a conversion has done so far, kept beside what it writes, so that it can be taken up again.

A file is done once its record is here: the checksums of its blocks. There is one writer a folder.
"""

import json
from collections.abc import Sequence
from typing import Any

from model.checkpoint import files, sink
from model.checkpoint.base import parse_object
from model.checkpoint.store import JOURNAL
from model.checkpoint.store_index import INDEX, StoreIndex, are_checksums_of, read_index
from model.checkpoint.store_plan import FILE, SUFFIX, StoreFile
from schemas.error import SetupError

_JOB = "job.json"
_RECORD_BYTES = 1 << 20

Sums = dict[str, str]
"""By piece: the checksums of its blocks."""


class Journal:
    """The journal of a conversion into a folder.

    Attributes:
      done: checksums by file, of the files that are done.
      finished: whether the store is there whole, with its index.
    """

    def __init__(self, url: str, index: StoreIndex, overwrite: bool) -> None:
        """Opens the journal of a folder, or begins one.

        Args:
          url: the folder.
          index: what is to be made; its checksums are not looked at.
          overwrite: whether to remove another store that is there.

        Raises:
          SetupError: the folder holds something else.
        """
        self._url, self._folder, self._subject = url, files.join(url, JOURNAL), index.subject
        self.done: dict[str, Sums] = {}
        present = files.list_files(url)
        for name in sorted(present):
            if name.endswith(SUFFIX) and not FILE.fullmatch(name):
                self._refuse(f"{name}, which is of no store", "")
        if overwrite:
            self._clear(present)
            present = {}
        records = files.list_files(self._folder)
        self.finished = INDEX in present
        if self.finished:
            found = read_index(url)
            if found.subject != self._subject:
                self._refuse("a store of another checkpoint, or of another kind")
            self.done = {name: dict(sums) for name, sums in found.checksums.items()}
            return
        if _JOB not in records:
            if stray := sorted(name for name in present if FILE.fullmatch(name)):
                self._refuse(f"{stray[0]}, but nothing that says which conversion wrote it")
            self._write(_JOB, self._subject)
        elif self._read(_JOB) != self._subject:
            self._refuse("the beginnings of another conversion")
        for file in index.files():
            if _record(file.name) in records and present.get(file.name) == file.nbytes:
                sums = self._read(_record(file.name))
                if are_checksums_of(file, sums):
                    self.done[file.name] = sums

    def add(self, file: StoreFile, sums: Sums) -> None:
        """Records that a file is done."""
        self._write(_record(file.name), sums)
        self.done[file.name] = sums

    def forget(self, damaged: Sequence[StoreFile]) -> None:
        """Forgets files that are damaged, so that the next start writes them again."""
        if self.finished:  # what was a store becomes a conversion under way
            self._write(_JOB, self._subject)
            for name, sums in self.done.items():
                self._write(_record(name), sums)
            files.remove(files.join(self._url, INDEX))
            self.finished = False
        for file in damaged:
            del self.done[file.name]
            files.remove(files.join(self._folder, _record(file.name)))

    def close(self) -> None:
        """Removes the journal: the store has its index now."""
        files.remove_folder(self._folder)

    def _clear(self, present: dict[str, int]) -> None:
        # The index first: without it, what is left is no store any more.
        names = sorted(name for name in present if FILE.fullmatch(name))
        for name in [INDEX] * (INDEX in present) + names:
            files.remove(files.join(self._url, name))
        files.remove_folder(self._folder)

    def _refuse(self, what: str, remedy: str = ", or replace what is there: --overwrite") -> None:
        raise SetupError(f"{files.redact(self._url)} holds {what}; choose another folder{remedy}")

    def _read(self, name: str) -> dict[str, Any]:
        url = files.join(self._folder, name)
        return parse_object(files.read_bytes(url, _RECORD_BYTES), files.redact(url))

    def _write(self, name: str, content: Any) -> None:
        sink.write_bytes(files.join(self._folder, name), json.dumps(content).encode())


def _record(name: str) -> str:
    return name.removesuffix(SUFFIX) + ".json"
