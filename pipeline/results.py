"""The engine's answers as rows: those of a run's parts, or a table for a program of one's own."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from model import evaluation
from model.engine.request import RequestOutput
from model.engine.scoring import Score, ScoreOutput
from schemas import completion, score
from schemas.completion import OutputRows, output_schema
from schemas.error import RowError, SetupError


def completions_table(
    outputs: Sequence[RequestOutput], inputs: pa.Table | None = None, *, prefix: str = ""
) -> pa.Table:
    """What ``Engine.generate`` returns as a table with a run's columns; ``to_pandas()`` it at will.

    Examples:
      >>> from model.engine.engine import Engine
      >>> with Engine.from_checkpoint("grok-1") as engine:
      ...     table = completions_table(engine.generate(["import ", []]))
      >>> table.select(["row_uid", "status", "error_code"]).to_pylist()
      [{'row_uid': '0', 'status': 'succeeded', 'error_code': None},
       {'row_uid': '1', 'status': 'errored', 'error_code': 'prompt_empty'}]

    Args:
      outputs: the answers.
      inputs: columns to put before the added ones, a row an answer.
      prefix: put before the name of each added column.

    Returns:
      ``n`` rows an answer, one for an error. ``row_uid`` is the answer's place; ``seed`` is null,
      since an answer does not tell of it.

    Raises:
      SetupError: ``inputs`` has another number of rows, or a column by the name of an added one.
    """
    rows = OutputRows(called=True)
    for place, output in enumerate(outputs):
        if output.error is not None:
            length = len(output.prompt_token_ids)
            add_completion_error(rows, place, str(place), output.error, length)
        else:
            add_completions(rows, place, str(place), output)
    return _table(rows, len(outputs), inputs, completion.COLUMNS, prefix)


def scores_table(
    outputs: Sequence[ScoreOutput], inputs: pa.Table | None = None, *, prefix: str = ""
) -> pa.Table:
    """What ``Engine.score`` returns as a table with the columns of ``grok1 score``.

    Examples:
      >>> from model.engine.engine import Engine
      >>> with Engine.from_checkpoint("grok-1") as engine:
      ...     table = scores_table(engine.score([("import ", "os"), ("import ", "re")]))
      >>> frame = table.to_pandas()
      >>> bool((frame["logprob"] < 0).all())
      True

    Args:
      outputs: the answers.
      inputs: columns to put before the added ones, a row an answer.
      prefix: put before the name of each added column.

    Returns:
      A row a continuation, one for an error. ``row_uid`` is the answer's place; ``text_bytes`` and
      ``byte_perplexity`` are null, since an answer knows tokens alone.

    Raises:
      SetupError: as ``completions_table``.
    """
    rows = OutputRows(score.COLUMNS, called=True)
    for place, output in enumerate(outputs):
        if output.error is not None:
            rows.add_error(place, str(place), output.error, continuation_index=0)
            continue
        length = len(output.request.context_token_ids)
        for index, found in enumerate(output.scores):
            add_score(rows, place, str(place), index, found, length, output.cached_tokens, None)
    return _table(rows, len(outputs), inputs, score.COLUMNS, prefix)


def add_completions(
    rows: OutputRows,
    source: int,
    row_uid: str,
    answer: RequestOutput,
    *,
    seed: int | None = None,
    echo: str = "",
    has_text: bool = True,
) -> None:
    """Adds the rows of a good answer.

    Args:
      rows: get them.
      source: the input row's place in its batch.
      row_uid: the input row's id.
      answer: with ``n`` completions.
      seed: what its randomness derives from, with ``row_uid``.
      echo: goes before each completion's text.
      has_text: whether the engine had a tokenizer.
    """
    for sample in answer.outputs:
        rows.add(
            source,
            row_uid,
            sample_index=sample.index,
            text=echo + sample.text if has_text else None,
            token_ids=sample.token_ids,
            finish_reason=sample.finish_reason,
            stop_reason=None if sample.stop_reason is None else str(sample.stop_reason),
            cumulative_logprob=sample.cumulative_logprob,
            logprobs=sample.logprobs,
            prompt_logprobs=answer.prompt_logprobs,
            prompt_tokens=len(answer.prompt_token_ids),
            completion_tokens=len(sample.token_ids),
            cached_tokens=answer.cached_tokens,
            seed=seed,
        )


def add_completion_error(
    rows: OutputRows, source: int, row_uid: str, error: RowError, prompt_tokens: int | None
) -> None:
    """Adds the row of a prompt that has no completion; ``prompt_tokens`` where they are known."""
    rows.add_error(
        source,
        row_uid,
        error,
        sample_index=0,
        finish_reason="error",
        prompt_tokens=prompt_tokens,
    )


def add_score(
    rows: OutputRows,
    source: int,
    row_uid: str,
    index: int,
    found: Score,
    context_tokens: int,
    cached_tokens: int,
    text_bytes: int | None,
) -> None:
    """Adds the row of a continuation's score.

    Args:
      rows: get it.
      source: the input row's place in its batch.
      row_uid: the input row's id.
      index: which of the input row's continuations.
      found: its score.
      context_tokens: length of its context.
      cached_tokens: of these, how many another row has computed.
      text_bytes: length in UTF-8; None for what was given as token ids.
    """
    rows.add(
        source,
        row_uid,
        continuation_index=index,
        logprob=found.logprob,
        is_greedy=found.is_greedy,
        token_ids=found.token_ids,
        token_logprobs=found.token_logprobs,
        logprobs=found.logprobs,
        perplexity=evaluation.perplexity(found.logprob, len(found.token_ids)),
        text_bytes=text_bytes,
        byte_perplexity=None
        if text_bytes is None
        else evaluation.perplexity(found.logprob, text_bytes),
        context_tokens=context_tokens,
        continuation_tokens=len(found.token_ids),
        cached_tokens=cached_tokens,
    )


def _table(
    rows: OutputRows,
    answers: int,
    inputs: pa.Table | None,
    columns: Mapping[str, pa.DataType],
    prefix: str,
) -> pa.Table:
    inputs = pa.table({}) if inputs is None else inputs
    if inputs.num_columns and inputs.num_rows != answers:
        raise SetupError(
            f"inputs has {inputs.num_rows} rows for {answers} answers; give the table that the "
            "prompts came from"
        )
    return rows.table(inputs, output_schema(inputs.schema, (), columns=columns, prefix=prefix))
