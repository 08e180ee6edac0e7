"""Rows on their way to be scored: validated, tokenized, cut to the context or into windows."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

import pyarrow as pa

from model import evaluation
from model.tokenizer import Tokenizer
from pipeline.building import builder
from pipeline.options import ScoreOptions
from pipeline.plan import Chunk
from pipeline.row_uids import row_uids
from pipeline.score_elements import Pieces, ScoreChunk
from schemas.error import ErrorCode, RowError
from schemas.score import Roles, ScoreRow, validate

if TYPE_CHECKING:
    from pipeline.prepare import Job

Ids = Sequence[int]


def prepare_chunk(
    job: "Job", chunk: Chunk, rows: pa.Table, tokenizer: Tokenizer | None
) -> ScoreChunk:
    """Validates and tokenizes a chunk's rows; what cannot be scored becomes an error here."""
    options = job.options
    assert isinstance(options, ScoreOptions)
    uids = row_uids(job, chunk, rows)
    known, faults = (rows, {}) if job.recipe is None else builder(job.recipe).build(rows, uids)
    good, errors = validate(known, job.roles)
    # A context that could not be built is null, and so looks as if there were none.
    good = [row for row in good if row.index not in faults]
    errors |= faults
    sources, asked = [], []
    for row, pairs in zip(good, _encoded(good, job, tokenizer), strict=True):
        pieces = _fault(row, pairs, job) or _pieces(row, pairs, job, options.stride)
        if isinstance(pieces, RowError):
            errors[row.index] = pieces
            continue
        sources.append(row.index)
        asked.append(pieces)
    return ScoreChunk(
        chunk=chunk,
        rows=rows,
        row_uids=uids,
        sources=tuple(sources),
        errors=errors,
        asked=tuple(asked),
        logprobs=options.logprobs,
        dedupe=options.dedupe,
    )


def _encoded(
    good: Sequence[ScoreRow], job: "Job", tokenizer: Tokenizer | None
) -> Iterator[list[tuple[Ids, Ids]]]:
    """Context and continuation, as token ids, of all continuations of each row."""
    bos = job.options.bos == "always"
    texts = [
        (cast(str, row.context or ""), continuation)  # both are text, or neither
        for row in good
        for continuation in row.continuations
        if isinstance(continuation, str)
    ]
    encoded: Iterator[tuple[Ids, Ids]] = iter(())
    if texts:
        assert tokenizer is not None  # ``prepare_job`` refuses text without one
        encoded = iter(evaluation.encode_pairs(tokenizer, texts, job.prefix_token, bos))
    for row in good:
        yield [
            next(encoded)
            if isinstance(continuation, str)
            else (cast(Ids, row.context or [job.prefix_token]), continuation)
            for continuation in row.continuations
        ]


def _pieces(
    row: ScoreRow, pairs: Sequence[tuple[Ids, Ids]], job: "Job", stride: int | None
) -> Pieces | RowError:
    """What the engine is to score for a row, none of it longer than the context."""
    sizes = tuple(len(c.encode()) if isinstance(c, str) else None for c in row.continuations)
    most = job.max_context
    if row.is_document:
        [(_, ids)] = pairs
        cut = evaluation.windows(ids, job.prefix_token, most, stride or most)
        return Pieces(pairs=_frozen(cut), is_document=True, text_bytes=sizes)
    fitted = []
    for context, continuation in pairs:
        kept = evaluation.fit(context, continuation, most, keep=_has_bos(row, job))
        if len(kept) + len(continuation) - 1 > most or (
            len(kept) < len(context) and job.options.over_length == "error"
        ):
            return RowError(
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"context of {len(context)} and continuation of {len(continuation)} tokens exceed "
                f"the context of {most}",
                _column(row, job.roles),
            )
        fitted.append((kept, continuation))
    return Pieces(pairs=_frozen(fitted), is_document=False, text_bytes=sizes)


def _frozen(
    pairs: Iterable[tuple[Ids, Ids]],
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    return tuple((tuple(context), tuple(continuation)) for context, continuation in pairs)


def _has_bos(row: ScoreRow, job: "Job") -> bool:
    return job.options.bos == "always" and isinstance(row.continuations[0], str)


def _fault(row: ScoreRow, pairs: Sequence[tuple[Ids, Ids]], job: "Job") -> RowError | None:
    column = _column(row, job.roles)
    for context, continuation in pairs:
        if not continuation:
            return RowError(ErrorCode.CONTINUATION_EMPTY, f"{column} has no tokens", column)
        for name, ids in (("the context", context), (column, continuation)):
            if min(ids) < 0 or max(ids) >= job.vocab_size:
                at, wrong = next((i, t) for i, t in enumerate(ids) if not 0 <= t < job.vocab_size)
                return RowError(
                    ErrorCode.TOKEN_ID_OUT_OF_RANGE,
                    f"{name} holds {wrong} at position {at}, outside the vocabulary of "
                    f"{job.vocab_size}",
                    column,
                )
    return None


def _column(row: ScoreRow, roles: Roles) -> str | None:
    """The input column that holds what is to be scored."""
    if row.is_document:
        pair = (roles.document, roles.document_token_ids)
    elif roles.continuations is not None:
        return roles.continuations
    else:
        pair = (roles.continuation, roles.continuation_token_ids)
    return pair[0] if isinstance(row.continuations[0], str) else pair[1]
