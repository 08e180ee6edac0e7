"""Writing a chunk's part: whole or not at all, by the first writer only, with its provenance."""

import contextlib
import dataclasses
import datetime
import json
import threading
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from model.checkpoint import files
from pipeline.claim import JOB
from pipeline.counts import COUNTS, Counts, read_counts
from pipeline.plan import read_chunks
from pipeline.prepare import Job
from pipeline.questions import Answers
from pipeline.versions import code_identity, version
from schemas.error import INPUT_ERRORS

PROVENANCE, RUN = b"grok1.provenance", b"grok1.run"
"""Keys of a part's footer, JSON each. Equal jobs write equal parts, but for ``grok1.run``, which
says when and how fast."""


class Superseded(Exception):
    """Another run has taken the output folder over."""


class RowFailed(Exception):
    """A row could not be completed, and the job is to stop at the first such."""


class NotConserved(Exception):
    """Rows were lost or doubled; never the user's fault."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Committed:
    """What became of a chunk.

    Attributes:
      part: the part's name.
      first: whether this writer made it, or found it made.
      counts: what the part holds, whoever made it.
    """

    part: str
    first: bool
    counts: Counts


class Tally:
    """What this process has committed so far, for whoever watches it. Thread-safe.

    Attributes:
      under_way: commits begun and not ended.
    """

    def __init__(self) -> None:
        self._total = Counts()
        self._lock = threading.Lock()
        self.under_way = 0

    @contextlib.contextmanager
    def commit(self) -> Iterator[None]:
        """While a part is written."""
        with self._lock:
            self.under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self.under_way -= 1

    def add(self, counts: Counts) -> None:
        """So much more."""
        with self._lock:
            self._total += counts

    def total(self) -> Counts:
        """All of it."""
        return self._total


tally = Tally()
"""Of parts that this process wrote or found written."""


def commit(job: Job, result: Answers) -> Committed:
    """Writes a chunk's part, unless it is there already.

    Raises:
      Superseded: the output folder belongs to another run by now.
      RowFailed: a row is an error, and the job is ``strict``.
      NotConserved: rows are missing or too many.
    """
    chunk = result.prompts.chunk
    table = result.table(job.output, job.options.run_seed)
    counts = count(result, table)
    if job.options.strict and result.errors:
        row, error = next(iter(result.errors.items()))
        where = f"row {chunk.first_row + row} of {chunk.file.path}"
        raise RowFailed(f"{where}: {error.sentence()}; --strict stops here")
    with tally.commit():
        check_owner(job)
        first = job.folder.create(chunk.part_name, _parquet(job, result, table, counts))
        if first:
            _give_up_if_superseded(job, chunk.part_name)
        else:
            counts = read_counts(job.folder, chunk.part_name)
    tally.add(counts)
    return Committed(part=chunk.part_name, first=first, counts=counts)


def rewrite(job: Job, result: Answers) -> Counts:
    """Writes a chunk's part in place of the one that is there; returns what it holds.

    Raises:
      Superseded, NotConserved: see ``commit``.
    """
    name = result.prompts.chunk.part_name
    table = result.table(job.output, job.options.run_seed)
    counts = count(result, table)
    with tally.commit():
        check_owner(job)
        if counts != read_counts(job.folder, name):
            job.folder.replace(name, _parquet(job, result, table, counts))
    tally.add(counts)
    return counts


def _parquet(job: Job, result: Answers, table: pa.Table, counts: Counts) -> bytes:
    table = uniform(table)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(_metadata(job, result, counts))
    return sink.getvalue().to_pybytes()


def uniform(table: pa.Table) -> pa.Table:
    """The table in one form of the many that Arrow has for it, so that equal rows are equal bytes.

    A chunk's rows come in pieces as its reader, or an attempt before, happened to make them, and
    with more words in their dictionaries than they use.
    """
    table = table.combine_chunks()
    for at, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            words = table.column(at).cast(field.type.value_type).combine_chunks()
            table = table.set_column(at, field, words.dictionary_encode().cast(field.type))
    return table


def _give_up_if_superseded(job: Job, part: str) -> None:
    """Takes a part back that was written while another run took the folder over.

    Its rows would stand there beside the new run's, and nobody looks for strays after Finalize. A
    part that the new run has in its plan too is as good as its own, and may be counted on.
    """
    try:
        check_owner(job)
    except Superseded:
        if part not in {chunk.part_name for chunk in read_chunks(job.folder)}:
            job.folder.remove([part])
        raise


def count(result: Answers, table: pa.Table) -> Counts:
    """What a chunk's table holds, after making sure that every row is accounted for."""
    prompts, counts = result.prompts, result.counts()
    if (
        counts.rows_in != prompts.chunk.rows
        or counts.rows_in != counts.succeeded + counts.errored
        or counts.rows_out != table.num_rows
    ):
        raise NotConserved(
            f"{prompts.chunk.part_name} does not account for its rows: {counts}, "
            f"{table.num_rows} written"
        )
    return counts


def check_owner(job: Job) -> None:
    """Makes sure that the output folder still belongs to this run.

    Raises:
      Superseded: another run was started there with ``--overwrite``, or the folder is gone.
    """
    data = job.folder.read(JOB)
    owner = None if data is None else json.loads(data)["run_id"]
    if owner != job.run_id:
        raise Superseded(
            f"{files.redact(job.folder.url)} was taken over by another run; this one writes no more"
        )


def _metadata(job: Job, result: Answers, counts: Counts) -> dict[bytes, bytes]:
    chunk = result.prompts.chunk
    provenance = {
        "settings": job.settings,
        "identity": job.identity,
        "fingerprint": chunk.fingerprint,
        "input": {
            "path": chunk.file.path,
            "footer": chunk.file.footer,
            "first_row": chunk.first_row,
            "rows": chunk.rows,
            "fault": _input_fault(result),
        },
        "engine": result.engine,
        "code": code_identity(),
        "version": version("grok1-batch", absent="unknown"),
    }
    run = {
        "run_id": job.run_id,
        "committed_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "seconds": round(result.seconds, 3),
        "decode_rows": result.decode_rows,
        "decode_rows_used": result.decode_rows_used,
    }
    values = {PROVENANCE: provenance, COUNTS: dataclasses.asdict(counts), RUN: run}
    return {key: json.dumps(value, sort_keys=True).encode() for key, value in values.items()}


def _input_fault(result: Answers) -> str | None:
    """Why rows of the chunk could not be read; None if all could."""
    faults = (error for error in result.errors.values() if error.code in INPUT_ERRORS)
    return next((error.sentence() for error in faults), None)
