"""The end of a run: all rows accounted for by the parts' own footers, manifest, ``_SUCCESS``."""

import collections
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.checkpoint import files
from pipeline import budget, file_errors
from pipeline.claim import FILE_ERRORS, JOB, MANIFEST, MANIFEST_PARTS, SUCCESS
from pipeline.commit import PROVENANCE, RUN, NotConserved, check_owner
from pipeline.counts import COUNTS, Counts
from pipeline.footer import read_footer
from pipeline.plan import Chunk, is_part, read_chunks, read_files
from pipeline.prepare import Job
from pipeline.storage import TEMPORARY, Folder, open_parquet
from pipeline.strikes import STRIKES
from schemas.completion import SCHEMA_VERSION
from schemas.error import SetupError

REMEDY = "remove that part, and start the same command again"
"""For a part that is not what it should be."""

_FILE_ERRORS_SHOWN = 100
"""In the manifest; all are in ``_errors/files.parquet``."""


def finalize(job: Job) -> dict[str, Any]:
    """Closes the output once all its parts are there; doing it again changes nothing but the time.

    Counts come from the parts' footers, never from a run's counters, so they are right however
    often a chunk was tried and whoever wrote it.

    Returns:
      The manifest; or, if a budget has ended this start, what ``budget.stop`` noted.

    Raises:
      NotConserved: a part is missing, or rows were lost or doubled.
      Superseded: the output folder belongs to another run by now.
    """
    check_owner(job)
    folder = job.folder
    chunks = read_chunks(folder)
    present = folder.names()
    lost = [chunk.part_name for chunk in chunks if chunk.part_name not in present]
    if lost and (note := budget.stopped(folder)) is not None and note["start"] == job.start:
        return note
    if lost:
        raise NotConserved(
            f"{len(lost)} of {len(chunks)} parts are missing, such as {lost[0]}; "
            "start the same command again"
        )
    lines = files.in_parallel(lambda chunk: _line(folder, chunk, present), chunks)
    faults = file_errors.collect(read_files(folder), lines)
    manifest = _manifest(job, lines, faults)
    folder.replace(MANIFEST_PARTS, _parquet(lines))
    if faults:
        folder.replace(FILE_ERRORS, _parquet(faults, file_errors.SCHEMA))
    else:
        folder.remove([FILE_ERRORS])
    folder.replace(MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    planned = {chunk.part_name for chunk in chunks}
    strays = [name for name in present if is_stray(name, planned)]
    folder.remove(strays + [name for name in present if name.startswith(TEMPORARY)])
    records = Folder(folder.at(STRIKES))
    records.remove(records.names())
    folder.replace(SUCCESS, b"")
    return manifest


def read_manifest(folder: Folder) -> dict[str, Any] | None:
    """The manifest of a finished run, or None if it has not finished."""
    if not folder.exists(SUCCESS):
        return None
    data = folder.read(MANIFEST)
    return None if data is None else json.loads(data)


def survey(folder: Folder, *, read: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What an output folder holds, finished or not, every part's footer compared with the plan.

    Args:
      folder: the output folder.
      read: whether to read the parts' rows, too, and not their footers alone.

    Returns:
      JSON-ready: ``url``, ``run_id``, ``settings``, ``state`` (``complete`` or ``unfinished``),
      ``parts``, ``parts_present``, ``rows``, ``totals`` (see ``commit.Counts``),
      ``file_errors`` (see ``file_errors.collect``), ``faults`` (a sentence each). And a line for
      each sound part, as in ``_manifest.parquet``.
    """
    job = json.loads(folder.read(JOB) or b"{}")
    chunks, present = read_chunks(folder), folder.names()
    there = [chunk for chunk in chunks if chunk.part_name in present]

    def check(chunk: Chunk) -> dict[str, Any] | str:
        try:
            line = _line(folder, chunk, present)
            if read:
                _read_rows(folder, chunk.part_name)
            return line
        except NotConserved as fault:
            return str(fault)

    checked = files.in_parallel(check, there)
    lines = [line for line in checked if not isinstance(line, str)]
    total = _total(lines)
    faults = [line for line in checked if isinstance(line, str)]
    planned = {chunk.part_name for chunk in chunks}
    faults += [f"{name} is no part of this run" for name in present if is_stray(name, planned)]
    complete = SUCCESS in present
    if complete and len(there) < len(chunks):
        faults.append(f"{len(chunks) - len(there)} parts are missing from a finished run")
    found = {
        "url": files.redact(folder.url),
        "run_id": job["run_id"],
        "settings": job["settings"],
        "state": "complete" if complete else "unfinished",
        "parts": len(chunks),
        "parts_present": len(there),
        "rows": sum(chunk.rows for chunk in chunks),
        "totals": vars(total),
        "file_errors": file_errors.collect(read_files(folder), lines),
        "faults": faults,
    }
    return found, lines


def _read_rows(folder: Folder, name: str) -> None:
    try:
        with open_parquet(folder.at(name), 1 << 20) as source:
            for _ in pq.ParquetFile(source).iter_batches(1024, use_threads=False):
                pass
    except (pa.ArrowException, OSError) as fault:
        reason = " ".join(str(fault).split())[:200]
        raise NotConserved(f"{name} cannot be read: {reason}; {REMEDY}") from None


def is_stray(name: str, planned: set[str]) -> bool:
    """Whether a file bears a part's name, but is not of this run."""
    return is_part(name) and name not in planned


def _line(folder: Folder, chunk: Chunk, present: dict[str, int]) -> dict[str, Any]:
    name = chunk.part_name
    try:
        _, metadata = read_footer(folder.at(name), present[name])
    except SetupError as fault:
        raise NotConserved(f"{fault}; {REMEDY}") from None
    # Each look at it copies all of it.
    found = metadata.metadata or {}
    if not {COUNTS, PROVENANCE, RUN} <= found.keys():
        raise NotConserved(f"{name} was not written by this project; {REMEDY}")
    counts = Counts(**json.loads(found[COUNTS]))
    if counts.rows_in != chunk.rows or counts.rows_out != metadata.num_rows:
        raise NotConserved(
            f"{name} should hold {chunk.rows} input rows, but holds {counts}; {REMEDY}"
        )
    provenance = json.loads(found[PROVENANCE])
    run = json.loads(found[RUN])
    return {
        "part": name,
        "input": chunk.file.path,
        "first_row": chunk.first_row,
        **{
            key: json.dumps(value, sort_keys=True) if isinstance(value, dict) else value
            for key, value in vars(counts).items()
        },
        "bytes": present[name],
        "seconds": float(run["seconds"]),
        "decode_rows": run["decode_rows"],
        "decode_rows_used": run["decode_rows_used"],
        "committed_at": run["committed_at"],
        "engine": json.dumps(provenance["engine"], sort_keys=True),
        "code": provenance["code"],
        "input_fault": provenance["input"]["fault"],
    }


def _manifest(
    job: Job, lines: list[dict[str, Any]], faults: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    total = _total(lines)
    if total.rows_in != job.rows:
        raise NotConserved(f"the plan has {job.rows} rows, the parts have {total.rows_in}")
    # Parts without a completed row name no engine.
    engines = collections.Counter(line["engine"] for line in lines if line["engine"] != "{}")
    codes = collections.Counter(line["code"] for line in lines)
    return {
        "run_id": job.run_id,
        "schema_version": SCHEMA_VERSION,
        "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "files": job.files,
        "files_errored": len(faults),
        "files_of_unknown_rows": sum(fault["rows"] is None for fault in faults),
        "file_errors": list(faults[:_FILE_ERRORS_SHOWN]),
        "parts": len(lines),
        **vars(total),
        "engines": [{**json.loads(text), "parts": n} for text, n in sorted(engines.items())],
        "code": dict(sorted(codes.items())),
        "settings": job.settings,
    }


def _total(lines: list[dict[str, Any]]) -> Counts:
    total = Counts()
    for line in lines:
        values = {name: line[name] for name in vars(total)}
        for name in ("finish_reasons", "errors"):
            values[name] = json.loads(values[name])
        total += Counts(**values)
    return total


def _parquet(lines: list[dict[str, Any]], schema: pa.Schema | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(lines, schema), sink, compression="zstd")
    return sink.getvalue().to_pybytes()
