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

REMEDIES: dict[ErrorCode, str] = {
    ErrorCode.PROMPT_MISSING: "fill in the text or its token ids, or drop the row",
    ErrorCode.PROMPT_TYPE: "store the text as a string, or its tokens as a list of integers",
    ErrorCode.PROMPT_AMBIGUOUS: "give the text or its token ids, not both",
    ErrorCode.PROMPT_EMPTY: "give at least one token, or set --bos=always",
    ErrorCode.CONTINUATION_EMPTY: "give at least one token to score, or drop the row",
    ErrorCode.TEMPLATE_FAILED: "fill the columns that the template reads, or let it do without",
    ErrorCode.TOKEN_ID_OUT_OF_RANGE: "use the tokenizer that belongs to the checkpoint",
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: "shorten the prompt or max_tokens, or set --over-length",
    ErrorCode.INVALID_PARAMETER: "correct the value in its column; bounds are vLLM's",
    ErrorCode.INPUT_UNREADABLE: "restore the file, then retry the errored rows: grok1 retry OUTPUT",
    ErrorCode.INPUT_SCHEMA: "cast or rename the column, or run the file apart",
    ErrorCode.INPUT_CHANGED: "put the planned file back, then retry the errored rows: grok1 retry "
    "OUTPUT",
    ErrorCode.DEADLINE_EXCEEDED: "lower max_tokens, or raise --row-deadline",
    ErrorCode.POISON: "change the prompt or its parameters, and report it; "
    "grok1 retry OUTPUT tries it again",
    ErrorCode.SUSPECTED_POISON: "try it alone: grok1 retry OUTPUT",
    ErrorCode.ENGINE_FAILURE: "run again: the row is retried; report it if it fails twice",
}


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

    def sentence(self) -> str:
        """The message with its remedy, as it is shown to the user."""
        return f"{self.message} ({REMEDIES[self.code]})"


class SetupError(Exception):
    """A wrong set-up, found before any model loads; one sentence: what, where, and the remedy."""
