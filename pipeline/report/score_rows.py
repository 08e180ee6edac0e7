"""Distributions over scored rows, and single ones to look at."""

import collections
import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.input_row import InputRow
from pipeline.report.completion_rows import LOGPROB_BINS, counted, good_rows
from pipeline.report.samples import Sample, asked, figure, shown_text

PERPLEXITY_BINS = np.geomspace(1.0, 1e6, 49)
"""Edges of the bins of a continuation's perplexity of a token; what is above goes last."""

BYTE_PERPLEXITY_BINS = np.geomspace(1.0, 100.0, 49)
"""The same of a byte."""

_TOKENS = 4000
"""Of a document that a report carries."""


class ScoreStatistics:
    """Counts over rows as they are read.

    Attributes:
      context_tokens, continuation_tokens: length -> rows.
      mean_logprob: rows in each of ``LOGPROB_BINS``.
      perplexity: rows in each of ``PERPLEXITY_BINS``.
      byte_perplexity: rows in each of ``BYTE_PERPLEXITY_BINS``; of those given as text.
      greedy: rows that greedy decoding would give.
      scores: succeeded rows seen.
    """

    def __init__(self) -> None:
        self.context_tokens: collections.Counter[int] = collections.Counter()
        self.continuation_tokens: collections.Counter[int] = collections.Counter()
        self.mean_logprob = np.zeros(len(LOGPROB_BINS) - 1, np.int64)
        self.perplexity = np.zeros(len(PERPLEXITY_BINS) - 1, np.int64)
        self.byte_perplexity = np.zeros(len(BYTE_PERPLEXITY_BINS) - 1, np.int64)
        self.greedy = 0
        self.scores = 0

    def add(self, batch: pa.RecordBatch, prefix: str) -> None:
        """Counts a batch's succeeded rows in."""
        good = good_rows(batch, prefix)

        def column(name: str) -> pa.Array:
            return good.column(prefix + name)

        self.scores += good.num_rows
        self.context_tokens.update(counted(column("context_tokens")))
        self.continuation_tokens.update(counted(column("continuation_tokens")))
        self.greedy += pc.sum(column("is_greedy")).as_py() or 0
        perplexity = column("perplexity").drop_null().to_numpy()
        self.mean_logprob += _histogram(-np.log(perplexity), LOGPROB_BINS)
        self.perplexity += _histogram(perplexity, PERPLEXITY_BINS)
        bytes_ = column("byte_perplexity").drop_null().to_numpy()
        self.byte_perplexity += _histogram(bytes_, BYTE_PERPLEXITY_BINS)


def _histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]


@dataclasses.dataclass(frozen=True, order=False, kw_only=True)
class ScoreSample(Sample):
    """A scored continuation or document to look at.

    Attributes:
      logprob: sum over its tokens.
      perplexity: of a token.
      is_greedy: whether greedy decoding would give it.
    """

    logprob: float
    perplexity: float
    is_greedy: bool

    @property
    def facts(self) -> list[str]:
        """See ``Sample``."""
        facts = [self.custom_id or self.row_uid, f"{self.tokens:,} tokens"]
        if self.tokens > _TOKENS and self.pieces is not None:
            facts[-1] += f", the first {_TOKENS:,} shown"
        if self.index:
            facts.append(f"continuation {self.index}")
        facts += [f"log-likelihood {self.logprob:,.2f}", f"perplexity {figure(self.perplexity)}"]
        return [*facts, "greedy"] if self.is_greedy else facts


def score_sample(row: dict[str, Any], prefix: str, settings: dict[str, Any]) -> ScoreSample:
    """A row of a part as a sample."""
    given = InputRow(row, settings)
    index, ids = row[prefix + "continuation_index"], row[prefix + "token_ids"]
    several = given.value("continuations")
    texts = (given.value("continuation"), several and several[index], given.value("document"))
    return ScoreSample(
        row_uid=row[prefix + "row_uid"],
        index=index,
        custom_id=given.custom_id,
        prompt=asked(given, settings),
        answer=shown_text(next((text for text in texts if text is not None), ids)),
        token_ids=ids[:_TOKENS],
        logprobs=row[prefix + "token_logprobs"][:_TOKENS],
        tokens=len(ids),
        logprob=row[prefix + "logprob"],
        perplexity=row[prefix + "perplexity"],
        is_greedy=row[prefix + "is_greedy"],
    )
