"""What the parts of an output folder say together, read in one pass with bounded memory.

Parts are all that is needed, so a run under way, or one that was killed, can be looked at too.
"""

import dataclasses
import datetime
import heapq
import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from model.checkpoint import files
from model.tokenizer import Tokenizer
from pipeline.claim import JOB
from pipeline.finalize import read_manifest, survey
from pipeline.parts import read_batches
from pipeline.report.completion_rows import CompletionStatistics, completion_sample
from pipeline.report.error_rows import ErrorExample, ErrorRows
from pipeline.report.samples import Sample
from pipeline.report.score_rows import ScoreStatistics, score_sample
from pipeline.storage import Folder
from schemas.columns import row_of
from schemas.completion import SUCCEEDED
from schemas.error import SetupError

ROWS_READ = 2_000_000
"""Most output rows that distributions are taken from; a larger run's parts are thinned evenly."""

_BATCH_ROWS = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Kind:
    """How the rows of a task are looked at.

    Attributes:
      statistics: makes what counts them.
      sample: makes one to look at of a row, the added columns' prefix and the job's settings.
      index: the column that numbers the output rows of an input row.
    """

    statistics: Callable[[], CompletionStatistics | ScoreStatistics]
    sample: Callable[[dict[str, Any], str, dict[str, Any]], Sample]
    index: str


_KINDS = {
    "generate": _Kind(
        statistics=CompletionStatistics, sample=completion_sample, index="sample_index"
    ),
    "score": _Kind(statistics=ScoreStatistics, sample=score_sample, index="continuation_index"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """All that a report shows.

    Attributes:
      checked: the folder compared with its plan; see ``finalize.check_parts``.
      job: what ``_job.json`` holds, or as much of it as parts tell.
      parts: a line a part, as in ``_manifest.parquet``.
      rows: distributions over the rows that were read.
      rows_read: how many that were, of ``checked["totals"]["rows_out"]``.
      errors: code -> its first rows, codes of the most rows first.
      samples: rows to look at, chosen by their ids' hash, so that they are the same ones each
        time.
      versions: of the software that closed the output; none before that.
      made_at: when this was collected, UTC.
    """

    checked: dict[str, Any]
    job: dict[str, Any]
    parts: list[dict[str, Any]]
    rows: CompletionStatistics | ScoreStatistics
    rows_read: int
    errors: dict[str, list[ErrorExample]]
    samples: list[Sample]
    versions: dict[str, str]
    made_at: datetime.datetime

    @property
    def task(self) -> str:
        """What was done with the rows."""
        return self.job["settings"]["task"]


def collect(output: str, *, samples: int = 200, tokenizer: str | None = None) -> Findings:
    """Reads an output folder, finished or not.

    Args:
      output: the folder, or its URL.
      samples: rows to pick.
      tokenizer: the job's SentencePiece model, to show token by token what log-probabilities
        belong to; by default the one that the job named, if it can be read.

    Raises:
      SetupError: the folder does not exist, is no run's output, or holds no part yet; a part
        cannot be read.
    """
    folder = Folder(output)
    checked, lines = survey(folder)
    if not checked["parts_present"]:
        if checked["faults"]:
            raise SetupError(f"{files.redact(output)}: {checked['faults'][0]}, nor any other there")
        raise SetupError(f"{files.redact(output)} holds no part yet; wait for the first chunk")
    settings = checked["settings"]
    job = json.loads(folder.read(JOB) or b"null") or {"settings": settings}
    kind = _KINDS[settings["task"]]
    vocabulary = _tokenizer(tokenizer, job)
    prefix = settings.get("output_prefix", "")
    statistics, errors = kind.statistics(), ErrorRows(settings, kind.index)
    picked: list[tuple[int, int, Sample]] = []
    read = 0
    for line in _thinned(lines, checked["totals"]["rows_out"]):
        errors.begin(line)
        for batch in read_batches(folder, line["part"], _BATCH_ROWS):
            read += batch.num_rows
            statistics.add(batch, prefix)
            errors.add(batch)
            _pick(batch, kind, prefix, settings, picked, samples)
    codes = checked["totals"]["errors"]
    manifest = read_manifest(folder) or {}
    return Findings(
        checked=checked,
        job=job,
        parts=lines,
        rows=statistics,
        rows_read=read,
        errors={
            code: errors.by_code.get(code, [])
            for code in sorted(codes, key=lambda code: (-codes[code], code))
        },
        samples=[sample.spell(vocabulary) for _, _, sample in sorted(picked, reverse=True)],
        versions=manifest.get("versions", {}),
        made_at=datetime.datetime.now(datetime.UTC),
    )


def _thinned(lines: Sequence[dict[str, Any]], rows: int) -> Sequence[dict[str, Any]]:
    return lines[:: max(1, -(-rows // ROWS_READ))]


def _tokenizer(given: str | None, job: dict[str, Any]) -> Tokenizer | None:
    if given is not None:
        return Tokenizer.load(given)
    named, identity = job.get("tokenizer"), job["settings"].get("tokenizer")
    if not named:
        return None
    try:
        found = Tokenizer.load(named)
    except SetupError:
        return None
    return found if found.identity == identity else None


def _pick(
    batch: pa.RecordBatch,
    kind: _Kind,
    prefix: str,
    settings: dict[str, Any],
    picked: list[tuple[int, int, Sample]],
    most: int,
) -> None:
    """Keeps the rows whose ids are smallest: ids are hashes, so that is a fair draw."""
    uids = batch.column(prefix + "row_uid").to_pylist()
    status = batch.column(prefix + "status").to_pylist()
    index = batch.column(prefix + kind.index).to_pylist()
    for i, uid in enumerate(uids):
        if status[i] != SUCCEEDED or not most:
            continue
        rank = (-int(uid[:15], 16), -(index[i] or 0))
        if len(picked) == most and rank <= picked[0][:2]:
            continue
        entry = (*rank, kind.sample(row_of(batch, i), prefix, settings))
        if len(picked) < most:
            heapq.heappush(picked, entry)
        else:
            heapq.heapreplace(picked, entry)
