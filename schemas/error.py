"""All that can be wrong with a row, a file or a set-up, each with what the user can do about it."""

import dataclasses
import enum


class ErrorCode(enum.StrEnum):
    """Code of a row, or a whole file, without completion; it stands in column ``error_code``."""

    PROMPT_MISSING = "prompt_missing"
    PROMPT_TYPE = "prompt_type"
    PROMPT_AMBIGUOUS = "prompt_ambiguous"
    PROMPT_EMPTY = "prompt_empty"
    CONTINUATION_EMPTY = "continuation_empty"
    TEMPLATE_FAILED = "template_failed"
    TOKEN_ID_OUT_OF_RANGE = "token_id_out_of_range"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INVALID_PARAMETER = "invalid_parameter"
    INPUT_UNREADABLE = "input_unreadable"
    INPUT_SCHEMA = "input_schema"
    INPUT_CHANGED = "input_changed"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    POISON = "poison"
    SUSPECTED_POISON = "suspected_poison"
    ENGINE_FAILURE = "engine_failure"


INPUT_ERRORS = (ErrorCode.INPUT_UNREADABLE, ErrorCode.INPUT_SCHEMA, ErrorCode.INPUT_CHANGED)
"""Faults of a file: of all its rows if it never was in the plan, else of those that stand there."""


@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """What a code says, in words that begin or end no sentence.

    Attributes:
      meaning: what is the matter.
      cause: where it usually comes from.
      remedy: what the user can do.
    """

    meaning: str
    cause: str
    remedy: str


EXPLANATIONS: dict[ErrorCode, Explanation] = {
    ErrorCode.PROMPT_MISSING: Explanation(
        "the row has no prompt, or nothing to score",
        "the columns of the text and of its token ids are both null",
        "fill in the text or its token ids, or drop the row",
    ),
    ErrorCode.PROMPT_TYPE: Explanation(
        "the text or its token ids are not of a kind that can be read",
        "bytes that are no UTF-8, a number for a text, a null among token ids",
        "store the text as a string, or its tokens as a list of integers",
    ),
    ErrorCode.PROMPT_AMBIGUOUS: Explanation(
        "the row says twice what its prompt is",
        "both the column of the text and that of its token ids are filled",
        "give the text or its token ids, not both",
    ),
    ErrorCode.PROMPT_EMPTY: Explanation(
        "the prompt has no tokens, so that nothing can follow it",
        "an empty text or list, and no BOS token before it",
        "give at least one token, or set --bos=always",
    ),
    ErrorCode.CONTINUATION_EMPTY: Explanation(
        "there are no tokens to score",
        "an empty continuation, document or list of continuations",
        "give at least one token to score, or drop the row",
    ),
    ErrorCode.TEMPLATE_FAILED: Explanation(
        "the template made no prompt of the row",
        "a column that it reads is null, or of a kind that it cannot use",
        "fill the columns that the template reads, or let it do without",
    ),
    ErrorCode.TOKEN_ID_OUT_OF_RANGE: Explanation(
        "a token id is none of the model's vocabulary",
        "ids made with another tokenizer, or a negative number",
        "use the tokenizer that belongs to the checkpoint",
    ),
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: Explanation(
        "the prompt and what may follow it are longer than the context",
        "a long prompt, a large max_tokens, or a small --max-context",
        "shorten the prompt or max_tokens, or set --over-length",
    ),
    ErrorCode.INVALID_PARAMETER: Explanation(
        "a parameter of the row is out of bounds, or goes with none of the others",
        "a value in a column that is called like a sampling parameter",
        "correct the value in its column; bounds are vLLM's",
    ),
    ErrorCode.INPUT_UNREADABLE: Explanation(
        "a file of the input, or the part of it that holds the row, cannot be read",
        "a damaged or half-written file, or rights that this account lacks",
        "restore the file, then retry its errored rows: grok1 retry OUTPUT; a file that was left "
        "out whole has none, and the same command with --extend takes it in",
    ),
    ErrorCode.INPUT_SCHEMA: Explanation(
        "a file's columns cannot be brought together with those of the others",
        "a column that is text in one file and numbers in another, or is missing from one",
        "cast or rename the column, then give the same command with --extend",
    ),
    ErrorCode.INPUT_CHANGED: Explanation(
        "a file is not what it was when the job was planned",
        "it was written again, or removed, while the job ran",
        "put the planned file back, then retry the errored rows: grok1 retry OUTPUT",
    ),
    ErrorCode.DEADLINE_EXCEEDED: Explanation(
        "the row took longer than a row may",
        "a large max_tokens on a slow machine, with --row-deadline",
        "lower max_tokens, or raise --row-deadline",
    ),
    ErrorCode.POISON: Explanation(
        "the process died each time that it ran this row, even alone",
        "a fault of the engine, a driver or a device that this row brings out",
        "change the prompt or its parameters, and report it; grok1 retry OUTPUT tries it again",
    ),
    ErrorCode.SUSPECTED_POISON: Explanation(
        "the row was under way each time that the process died, and was not tried alone",
        "it, or one of its neighbours, brings out such a fault",
        "try it alone: grok1 retry OUTPUT",
    ),
    ErrorCode.ENGINE_FAILURE: Explanation(
        "the engine failed on this row, and went on with the others",
        "numbers that are not finite, or a fault of the engine",
        "run again: the row is retried; report it if it fails twice",
    ),
}

_OF_CALLS: dict[ErrorCode, str] = {
    ErrorCode.PROMPT_EMPTY: "give at least one token",
    ErrorCode.CONTINUATION_EMPTY: "give at least one token to score",
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: "shorten it, ask for fewer tokens, or give the engine a "
    "larger max_context",
    ErrorCode.INVALID_PARAMETER: "correct the value; bounds are vLLM's",
    ErrorCode.ENGINE_FAILURE: "ask again; report it if it fails twice",
}
"""Remedies where there is neither a flag nor a column, but a call."""


@dataclasses.dataclass(frozen=True, slots=True)
class RowError:
    """Why one row has no completion.

    Attributes:
      code: the machine-readable reason.
      message: one sentence for a person, with the offending value's size or bounds.
      param: the parameter or column at fault, or None.
    """

    code: ErrorCode
    message: str
    param: str | None = None

    def sentence(self, called: bool = False) -> str:
        """The message with its remedy, as it is shown to the user.

        Args:
          called: whether it is shown to a program that called the engine, which has no flags.
        """
        remedy = EXPLANATIONS[self.code].remedy
        if called:
            remedy = _OF_CALLS.get(self.code, remedy)
        return f"{self.message} ({remedy})"


class SetupError(Exception):
    """A wrong set-up, found before any model loads; one sentence: what, where, and the remedy."""
