"""Standard output that its reader may leave, as ``grok1 generate … | head`` does."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import IO, Any


class _Outlives:
    """A text stream whose writes go nowhere once nobody reads it: a job is not ended by that."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._forgiven():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._forgiven():
            self._stream.flush()

    @contextlib.contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # What is still in the stream's buffer goes the same way.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def outliving_its_reader() -> Iterator[None]:
    """Meanwhile ``sys.stdout`` is such a stream."""
    stream = sys.stdout
    sys.stdout = outliving = _Outlives(stream)
    try:
        yield
    finally:
        outliving.flush()
        sys.stdout = stream
