"""Errored rows, run again: the part that holds them is replaced whole, under its own name.

A part's name stands for what it should hold, and a part with fewer errors holds more of that. The
store puts one file in place of another at once, so a reader sees each row once at every moment, in
the old part or in the new. A retry that is killed leaves some parts new and some old; the next one
finds by their footers what is left.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import PipelineOptions

from model.checkpoint import files
from pipeline import plan
from pipeline.claim import SUCCESS, claim
from pipeline.commit import NotConserved, rewrite
from pipeline.counts import Counts, read_counts
from pipeline.handler import NAMESPACE
from pipeline.inputs import former_files
from pipeline.job import begin, closed, counters_of, model_handler
from pipeline.options import JobOptions
from pipeline.plan import Chunk, PlannedFile
from pipeline.prepare import Job, check_job
from pipeline.questions import Answers, Questions
from pipeline.read import read_chunks
from pipeline.saved import Saved
from pipeline.spans import Span
from pipeline.storage import Folder, open_parquet
from schemas.completion import ERRORED
from schemas.error import ErrorCode, SetupError

_SUSPECT = {str(ErrorCode.POISON), str(ErrorCode.SUSPECTED_POISON)}
_BUFFER_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retry:
    """What is to be run again.

    Attributes:
      job: the job, with nothing left to do but this.
      codes: only rows with these error codes; none for all.
      mended: input files by path that could not be read wholly, as they are now.
    """

    job: Job
    codes: frozenset[str]
    mended: Mapping[str, PlannedFile]


def prepare(options: JobOptions, codes: Collection[str], unread: Collection[str]) -> Retry:
    """Checks that a finished job can be taken up again.

    Args:
      options: the job.
      codes: see ``Retry``.
      unread: paths of files of which rows could not be read. These may differ from what was
        planned, as long as they have as many rows: somebody has mended them.

    Raises:
      SetupError: its settings or its other files have changed, or it has not finished.
    """
    folder = Folder(options.output)
    job, found, _ = check_job(options, former_files(options.output))
    before = {file.path: file for file in plan.read_files(folder)}
    as_planned, mended = [], {}
    for file in found:
        old = before.get(file.path)
        if old is None or file.path not in unread:
            as_planned.append(file)
            continue
        as_planned.append(old)
        if file.rows == old.rows:
            mended[file.path] = dataclasses.replace(
                old, size=file.size, version=file.version, footer=file.footer
            )
    run_id = claim(job, as_planned)
    chunks, present = plan.read_chunks(folder), folder.names()
    missing = sum(chunk.part_name not in present for chunk in chunks)
    if missing or SUCCESS not in present:
        raise SetupError(
            f"the run in {files.redact(folder.url)} has not finished; start grok1 {options.task} "
            "again, then retry what is errored"
        )
    rows = sum(chunk.rows for chunk in chunks)
    job = dataclasses.replace(
        job, run_id=run_id, rows=rows, chunks=len(chunks), done=len(chunks), rows_done=rows
    )
    return Retry(job=job, codes=frozenset(codes), mended=mended)


def run(retry: Retry, beam_options: PipelineOptions | None = None) -> dict[str, int]:
    """Runs errored rows again, and closes the output anew.

    Args:
      retry: what ``prepare`` returned.
      beam_options: Beam's own; by default those of a run on this machine.

    Returns:
      The run's counters by name.
    """
    job, pipeline = begin(retry.job, beam_options)
    retry = dataclasses.replace(retry, job=job)
    replaced = (
        pipeline
        | "Plan" >> beam.Create([None])
        | "Spans" >> beam.FlatMap(_spans, retry).with_output_types(Span)
        | "Spread" >> beam.Reshuffle()
        | "Read" >> beam.FlatMap(_read, retry).with_output_types(Questions)
        | job.options.task.title() >> RunInference(model_handler(job))
        | "Replace" >> beam.Map(_replace, job).with_output_types(int)
    )
    closed(replaced, job)
    result = pipeline.run()
    result.wait_until_finish()
    return counters_of(result)


def errored(counts: Counts, codes: Collection[str]) -> int:
    """How many rows of a part are to be run again."""
    return sum(n for code, n in counts.errors.items() if not codes or code in codes)


def split(
    table: pa.Table, counts: Counts, rows: int, codes: Collection[str], prefix: str
) -> tuple[Saved, dict[int, str]]:
    """A part in two: what stays, and the rows that are to be run again, with their error codes.

    Args:
      table: the part.
      counts: its footer's.
      rows: input rows that it was made of.
      codes: see ``Retry``.
      prefix: of the added columns.

    Raises:
      NotConserved: the part does not hold so many input rows.
    """
    index = (
        "sample_index" if f"{prefix}sample_index" in table.schema.names else "continuation_index"
    )
    begins = pc.equal(table.column(prefix + index), 0).to_numpy()
    sources = begins.cumsum() - 1
    if begins.sum() != rows:
        raise NotConserved(f"a part of {rows} input rows has {begins.sum()} first rows")
    status = table.column(f"{prefix}status").to_pylist()
    names = table.column(f"{prefix}error_code").to_pylist()
    again = {
        int(row): code
        for row, state, code in zip(sources, status, names, strict=True)
        if state == ERRORED and (not codes or code in codes)
    }
    kept = [i for i, row in enumerate(sources) if int(row) not in again]
    left = dict(counts.errors)
    for code in again.values():
        left[code] -= 1
    counts = dataclasses.replace(
        counts,
        rows_in=counts.rows_in - len(again),
        errored=counts.errored - len(again),
        rows_out=counts.rows_out - len(again),
        errors={code: n for code, n in left.items() if n},
    )
    stays = Saved.of(
        [int(sources[i]) for i in kept], table.take(pa.array(kept, pa.int64())), counts
    )
    return stays, again


def _spans(_: Any, retry: Retry) -> Iterator[Span]:
    folder = retry.job.folder
    chunks = plan.read_chunks(folder)
    found = files.in_parallel(lambda chunk: read_counts(folder, chunk.part_name), chunks)
    for chunk, counts in zip(chunks, found, strict=True):
        if errored(counts, retry.codes):
            file = retry.mended.get(chunk.file.path, chunk.file)
            yield Span((dataclasses.replace(chunk, file=file),))


def _read(span: Span, retry: Retry) -> Iterator[Questions]:
    job, codes = retry.job, retry.codes
    for questions in read_chunks(job, span.chunks):
        chunk = questions.chunk
        counts = read_counts(job.folder, chunk.part_name)
        stays, again = split(
            _table(job, chunk), counts, chunk.rows, codes, job.options.output_prefix
        )
        Metrics.counter(NAMESPACE, "rows_retried").inc(len(again))
        yield dataclasses.replace(
            questions,
            known=(stays,),
            errors={row: error for row, error in questions.errors.items() if row in again},
            suspects=frozenset(row for row, code in again.items() if code in _SUSPECT),
        )


def _table(job: Job, chunk: Chunk) -> pa.Table:
    with open_parquet(job.folder.at(chunk.part_name), _BUFFER_BYTES) as source:
        table = pq.ParquetFile(source).read(use_threads=False)
    return table.replace_schema_metadata(None).cast(job.output.schema)


def _replace(answers: Answers, job: Job) -> int:
    before = read_counts(job.folder, answers.prompts.chunk.part_name)
    after = rewrite(job, answers)
    Metrics.counter(NAMESPACE, "rows_recovered").inc(before.errored - after.errored)
    return 1
