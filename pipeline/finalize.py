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
from pipeline.claim import FILE_ERRORS, JOB, MANIFEST, MANIFEST_PARTS, SUCCESS, no_run
from pipeline.commit import NotConserved, check_owner
from pipeline.counts import Counts
from pipeline.parts import (
    Part,
    common_run,
    common_settings,
    of_other_inputs,
    read_batches,
    read_part,
)
from pipeline.plan import Chunk, is_part, read_chunks, read_files
from pipeline.prepare import Job
from pipeline.storage import TEMPORARY, Folder
from pipeline.strikes import STRIKES
from pipeline.versions import versions
from schemas.completion import SCHEMA_VERSION
from schemas.error import SetupError

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

    def line(chunk: Chunk) -> dict[str, Any]:
        return read_part(folder, chunk.part_name, present[chunk.part_name], chunk.rows).line

    lines = files.in_parallel(line, chunks)
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

    Parts alone are enough: what ``_job.json`` and the plan would tell is taken from their footers
    then, as far as it stands there.

    Args:
      folder: the output folder.
      read: whether to read the parts' rows, too, and not their footers alone.

    Returns:
      JSON-ready: ``url``, ``run_id``, ``settings``, ``state`` (``complete``, ``unfinished`` or
      ``unknown``), ``parts`` and ``rows`` (planned; None if not known), ``parts_present``,
      ``totals`` (see ``commit.Counts``), ``file_errors`` (see ``file_errors.collect``), ``faults``
      and ``unknown`` (a sentence each: what is wrong, and what the folder does not tell). And a
      line for each sound part, as in ``_manifest.parquet``.

    Raises:
      SetupError: the folder is no run's output, or nothing in it tells of the run.
    """
    job = json.loads(folder.read(JOB) or b"null")
    chunks, present = read_chunks(folder), folder.names()
    rows = {chunk.part_name: chunk.rows for chunk in chunks}
    there = [name for name in rows or sorted(filter(is_part, present)) if name in present]
    if job is None and not there:
        raise no_run(folder)

    def check(name: str) -> Part | str:
        try:
            part = read_part(folder, name, present[name], rows.get(name))
            if read:
                for _ in read_batches(folder, name):
                    pass
            return part
        except (NotConserved, SetupError) as fault:
            return str(fault)

    checked = files.in_parallel(check, there)
    sound = [part for part in checked if not isinstance(part, str)]
    faults = [fault for fault in checked if isinstance(fault, str)]
    if job is None and not sound:
        raise SetupError(f"no part in {files.redact(folder.url)} can be read: {faults[0]}")
    settings = job["settings"] if job else common_settings(sound)
    planned = set(rows)
    strays = [name for name in present if is_stray(name, planned)] if rows else []
    if not rows:
        strays = [part.name for part in sound if part.provenance["settings"] != settings]
        sound = [part for part in sound if part.name not in strays]
    run_id = job["run_id"] if job else common_run(sound)
    if not rows:
        strays += of_other_inputs(sound, run_id)
        sound = [part for part in sound if part.name not in strays]
    faults += [f"{name} is no part of this run" for name in strays]
    complete = SUCCESS in present
    parts_planned, rows_planned = _planned(folder, job, chunks)
    if complete and parts_planned is not None and len(there) < parts_planned:
        faults.append(f"{parts_planned - len(there)} parts are missing from a finished run")
    lines = [part.line for part in sound]
    known = "unknown" if rows_planned is None else "unfinished"
    found = {
        "url": files.redact(folder.url),
        "run_id": run_id,
        "settings": settings,
        "state": "complete" if complete else known,
        "parts": parts_planned,
        "parts_present": len(there),
        "rows": rows_planned,
        "totals": vars(_total(lines)),
        "file_errors": file_errors.collect(read_files(folder), lines),
        "faults": faults,
        "unknown": _unknown(job, parts_planned, rows_planned),
    }
    return found, lines


def _planned(
    folder: Folder, job: Mapping[str, Any] | None, chunks: Sequence[Chunk]
) -> tuple[int | None, int | None]:
    """How many parts and input rows the run has in all, each None where nothing tells."""
    if chunks:
        return len(chunks), sum(chunk.rows for chunk in chunks)
    if (manifest := read_manifest(folder)) is not None:
        return manifest["parts"], manifest["rows_in"]
    if job is None:
        return None, None
    rows, limit = job["input"]["rows"], job["settings"].get("limit")
    return None, rows if limit is None else min(rows, limit)


def _unknown(job: Mapping[str, Any] | None, parts: int | None, rows: int | None) -> list[str]:
    told = []
    if parts is None:
        what = "parts" if rows is not None else "rows and parts"
        why = "the folder has no plan (_plan/)" + ("" if job else f" and no {JOB}")
        told.append(f"how many {what} the run has in all, and which are still to come: {why}")
    if job is None:
        told.append(
            "when the run began, and where its input, checkpoint and tokenizer lay: the folder has "
            f"no {JOB}; settings and run are those of the parts' footers"
        )
    return told


def is_stray(name: str, planned: set[str]) -> bool:
    """Whether a file bears a part's name, but is not of this run."""
    return is_part(name) and name not in planned


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
        "versions": versions(),
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
