"""Single rows to look at, whatever the task."""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from model.tokenizer import Tokenizer
from pipeline.building import TARGETS
from pipeline.input_row import InputRow
from pipeline.report.text import text_of
from pipeline.template import Template

_TEXT = 20_000
"""Characters of a text that a report carries."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(abc.ABC):
    """A row to look at.

    Attributes:
      row_uid, index: which; the latter among the output rows of one input row.
      custom_id: the user's own id, or None.
      prompt: what stands before, as text, or its token ids as text.
      answer: what was drawn or scored, the same way.
      token_ids: of the answer.
      logprobs: of each of them, or None where the job did not ask.
      tokens: how many the answer has.
      pieces: the answer's text token by token, once ``spell`` has been able to tell.
    """

    row_uid: str
    index: int
    custom_id: str | None
    prompt: str
    answer: str
    token_ids: list[int]
    logprobs: list[float] | None
    tokens: int
    pieces: list[str] | None = None

    @property
    @abc.abstractmethod
    def facts(self) -> list[str]:
        """What is told of it, in words."""

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
        if pieces and self.answer.startswith(" ") and not pieces[0].startswith(" "):
            pieces[0] = " " + pieces[0]
        return dataclasses.replace(self, pieces=pieces)


def asked(row: InputRow, settings: Mapping[str, Any]) -> str:
    """The prompt, or the context; of one that was built, the columns that a template read."""
    template = (settings.get("prompting") or {}).get("template")
    if template is not None:
        told = (
            f"{name}: {text_of(row.column(name))}" for name in _names(template) if row.has(name)
        )
        return shown_text("\n".join(told))
    role = TARGETS[settings["task"]]
    text = row.value(role)
    return shown_text(row.value(f"{role}_token_ids") if text is None else text)


@functools.lru_cache(maxsize=4)
def _names(template: str) -> list[str]:
    return Template(template).names


def figure(value: float) -> str:
    """A number to four digits, written out."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def shown_text(value: Any) -> str:
    """A value as text no longer than a report carries; of null, none."""
    text = "" if value is None else text_of(value)
    return text if len(text) <= _TEXT else text[:_TEXT] + "…"
