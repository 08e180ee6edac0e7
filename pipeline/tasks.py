"""What a job can do with its rows: complete them as prompts, or score them.

All that differs between the two stands here, or in what is named here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from model import constraint
from model.engine.request import NOT_HEALED
from model.tokenizer import Tokenizer
from pipeline import prompts, scores
from pipeline.options import GenerateOptions, JobOptions, ScoreOptions
from schemas import completion, prompt, score
from schemas.checks import InvalidParameter
from schemas.error import SetupError
from schemas.structured import SHORTHANDS

if TYPE_CHECKING:
    from pipeline.plan import Chunk
    from pipeline.prepare import Job
    from pipeline.questions import Questions


_CONSTRAINTS = ("structured_outputs", *SHORTHANDS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One of them.

    Attributes:
      columns: that are added to the input's.
      resolve: finds the columns' roles in a schema, by the user's map; ``where`` names the input.
      prepare_chunk: makes a chunk's rows ready for the model.
      check: refuses options that no row can be done with, given the roles, the context
        and the vocabulary.
      needs_tokenizer: what of a job needs a tokenizer, or None.
    """

    columns: Mapping[str, pa.DataType]
    resolve: Callable[[pa.Schema, Mapping[str, str], str], Any]
    prepare_chunk: Callable[["Job", "Chunk", pa.Table, Tokenizer | None], "Questions"]
    check: Callable[[Any, Any, int, int], None]
    needs_tokenizer: Callable[[Any, Any], str | None]


def of(options: JobOptions) -> Task:
    """The task of a job."""
    return _TASKS[options.task]


def _check_generate(
    options: GenerateOptions, roles: prompt.Roles, max_context: int, vocab_size: int
) -> None:
    if "max_tokens" not in roles.sampling and options.sampling.max_tokens >= max_context:
        raise SetupError(
            f"--max-tokens {options.sampling.max_tokens} leaves no room for a prompt in a context "
            f"of {max_context} tokens; give fewer"
        )
    for name, ids in options.sampling.token_id_lists():
        wrong = next((token for token in ids if not 0 <= token < vocab_size), None)
        if wrong is not None and name not in roles.sampling:
            raise SetupError(
                f"--{name.replace('_', '-')} holds {wrong}, but the model's vocabulary ends at "
                f"{vocab_size - 1}; give ids of its tokenizer"
            )
    beside = [name for name in NOT_HEALED if getattr(options.sampling, name) is not None]
    if options.token_healing and beside:
        raise SetupError(
            f"--token-healing does not go together with --{beside[0].replace('_', '-')}; leave one "
            "of the two out, or set the latter by a column, whose rows are not healed"
        )
    constrained = [column for role, column in roles.sampling.items() if role in _CONSTRAINTS]
    if constrained and not constraint.available():
        raise SetupError(f"column {constrained[0]!r} {constraint.NEEDED}")
    if options.sampling.structured_outputs is not None:
        try:
            constraint.check(options.sampling.structured_outputs)
        except InvalidParameter as error:
            raise SetupError(f"--structured-outputs {error.reason}") from None


def _check_score(
    options: ScoreOptions, roles: score.Roles, max_context: int, vocab_size: int
) -> None:
    if options.stride is not None and options.stride > max_context:
        raise SetupError(
            f"--stride {options.stride} exceeds the context of {max_context} tokens; give fewer"
        )
    if options.stride is not None and roles.document is roles.document_token_ids is None:
        raise SetupError("--stride is for documents, and the input has none; leave it out")


def _text_of_prompts(options: GenerateOptions, roles: prompt.Roles) -> str | None:
    if roles.prompt is not None:
        return f"column {roles.prompt!r} holds text"
    if options.token_healing:
        return "--token-healing is about text"
    if options.echo:
        return "--echo writes text"
    for role in ("stop", "bad_words", *_CONSTRAINTS):
        if getattr(options.sampling, role, None):
            return f"--{role.replace('_', '-')} is about text"
        if role in roles.sampling:
            return f"column {roles.sampling[role]!r} is about text"
    return None


def _text_of_scores(options: ScoreOptions, roles: score.Roles) -> str | None:
    return f"column {roles.texts[0]!r} holds text" if roles.texts else None


_TASKS = {
    "generate": Task(
        columns=completion.COLUMNS,
        resolve=prompt.resolve,
        prepare_chunk=prompts.prepare_chunk,
        check=_check_generate,
        needs_tokenizer=_text_of_prompts,
    ),
    "score": Task(
        columns=score.COLUMNS,
        resolve=score.resolve,
        prepare_chunk=scores.prepare_chunk,
        check=_check_score,
        needs_tokenizer=_text_of_scores,
    ),
}
