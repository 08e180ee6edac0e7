"""Reading a span: its rows are streamed once, and handed on chunk by chunk, ready for the model."""

import dataclasses
import functools
import threading
from collections.abc import Iterator, Sequence

from model.checkpoint import files
from model.tokenizer import Tokenizer
from pipeline import tasks
from pipeline.plan import Chunk, PlannedFile
from pipeline.prepare import Job
from pipeline.questions import Questions
from pipeline.spans import Span
from pipeline.stream import stream_chunks


class RowsRead:
    """How many input rows this process has read and tokenized for the model."""

    def __init__(self) -> None:
        self._rows = 0
        self._lock = threading.Lock()

    def add(self, rows: int) -> None:
        """So many more."""
        with self._lock:
            self._rows += rows

    def total(self) -> int:
        """All of them."""
        return self._rows


rows_read = RowsRead()


class InputChanged(Exception):
    """The tokenizer is not the one that the job was set up with."""


def read_span(job: Job, span: Span) -> Iterator[Questions]:
    """The chunks of a span whose parts are not there yet, one after another.

    Whether a part is there is asked first: a span whose parts are all there opens no file. Rows
    that cannot be read are errors of their own, like those that cannot be asked.

    Raises:
      InputChanged: the tokenizer has changed.
    """
    missing = [chunk for chunk in span.chunks if not job.folder.exists(chunk.part_name)]
    for chunk in read_chunks(job, missing):
        rows_read.add(len(chunk))
        yield chunk


def read_chunks(job: Job, wanted: Sequence[Chunk]) -> Iterator[Questions]:
    """These chunks, in input order, ready for the model.

    Raises:
      InputChanged: the tokenizer has changed.
    """
    tokenizer = None
    if wanted and job.tokenizer is not None:
        tokenizer = load_tokenizer(job.tokenizer, job.settings["tokenizer"])
    by_file: dict[PlannedFile, list[Chunk]] = {}
    for chunk in wanted:
        by_file.setdefault(chunk.file, []).append(chunk)
    for file, chunks in by_file.items():
        url = files.join(job.bases[file.base], file.name)
        streamed = stream_chunks(url, file, chunks, job.input_schema)
        for chunk, (rows, faults) in zip(chunks, streamed, strict=True):
            prepared = tasks.of(job.options).prepare_chunk(job, chunk, rows, tokenizer)
            # The nulls in their place are errors too, but not the reason.
            yield dataclasses.replace(prepared, errors={**prepared.errors, **faults})


@functools.lru_cache(maxsize=2)
def load_tokenizer(url: str, identity: str) -> Tokenizer:
    """The tokenizer at a URL, kept for the process's next chunks.

    Raises:
      InputChanged: it is not the one that the job was set up with.
    """
    tokenizer = Tokenizer.load(url)
    if tokenizer.identity != identity:
        raise InputChanged(
            f"{files.redact(url)} has changed since the run began; start the run again"
        )
    return tokenizer
