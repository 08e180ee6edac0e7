"""Parts as their own footers tell of them, with or without a plan that they could be held against.

Each footer names the job's settings, the run, and the input rows that the part stands for, so that
parts say what they are wherever they have been copied to.
"""

import collections
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.checkpoint import files
from pipeline.commit import PROVENANCE, RUN, NotConserved
from pipeline.counts import COUNTS, Counts
from pipeline.footer import read_footer
from pipeline.storage import Folder, open_parquet
from schemas.error import SetupError

REMEDY = "remove that part, and start the same command again"
"""For a part that is not what it should be."""

_BATCH_ROWS = 1024
_BUFFER_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """What a part's footer says.

    Attributes:
      name: of the file.
      size: in bytes.
      counts: what the part holds.
      provenance: what its content derives from; see ``commit.PROVENANCE``.
      run: when it was written and how fast; see ``commit.RUN``.
    """

    name: str
    size: int
    counts: Counts
    provenance: Mapping[str, Any]
    run: Mapping[str, Any]

    @property
    def line(self) -> dict[str, Any]:
        """The part's line in ``_manifest.parquet``."""
        return {
            "part": self.name,
            "input": self.provenance["input"]["path"],
            "first_row": self.provenance["input"]["first_row"],
            **{
                key: json.dumps(value, sort_keys=True) if isinstance(value, dict) else value
                for key, value in vars(self.counts).items()
            },
            "bytes": self.size,
            "seconds": float(self.run["seconds"]),
            "decode_rows": self.run["decode_rows"],
            "decode_rows_used": self.run["decode_rows_used"],
            "committed_at": self.run["committed_at"],
            "engine": json.dumps(self.provenance["engine"], sort_keys=True),
            "code": self.provenance["code"],
            "version": self.provenance["version"],
            "input_fault": self.provenance["input"]["fault"],
        }


def read_part(folder: Folder, name: str, size: int, rows: int | None = None) -> Part:
    """Reads a part's footer.

    Args:
      folder: the output folder.
      name: of the part.
      size: of it in bytes.
      rows: input rows that it should hold; by default as many as it says itself.

    Raises:
      NotConserved: it cannot be read, is none of this project's, or holds other rows.
    """
    try:
        _, metadata = read_footer(folder.at(name), size)
    except SetupError as fault:
        raise NotConserved(f"{fault}; {REMEDY}") from None
    # Each look at it copies all of it.
    found = metadata.metadata or {}
    if not {COUNTS, PROVENANCE, RUN} <= found.keys():
        raise NotConserved(f"{name} was not written by this project; {REMEDY}")
    counts, provenance = Counts(**json.loads(found[COUNTS])), json.loads(found[PROVENANCE])
    rows = provenance["input"]["rows"] if rows is None else rows
    if counts.rows_in != rows or counts.rows_out != metadata.num_rows:
        raise NotConserved(f"{name} should hold {rows} input rows, but holds {counts}; {REMEDY}")
    return Part(
        name=name, size=size, counts=counts, provenance=provenance, run=json.loads(found[RUN])
    )


def read_batches(folder: Folder, name: str, rows: int = _BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """A part's rows, at most so many at once.

    Raises:
      SetupError: they cannot be read.
    """
    try:
        with open_parquet(folder.at(name), _BUFFER_BYTES) as source:
            yield from pq.ParquetFile(source).iter_batches(rows, use_threads=False)
    except (pa.ArrowException, OSError) as fault:
        reason = files.without_secrets(" ".join(str(fault).split()), folder.url)[:200]
        raise SetupError(f"{name} cannot be read: {reason}; {REMEDY}") from None


def common_settings(parts: Sequence[Part]) -> dict[str, Any]:
    """The job's settings, as most of some parts have them; at a tie, the first ones."""
    kinds = [json.dumps(part.provenance["settings"], sort_keys=True) for part in parts]
    return json.loads(collections.Counter(kinds).most_common(1)[0][0])


def common_run(parts: Sequence[Part]) -> str:
    """The id of the run that wrote most of some parts; at a tie, the first one's."""
    return collections.Counter(part.run["run_id"] for part in parts).most_common(1)[0][0]


def of_other_inputs(parts: Sequence[Part], run_id: str) -> list[str]:
    """Names of parts by other runs, over files of which this run has no part.

    A run goes on under the id of its first start. A part of one that it has replaced may stand
    among its own, and is as good as they are if the input is the same.
    """
    own = {_input(part) for part in parts if part.run["run_id"] == run_id}
    return [p.name for p in parts if p.run["run_id"] != run_id and _input(p) not in own]


def _input(part: Part) -> tuple[str, str]:
    return part.provenance["input"]["path"], part.provenance["input"]["footer"]
