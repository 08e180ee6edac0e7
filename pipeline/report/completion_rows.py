"""Distributions over completions, and single ones to look at."""

import collections
import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.input_row import InputRow
from pipeline.report.samples import Sample, asked, shown_text
from schemas.completion import SUCCEEDED

LOGPROB_BINS = np.linspace(-8.0, 0.0, 41)
"""Edges of the bins of a completion's mean log-probability a token; what is below goes first."""

NGRAM = 4
LOOPING = 0.5
"""A completion loops if at least this share of its 4-grams of tokens has been there before."""

REPETITION_ROWS = 50_000
"""Rows that are looked through for it at most."""

_MIX = (1, 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)


class CompletionStatistics:
    """Counts over rows as they are read.

    Attributes:
      prompt_tokens, completion_tokens: length -> rows.
      mean_logprob: rows in each of ``LOGPROB_BINS``.
      repetition: rows by share of repeated 4-grams, in twentieths; of the first
        ``REPETITION_ROWS``.
      completions: succeeded rows seen.
    """

    def __init__(self) -> None:
        self.prompt_tokens: collections.Counter[int] = collections.Counter()
        self.completion_tokens: collections.Counter[int] = collections.Counter()
        self.mean_logprob = np.zeros(len(LOGPROB_BINS) - 1, np.int64)
        self.repetition = np.zeros(21, np.int64)
        self.completions = 0

    @property
    def looping(self) -> int:
        """Completions that loop."""
        return int(self.repetition[round(LOOPING * 20) :].sum())

    def add(self, batch: pa.RecordBatch, prefix: str) -> None:
        """Counts a batch's succeeded rows in."""

        def column(name: str) -> pa.Array:
            return good.column(prefix + name)

        good = good_rows(batch, prefix)
        self.completions += good.num_rows
        length = column("completion_tokens")
        self.prompt_tokens.update(counted(column("prompt_tokens")))
        self.completion_tokens.update(counted(length))
        tokens = np.maximum(length.fill_null(0).to_numpy(zero_copy_only=False), 1)
        total = column("cumulative_logprob").fill_null(0).to_numpy(zero_copy_only=False)
        mean = np.clip(total / tokens, LOGPROB_BINS[0], LOGPROB_BINS[-1])
        self.mean_logprob += np.histogram(mean, LOGPROB_BINS)[0]
        left = max(0, REPETITION_ROWS - int(self.repetition.sum()))
        for ids in column("token_ids").slice(0, left):
            self.repetition[int(repetition(ids.values.to_numpy()) * 20)] += 1


def repetition(ids: np.ndarray) -> float:
    """Share of a completion's 4-grams that stood in it before; 0 for a short one."""
    if len(ids) <= NGRAM:
        return 0.0
    grams = np.lib.stride_tricks.sliding_window_view(ids, NGRAM).astype(np.uint64)
    # One number a 4-gram: ids have fewer than 32 bits, and a rare collision does no harm.
    mixed = grams @ np.array(_MIX, np.uint64)
    return 1.0 - len(np.unique(mixed)) / len(mixed)


def good_rows(batch: pa.RecordBatch, prefix: str) -> pa.RecordBatch:
    """Those of a batch that have an answer."""
    return batch.filter(pc.equal(batch.column(prefix + "status"), SUCCEEDED))


def counted(lengths: pa.Array) -> dict[int, int]:
    """Length -> rows."""
    values, counts = np.unique(lengths.drop_null().to_numpy(), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


@dataclasses.dataclass(frozen=True, order=False, kw_only=True)
class CompletionSample(Sample):
    """A completion to look at.

    Attributes:
      finish_reason: how it ended.
      mean_logprob: over its tokens.
    """

    finish_reason: str
    mean_logprob: float | None

    @property
    def facts(self) -> list[str]:
        """See ``Sample``."""
        facts = [self.custom_id or self.row_uid, f"{self.tokens} tokens"]
        facts.append(f"ended by {self.finish_reason}")
        if self.index:
            facts.append(f"sample {self.index}")
        if self.mean_logprob is not None:
            facts.append(f"{self.mean_logprob:.2f} a token")
        return facts


def completion_sample(
    row: dict[str, Any], prefix: str, settings: dict[str, Any]
) -> CompletionSample:
    """A row of a part as a sample."""

    def added(name: str) -> Any:
        return row.get(prefix + name)

    given = InputRow(row, settings)
    ids = added("token_ids") or []
    logprobs = added("logprobs")
    tokens, total = added("completion_tokens") or 0, added("cumulative_logprob")
    return CompletionSample(
        row_uid=added("row_uid"),
        index=added("sample_index") or 0,
        custom_id=given.custom_id,
        prompt=asked(given, settings),
        answer=shown_text(ids if added("text") is None else added("text")),
        token_ids=ids,
        logprobs=None if logprobs is None else [entry["logprob"] for entry in logprobs],
        tokens=tokens,
        finish_reason=added("finish_reason") or "",
        mean_logprob=total / tokens if tokens and total is not None else None,
    )
