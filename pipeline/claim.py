"""Whose the output folder is: claimed by a job, found to be the same job's, or refused."""

import contextlib
import datetime
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from model.checkpoint import files
from pipeline import plan
from pipeline.dataflow.record import SUBMISSION, refuse_second
from pipeline.options_record import to_record
from pipeline.storage import Folder
from pipeline.strikes import STRIKES
from schemas.error import ErrorCode, RowError, SetupError

if TYPE_CHECKING:
    from pipeline.prepare import Job

JOB, SUCCESS = "_job.json", "_SUCCESS"
MANIFEST, MANIFEST_PARTS = "_manifest.json", "_manifest.parquet"
FILE_ERRORS = "_errors/files.parquet"
STOPPED = "_stopped.json"
"""Stands there after a start that a budget ended."""

RESULTS = (MANIFEST, MANIFEST_PARTS, FILE_ERRORS)
"""What a finished run leaves beside its parts, other than ``_SUCCESS``."""

_FORMAT = 1
"""Version of ``_job.json``."""


def claim(job: "Job", planned: Sequence[plan.PlannedFile]) -> str:
    """Makes the output folder this job's own, or finds that it is already.

    Args:
      job: checked, not yet any run's.
      planned: its input.

    Returns:
      The id of the run that owns the folder.

    Raises:
      SetupError: the folder holds something else, a job on Dataflow still works on it, or it
        cannot be written to.
    """
    options, folder, settings = job.options, job.folder, job.settings
    record = {
        "format": _FORMAT,
        "run_id": uuid.uuid4().hex,
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "checkpoint": files.redact(options.checkpoint),
        "allow_errors": options.allow_errors,
        "allow_file_errors": options.allow_file_errors,
        "tokenizer": None if job.tokenizer is None else files.redact(job.tokenizer),
        "options": to_record(options),
        "input": {
            "files": len(planned),
            "rows": sum(file.rows or 0 for file in planned if file.fault is None),
            "digest": plan.fingerprint([file.content for file in planned], digits=32),
        },
    }
    data = (json.dumps(record, indent=1) + "\n").encode()
    with writing(folder):
        names = folder.names()
        if SUBMISSION in names:
            refuse_second(folder)
        foreign = sorted(n for n in names if not plan.is_part(n) and not n.startswith(("_", ".")))
        if foreign:
            raise SetupError(
                f"{_shown(folder)} holds {foreign[0]!r}, which is no part of a run, so that "
                "readers would mix them; choose an empty folder: --output FOLDER"
            )
        if options.overwrite:
            # The new owner first: from here on, a straggler of the old run commits nothing.
            folder.replace(JOB, data)
            folder.remove([SUCCESS, *RESULTS, *filter(plan.is_part, names)])
            records = Folder(folder.at(STRIKES))
            records.remove(records.names())
            return str(record["run_id"])
        if JOB not in names:
            if parts := list(filter(plan.is_part, names)):
                raise SetupError(
                    f"{_shown(folder)} holds {len(parts)} parts but no {JOB} that says which "
                    "run's; choose another --output folder, or discard them with --overwrite"
                )
            if folder.create(JOB, data):
                return str(record["run_id"])
        return _same_run(folder, record, planned, options.extend)


def read_job(folder: Folder) -> dict[str, Any]:
    """What ``_job.json`` holds.

    Raises:
      SetupError: the folder is no run's output.
    """
    data = folder.read(JOB)
    if data is None:
        raise no_run(folder)
    return json.loads(data)


def no_run(folder: Folder) -> SetupError:
    """The sentence for a folder that is no run's output."""
    if not files.exists(folder.url):
        return SetupError(f"{_shown(folder)} does not exist; name the output folder of a run")
    return SetupError(f"{_shown(folder)} has no {JOB}; name the output folder of a run")


def _same_run(
    folder: Folder,
    record: Mapping[str, Any],
    planned: Sequence[plan.PlannedFile],
    extend: bool,
) -> str:
    remedy = "choose another --output folder, or start anew with --overwrite"
    try:
        there = json.loads(folder.read(JOB) or b"")
        old, old_input, run_id = there["settings"], there["input"], str(there["run_id"])
        if there["format"] != _FORMAT:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise SetupError(
            f"{_shown(folder)}/{JOB} was not written by this version; {remedy}"
        ) from None
    new = json.loads(json.dumps(record["settings"]))
    differ = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if differ:
        more = f", and {len(differ) - 1} more settings differ" if len(differ) > 1 else ""
        raise SetupError(
            f"{_shown(folder)} holds a run with another {differ[0]}: {_told(old.get(differ[0]))} "
            f"there, {_told(new.get(differ[0]))} now{more}; {remedy}"
        )
    if old_input["digest"] != record["input"]["digest"]:
        before = plan.read_files(folder)
        if extend and _extends(before, planned):
            grown = {**there, "input": record["input"]}
            # It may have been finished, and may be again without another part: an empty file.
            folder.remove([SUCCESS, *RESULTS])
            folder.replace(JOB, (json.dumps(grown, indent=1) + "\n").encode())
            return run_id
        if unread := _unread(before, planned):
            raise SetupError(
                f"{unread.message}; {_shown(folder)} holds a run with rows of that file: start "
                "again when it can be read, or choose another --output folder"
            )
        raise SetupError(
            f"{_shown(folder)} holds a run over another input: "
            f"{_difference(before, planned)}; {remedy}"
        )
    return run_id


def _extends(old: Sequence[plan.PlannedFile], new: Sequence[plan.PlannedFile]) -> bool:
    """Whether files only came to those of old, or were mended that had no rows in the plan."""
    return len(old) <= len(new) and all(
        before.path == after.path and (before.fault or before.content == after.content)
        for before, after in zip(old, new, strict=False)
    )


def _unread(old: Sequence[plan.PlannedFile], new: Sequence[plan.PlannedFile]) -> RowError | None:
    """What is wrong with a file that could be read before and cannot be now."""
    good = {file.path for file in old if file.fault is None}
    faults = (file.fault for file in new if file.path in good and file.fault is not None)
    return next((fault for fault in faults if fault.code == ErrorCode.INPUT_UNREADABLE), None)


def _difference(old: Sequence[plan.PlannedFile], new: Sequence[plan.PlannedFile]) -> str:
    before = {file.path: file.content for file in old}
    after = {file.path: file.content for file in new}
    for path in sorted({**before, **after}):
        if path not in after:
            return f"file {path!r} is gone"
        if path not in before:
            return f"file {path!r} is new, which --extend would take"
        if before[path] != after[path]:
            return f"file {path!r} has changed"
    return "an --extend was cut off before its plan was written, so give it again"


@contextlib.contextmanager
def writing(folder: Folder) -> Iterator[None]:
    """Turns any fault of the output's store into one sentence."""
    try:
        yield
    except SetupError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = files.without_secrets(" ".join(reason.split()), folder.url)[:300]
        raise SetupError(
            f"cannot write to {_shown(folder)}: {reason}; choose another --output "
            "folder, or correct its permissions"
        ) from error


def _shown(folder: Folder) -> str:
    return files.redact(folder.url)


def _told(value: Any) -> str:
    if isinstance(value, str) and len(value) > 40:  # a hash: its beginning tells it apart
        value = value[:12] + "…"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)[:60]
