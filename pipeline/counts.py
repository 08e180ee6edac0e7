"""What a chunk comes to, in numbers that add up."""

import collections
import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from pipeline.footer import read_footer
from pipeline.storage import Folder

COUNTS = b"grok1.counts"
"""Key of a part's footer under which they stand as JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What a part holds, or many parts together.

    Attributes:
      rows_in: input rows.
      succeeded: input rows that were completed.
      errored: input rows that were not.
      rows_out: output rows: one a sample or continuation of the former, and one for each of the
        latter.
      prompt_tokens: of completed rows, each counted once; contexts of scored ones.
      completion_tokens: of all samples.
      cached_tokens: prompt tokens shared with another row of the chunk.
      scored_tokens: of all continuations.
      greedy: continuations that greedy decoding would give.
      logprob: sum over all scored tokens.
      text_bytes: length in UTF-8 of the continuations that were given as text.
      text_logprob: sum over the tokens of these.
      finish_reasons: samples by ``finish_reason``.
      errors: rows by ``error_code``.
      duplicates: rows whose answer is that of an equal one before them in the chunk.
    """

    rows_in: int = 0
    succeeded: int = 0
    errored: int = 0
    rows_out: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    scored_tokens: int = 0
    greedy: int = 0
    logprob: float = 0.0
    text_bytes: int = 0
    text_logprob: float = 0.0
    duplicates: int = 0
    finish_reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    errors: dict[str, int] = dataclasses.field(default_factory=dict)

    def __add__(self, other: "Counts") -> "Counts":
        total: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, dict):
                both = collections.Counter(mine) + collections.Counter(theirs)
                total[field.name] = dict(sorted(both.items()))
            else:
                total[field.name] = mine + theirs
        return Counts(**total)


def read_counts(folder: Folder, part: str) -> Counts:
    """What a part holds, by its footer."""
    _, metadata = read_footer(folder.at(part), folder.size(part))
    return Counts(**json.loads(metadata.metadata[COUNTS]))


def tally(values: Iterable[str]) -> dict[str, int]:
    """How often each occurs, by name."""
    return dict(sorted(collections.Counter(values).items()))
