"""Distributions over output rows, and single rows to look at."""

import collections
import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.tokenizer import Tokenizer

LOGPROB_BINS = np.linspace(-8.0, 0.0, 41)
"""Edges of the bins of a completion's mean log-probability a token; what is below goes first."""

NGRAM = 4
LOOPING = 0.5
"""A completion loops if at least this share of its 4-grams of tokens has been there before."""

REPETITION_ROWS = 50_000
"""Rows that are looked through for it at most."""

_MIX = (1, 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
_TEXT = 20_000
"""Characters of a prompt or completion that a report carries."""


class RowStatistics:
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

        def column(name: str) -> pa.Array | None:
            return good.column(prefix + name) if prefix + name in good.schema.names else None

        good = batch.filter(pc.equal(batch.column(prefix + "status"), "succeeded"))
        self.completions += good.num_rows
        prompt, length = column("prompt_tokens"), column("completion_tokens")
        if prompt is not None:
            self.prompt_tokens.update(_counts(prompt))
        if length is None:
            return
        self.completion_tokens.update(_counts(length))
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


def _counts(lengths: pa.Array) -> dict[int, int]:
    values, counts = np.unique(lengths.drop_null().to_numpy(), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


@dataclasses.dataclass(frozen=True, order=False, kw_only=True)
class Sample:
    """A row to look at.

    Attributes:
      row_uid, sample_index: which.
      custom_id: the user's own id, or None.
      prompt: as text, or its token ids as text.
      completion: the same.
      token_ids: of the completion.
      logprobs: of each of them, or None where the job did not ask.
      finish_reason: how it ended.
      tokens: how many.
      mean_logprob: over them.
      pieces: the completion's text token by token, once ``spell`` has been able to tell.
    """

    row_uid: str
    sample_index: int
    custom_id: str | None
    prompt: str
    completion: str
    token_ids: list[int]
    logprobs: list[float] | None
    finish_reason: str
    tokens: int
    mean_logprob: float | None
    pieces: list[str] | None = None

    def __lt__(self, other: "Sample") -> bool:  # equal ranks in a heap: any order will do
        return False

    def spell(self, tokenizer: Tokenizer | None) -> "Sample":
        """This sample with its text cut into tokens, where a tokenizer and logprobs are there."""
        if tokenizer is None or self.logprobs is None:
            return self
        stream = tokenizer.stream((), skip_special_tokens=False)
        try:
            pieces = [stream.push([token]) for token in self.token_ids]
        except ValueError:
            return self
        pieces[-1:] = [piece + stream.finish() for piece in pieces[-1:]]
        # The tokens' own text lacks the space that a prompt gives the first of them.
        if pieces and self.completion.startswith(" ") and not pieces[0].startswith(" "):
            pieces[0] = " " + pieces[0]
        return dataclasses.replace(self, pieces=pieces)


def sample_of(row: dict[str, Any], prefix: str, settings: dict[str, Any]) -> Sample:
    """A row of a part as a sample."""

    def added(name: str) -> Any:
        return row.get(prefix + name)

    def own(role: str) -> Any:
        column = settings.get("columns", {}).get(role) or role
        return row.get(settings.get("rename", {}).get(column, column))

    prompt = own("prompt")
    ids = added("token_ids") or []
    logprobs = added("logprobs")
    tokens, total = added("completion_tokens") or 0, added("cumulative_logprob")
    custom = own("custom_id")
    return Sample(
        row_uid=added("row_uid"),
        sample_index=added("sample_index") or 0,
        custom_id=None if custom is None else str(custom),
        prompt=_text(own("prompt_token_ids") if prompt is None else prompt),
        completion=_text(ids if added("text") is None else added("text")),
        token_ids=ids,
        logprobs=None if logprobs is None else [entry["logprob"] for entry in logprobs],
        finish_reason=added("finish_reason") or "",
        tokens=tokens,
        mean_logprob=total / tokens if tokens and total is not None else None,
    )


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    text = value if isinstance(value, str) else " ".join(map(str, value or ()))
    return text if len(text) <= _TEXT else text[:_TEXT] + "…"
