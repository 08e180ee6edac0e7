"""Say where a run stands, whoever runs it, and exit with the code that it has earned.

A finished run exits with 0 or 3, as generate would have; one that is under way, or has stopped
before its end, with 1. Of a job on Dataflow it asks the service, too.

  grok1 status gs://bucket/completions
  grok1 status gs://bucket/completions --json
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

HELP = "say where a run stands"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("output", metavar="OUTPUT", help="the output folder of a run")
    parser.add_argument("--json", action="store_true", help="for a machine")


def run(given: argparse.Namespace, _: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    found = status(given.output)
    if given.json:
        print(json.dumps(found, indent=1))
    else:
        done, rows = found["rows_done"], found["rows"]
        words = [f"{found['state']}: {done:,} of {rows:,} rows ({done / max(1, rows):.0%})"]
        words.append(f"{found['errored']:,} errored")
        parts = "an unknown number of" if found["parts"] is None else f"{found['parts']:,}"
        words.append(f"{found['parts_present']:,} of {parts} parts")
        if found["last_commit"]:
            words.append(f"last commit {found['last_commit']}")
        if found["stopped_by"]:
            words.append(f"stopped: {found['stopped_by']}")
        print(" · ".join(words))
        if found["job_url"]:
            print(f"Dataflow job {found['job_id']}: {_told(found)} · {found['job_url']}")
    return int(found["exit_code"])


def _told(found: dict[str, Any]) -> str:
    return found["job_state"] or f"state not known: {found['job_state_unknown']}"


def status(output: str) -> dict[str, Any]:
    """Where the run of an output folder stands, as JSON-ready types.

    Raises:
      SetupError: the folder does not exist, or is no run's output.
    """
    from pipeline import budget
    from pipeline.claim import read_job
    from pipeline.cli import BUDGET, FAILED
    from pipeline.commands.run import exit_code
    from pipeline.dataflow.record import Unknown, ask_state, submitted
    from pipeline.finalize import read_manifest, survey
    from pipeline.storage import Folder

    folder = Folder(output)
    record = read_job(folder)
    found, lines = survey(folder)
    manifest, sent = read_manifest(folder), submitted(folder)
    note = budget.stopped(folder)
    code = FAILED if note is None else BUDGET
    if manifest is not None:
        code = exit_code(
            manifest, record.get("allow_errors", 0.0), record.get("allow_file_errors", False)
        )
    totals = found["totals"]
    job_state = unknown = None
    if sent is not None:
        try:
            job_state = ask_state(sent)
        except Unknown as reason:
            unknown = str(reason)
    return {
        "state": found["state"],
        "stopped_by": None if note is None or manifest is not None else note["why"],
        "rows": found["rows"],
        "rows_done": totals["rows_in"],
        "succeeded": totals["succeeded"],
        "errored": totals["errored"],
        "errors": totals["errors"],
        "completion_tokens": totals["completion_tokens"],
        "parts": found["parts"],
        "parts_present": found["parts_present"],
        "faults": found["faults"],
        "last_commit": max((line["committed_at"] for line in lines), default=None),
        "job_id": None if sent is None else sent.job_id,
        "job_url": None if sent is None else sent.url,
        "job_state": job_state,
        "job_state_unknown": unknown,
        "exit_code": code,
    }
