"""Errored rows to look at: a few of each code, with where in the input they stand."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.input_row import InputRow
from schemas.columns import row_of

EXAMPLES = 20
"""Rows of a code that are told of."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorExample:
    """An errored row.

    Attributes:
      input: the path of its file, as ``grok1 plan`` tells it.
      row: its number in the file, from 0.
      row_uid: its id.
      custom_id: the user's own, or None.
      message: what is wrong, and what to do.
      param: the parameter or column at fault, or None.
    """

    input: str
    row: int
    row_uid: str
    custom_id: str | None
    message: str
    param: str | None


class ErrorRows:
    """The first errored rows of each code, as parts are read in the input's order.

    Attributes:
      by_code: code -> at most ``EXAMPLES`` of its rows.
    """

    def __init__(self, settings: Mapping[str, Any], index: str) -> None:
        """Args: the job's settings, and the column that numbers an input row's output rows."""
        self.by_code: dict[str, list[ErrorExample]] = {}
        self._settings, self._prefix = settings, settings.get("output_prefix", "")
        self._index = self._prefix + index
        self._input, self._next = "", 0

    def begin(self, line: Mapping[str, Any]) -> None:
        """From here on, batches are of the part with this line of the manifest."""
        self._input, self._next = line["input"], line["first_row"]

    def add(self, batch: pa.RecordBatch) -> None:
        """Looks through the next rows of the part."""
        # An input row has an output row for each sample, or a single one without an index.
        index = batch.column(self._index).fill_null(0).to_numpy(zero_copy_only=False)
        rows = self._next - 1 + np.cumsum(index == 0)
        self._next += int(np.count_nonzero(index == 0))
        for i, code in enumerate(batch.column(self._prefix + "error_code").to_pylist()):
            if code is None or len(some := self.by_code.setdefault(code, [])) >= EXAMPLES:
                continue
            row = row_of(batch, i)
            some.append(
                ErrorExample(
                    input=self._input,
                    row=int(rows[i]),
                    row_uid=row[self._prefix + "row_uid"],
                    custom_id=InputRow(row, self._settings).custom_id,
                    message=row[self._prefix + "error_message"],
                    param=row[self._prefix + "error_param"],
                )
            )
