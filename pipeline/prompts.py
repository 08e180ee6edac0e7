"""Rows on their way to the model: validated, tokenized, cut to the context, given their ids."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from model.engine.request import NOT_HEALED, Request
from model.tokenizer import Tokenizer
from pipeline.building import builder
from pipeline.elements import PromptChunk
from pipeline.options import GenerateOptions
from pipeline.plan import Chunk
from pipeline.row_uids import row_uids
from schemas.error import ErrorCode, RowError
from schemas.prompt import PromptRow, by_column, validate
from schemas.sampling import SamplingParams

if TYPE_CHECKING:
    from pipeline.prepare import Job


def prepare_chunk(
    job: "Job", chunk: Chunk, rows: pa.Table, tokenizer: Tokenizer | None
) -> PromptChunk:
    """Validates and tokenizes a chunk's rows; what cannot be asked becomes an error here."""
    options = job.options
    assert isinstance(options, GenerateOptions)
    uids = row_uids(job, chunk, rows)
    asked, faults = (rows, {}) if job.recipe is None else builder(job.recipe).build(rows, uids)
    good, errors = validate(asked, job.roles, options.sampling)
    errors |= faults
    sources, requests, echoes, lengths, cut = [], [], [], {}, 0
    for row, ids in zip(good, _token_ids(good, job, tokenizer), strict=True):
        lengths[row.index] = len(ids)
        fault = _fault(row, ids, job)
        fitted = fault or fit(ids, row.params, job, is_text=row.text is not None)
        if isinstance(fitted, RowError):
            errors[row.index] = by_column(fitted, job.roles, rows, row.index)
            continue
        cut += len(fitted) < len(ids)
        address = f"{options.run_seed}/{uids[row.index]}"
        sources.append(row.index)
        if options.echo:
            echoes.append(_echo(row, fitted, len(fitted) < len(ids), tokenizer))
        ends = len(fitted) == len(ids) or options.over_length != "truncate_right"
        heals = options.token_healing and ends
        healer = tokenizer if heals else None
        requests.append(_request(row, tuple(fitted), address, healer, job.max_context))
    return PromptChunk(
        chunk=chunk,
        rows=rows,
        row_uids=uids,
        sources=tuple(sources),
        requests=tuple(requests),
        errors=errors,
        prompt_tokens={row: count for row, count in lengths.items() if row in errors},
        cut=cut,
        echoes=tuple(echoes),
        dedupe=options.dedupe,
        roles=job.roles,
    )


def _request(
    row: PromptRow, ids: tuple[int, ...], address: str, healer: Tokenizer | None, max_context: int
) -> Request:
    """The row's request, its last token taken off if ``healer`` finds that it can be healed."""
    params, healed = row.params, None
    begins = any(getattr(params, name) is not None for name in NOT_HEALED)
    if healer is not None and row.text is not None and not begins:
        healed = ids[-1] if healer.can_heal(ids) else None
    kept = ids if healed is None else ids[:-1]
    request = Request(prompt_token_ids=kept, params=params, address=address, healed=healed)
    return request.within(max_context)


def _echo(row: PromptRow, ids: list[int], cut: bool, tokenizer: Tokenizer | None) -> str:
    """The prompt's text, as far as it is run."""
    if row.text is not None and not cut:
        return row.text
    assert tokenizer is not None  # ``prepare_job`` refuses to echo without one
    return tokenizer.decode(ids, row.params.skip_special_tokens)


def fit(
    ids: list[int], params: SamplingParams, job: "Job", *, is_text: bool = True
) -> list[int] | RowError:
    """The prompt as it is run: prompt and ``max_tokens`` together must not exceed the context.

    Where they do, ``--over-length`` decides: an error, or the prompt cut to what ``max_tokens``
    leaves of the context, by its beginning or its end. A BOS that the policy put there stays.

    Args:
      ids: the prompt, BOS included.
      params: the row's sampling parameters.
      job: the job.
      is_text: whether the prompt was given as text, which the BOS policy applies to.
    """
    room = job.max_context - params.least_room
    if len(ids) <= room:
        return ids
    head = ids[: 1 if is_text and job.options.bos == "always" else 0]
    kept = room - len(head)
    if job.options.over_length == "error" or kept < 1:
        column = job.roles.prompt if is_text else job.roles.prompt_token_ids
        return RowError(
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            f"prompt of {len(ids)} tokens and {params.told_room} exceed the context of "
            f"{job.max_context}",
            "max_tokens" if room < 1 else column or "prompt",
        )
    body = ids[len(head) :]
    return head + (body[:kept] if job.options.over_length == "truncate_right" else body[-kept:])


def _fault(row: PromptRow, ids: list[int], job: "Job") -> RowError | None:
    column = job.roles.prompt if row.text is not None else job.roles.prompt_token_ids
    if not ids:
        return RowError(ErrorCode.PROMPT_EMPTY, f"{column} has no tokens", column)
    for name, given in ((column, ids), *row.params.token_id_lists()):
        if given and (min(given) < 0 or max(given) >= job.vocab_size):
            at, wrong = next((i, t) for i, t in enumerate(given) if not 0 <= t < job.vocab_size)
            return RowError(
                ErrorCode.TOKEN_ID_OUT_OF_RANGE,
                f"{name} holds {wrong} at position {at}, outside the vocabulary of "
                f"{job.vocab_size}",
                name,
            )
    return None


def _token_ids(
    good: Sequence[PromptRow], job: "Job", tokenizer: Tokenizer | None
) -> Iterator[list[int]]:
    texts = [row.text for row in good if row.text is not None]
    encoded: Iterator[list[int]] = iter(())
    if texts:
        assert tokenizer is not None  # ``prepare_job`` refuses text without one
        encoded = iter(tokenizer.encode_batch(texts, bos=job.options.bos == "always"))
    for row in good:
        yield next(encoded) if row.token_ids is None else row.token_ids
