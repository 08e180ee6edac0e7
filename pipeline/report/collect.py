"""What the parts of an output folder say together, read in one pass with bounded memory.

Parts are all that is needed, so a run under way, or one that was killed, can be looked at too.
"""

import dataclasses
import datetime
import heapq
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.checkpoint import files
from model.tokenizer import Tokenizer
from pipeline.claim import JOB
from pipeline.finalize import survey
from pipeline.input_row import InputRow
from pipeline.plan import is_part
from pipeline.report.completion_rows import CompletionStatistics, completion_sample
from pipeline.report.samples import Sample
from pipeline.report.score_rows import ScoreStatistics, score_sample
from pipeline.storage import Folder, open_parquet
from schemas.completion import SUCCEEDED
from schemas.error import SetupError

ROWS_READ = 2_000_000
"""Most output rows that distributions are taken from; a larger run's parts are thinned evenly."""

_EXAMPLES = 5
_BATCH_ROWS = 4096
_BUFFER_BYTES = 4 << 20


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
class ErrorExample:
    """An errored row.

    Attributes:
      row_uid: its id.
      custom_id: the user's own, or None.
      message: what is wrong, and what to do.
      param: the parameter or column at fault, or None.
    """

    row_uid: str
    custom_id: str | None
    message: str
    param: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """All that a report shows.

    Attributes:
      checked: the folder compared with its plan; see ``finalize.check_parts``.
      job: what ``_job.json`` holds.
      parts: a line a part, as in ``_manifest.parquet``.
      rows: distributions over the rows that were read.
      rows_read: how many that were, of ``checked["totals"]["rows_out"]``.
      errors: code -> a few rows.
      samples: rows to look at, chosen by their ids' hash, so that they are the same ones each
        time.
      made_at: when this was collected, UTC.
    """

    checked: dict[str, Any]
    job: dict[str, Any]
    parts: list[dict[str, Any]]
    rows: CompletionStatistics | ScoreStatistics
    rows_read: int
    errors: dict[str, list[ErrorExample]]
    samples: list[Sample]
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
      SetupError: the folder is no run's output, or holds no part yet.
    """
    folder = Folder(output)
    if JOB not in folder.names():
        raise SetupError(f"{files.redact(output)} has no {JOB}; name the output folder of a run")
    checked, lines = survey(folder)
    if not checked["parts_present"]:
        raise SetupError(f"{files.redact(output)} holds no part yet; wait for the first chunk")
    job = json.loads(folder.read(JOB) or b"{}")
    kind = _KINDS[job["settings"]["task"]]
    vocabulary = _tokenizer(tokenizer, job)
    prefix = job["settings"].get("output_prefix", "")
    statistics, errors = kind.statistics(), dict[str, list[ErrorExample]]()
    picked: list[tuple[int, int, Sample]] = []
    read = 0
    for part in _thinned([line["part"] for line in lines], checked["totals"]["rows_out"]):
        for batch in _batches(folder, part, prefix):
            read += batch.num_rows
            statistics.add(batch, prefix)
            _note_errors(batch, prefix, job["settings"], errors)
            _pick(batch, kind, prefix, job["settings"], picked, samples)
    return Findings(
        checked=checked,
        job=job,
        parts=lines,
        rows=statistics,
        rows_read=read,
        errors=errors,
        samples=[sample.spell(vocabulary) for _, _, sample in sorted(picked, reverse=True)],
        made_at=datetime.datetime.now(datetime.UTC),
    )


def _thinned(parts: Sequence[str], rows: int) -> list[str]:
    step = max(1, -(-rows // ROWS_READ))
    return [part for part in parts[::step] if is_part(part)]


def _batches(folder: Folder, part: str, prefix: str) -> Iterator[pa.RecordBatch]:
    with open_parquet(folder.at(part), _BUFFER_BYTES) as source:
        yield from pq.ParquetFile(source).iter_batches(_BATCH_ROWS, use_threads=False)


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


def _note_errors(
    batch: pa.RecordBatch,
    prefix: str,
    settings: dict[str, Any],
    errors: dict[str, list[ErrorExample]],
) -> None:
    codes = batch.column(prefix + "error_code").to_pylist()
    for i, code in enumerate(codes):
        if code is None or len(some := errors.setdefault(code, [])) >= _EXAMPLES:
            continue
        row = batch.slice(i, 1).to_pylist()[0]
        some.append(
            ErrorExample(
                row_uid=row[prefix + "row_uid"],
                custom_id=InputRow(row, settings).custom_id,
                message=row[prefix + "error_message"],
                param=row[prefix + "error_param"],
            )
        )


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
        entry = (*rank, kind.sample(batch.slice(i, 1).to_pylist()[0], prefix, settings))
        if len(picked) < most:
            heapq.heappush(picked, entry)
        else:
            heapq.heapreplace(picked, entry)
