"""What travels through the pipeline, whatever the task: a chunk of questions, and its answers."""

import abc
import dataclasses
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.counts import Counts, tally
from pipeline.plan import Chunk
from pipeline.saved import Saved, merge
from schemas.completion import OutputRows, OutputSchema
from schemas.error import RowError

if TYPE_CHECKING:
    from model.engine.engine import Engine


@dataclasses.dataclass(frozen=True)
class Ask:
    """One question to the engine.

    Attributes:
      rows: of the chunk, that its answer is for; mostly one.
      start: puts it into the engine.
    """

    rows: tuple[int, ...]
    start: Callable[[], Future]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions(abc.ABC):
    """A chunk on its way to the model; the element that ``RunInference`` works on.

    Attributes:
      chunk: its address.
      rows: all its input rows, as the input has them.
      row_uids: the id of each row.
      sources: for each row that is asked about, in order, its place among the rows.
      errors: row -> why it cannot be asked.
      dedupe: whether rows that ask the same are asked once.
      known: output rows of rows that need not be asked.
      suspects: rows that are asked alone, since they may kill the process.
    """

    chunk: Chunk
    rows: pa.Table
    row_uids: tuple[str, ...]
    sources: tuple[int, ...]
    errors: dict[int, RowError]
    dedupe: bool = True
    known: tuple[Saved, ...] = ()
    suspects: frozenset[int] = frozenset()

    @property
    def nothing_to_ask(self) -> bool:
        """Whether no row needs the model."""
        return {row for piece in self.known for row in piece.rows}.issuperset(self.sources)

    def __len__(self) -> int:
        return self.rows.num_rows

    def __getstate__(self) -> dict[str, Any]:
        # A slice pickles with all of the batch it was cut from; Arrow's own format does not.
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.rows.schema) as writer:
            writer.write_table(self.rows)
        return {**self.__dict__, "rows": sink.getvalue().to_pybytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        rows = pa.ipc.open_stream(state["rows"]).read_all()
        self.__dict__.update({**state, "rows": rows})

    @abc.abstractmethod
    def question(self, place: int) -> Hashable:
        """What decides the answer to one of ``sources``, by its place among them."""

    def first(self) -> list[int]:
        """For each of ``sources``, the place of the first with its answer; its own if it is that.

        Without ``dedupe`` each is the first.
        """
        places = range(len(self.sources))
        if not self.dedupe:
            return list(places)
        seen: dict[Hashable, int] = {}
        return [seen.setdefault(self.question(place), place) for place in places]

    def told(self, row: int, error: RowError) -> RowError:
        """The model's error of a row, as its output row says it."""
        return error

    @abc.abstractmethod
    def open(self, engine: "Engine") -> tuple[list[Ask], Callable[[Sequence[Any]], Sequence[Any]]]:
        """What the engine is to be asked, in the order that is best.

        Returns:
          The questions, and what makes the answer to each of ``sources`` of their answers, None
          for those that were not asked.
        """

    @abc.abstractmethod
    def answered(self, outputs: Sequence[Any], **facts: Any) -> "Answers":
        """The chunk with these answers; ``facts`` are the other attributes of ``Answers``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers(abc.ABC):
    """A chunk with the model's answers.

    Attributes:
      prompts: what was asked.
      outputs: the answer to each of its ``sources``; None for those whose rows are in ``saved``, or
        that are not answered yet.
      saved: rows that another attempt at the chunk has answered.
      refused: row -> why it was not asked although it could have been.
      has_text: whether the engine had a tokenizer to decode with.
      engine: what the answers' bits depend on beside the job's settings; empty if no row was asked.
      seconds: from the first request to the last answer.
      decode_rows: rows of the engine's decode steps since the chunk before it was done.
      decode_rows_used: those that held a live sequence.
    """

    prompts: Any
    outputs: tuple[Any, ...]
    saved: tuple[Saved, ...] = ()
    refused: dict[int, RowError] = dataclasses.field(default_factory=dict)
    has_text: bool = False
    engine: dict[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    decode_rows: int = 0
    decode_rows_used: int = 0

    @property
    def errors(self) -> dict[int, RowError]:
        """Row -> why it has no answer, whoever found it, in row order; but for ``saved`` rows."""
        found = {**self.prompts.errors, **self.refused}
        for row, output in zip(self.prompts.sources, self.outputs, strict=True):
            if output is not None and output.error is not None:
                found[row] = self.prompts.told(row, output.error)
        return dict(sorted(found.items()))

    def counts(self) -> Counts:
        """What was asked and answered, counted without a look at the table."""
        errors = self.errors
        own = Counts(errored=len(errors), errors=tally(str(e.code) for e in errors.values()))
        own += self.count_answers()
        own = dataclasses.replace(
            own, rows_in=own.succeeded + own.errored, rows_out=own.rows_out + own.errored
        )
        return sum((saved.counts for saved in self.saved), own)

    def duplicates(self) -> int:
        """How many of the rows with an answer have that of another."""
        return sum(
            at != place and output is not None and output.error is None
            for place, (at, output) in enumerate(
                zip(self.prompts.first(), self.outputs, strict=True)
            )
        )

    @abc.abstractmethod
    def count_answers(self) -> Counts:
        """The part of the counts that is about rows with an answer of this attempt."""

    def table(self, output: OutputSchema, run_seed: int) -> pa.Table:
        """The chunk's output rows, in input order: at least one a row, one for an error.

        Args:
          output: the output's schema.
          run_seed: stands in ``seed`` for rows without a seed of their own.
        """
        rows = self.fill(run_seed)
        own = Saved.of(rows.sources, rows.table(self.prompts.rows, output), Counts())
        return merge([own, *self.saved])

    @abc.abstractmethod
    def fill(self, run_seed: int) -> OutputRows:
        """The output rows of the rows with an answer of this attempt, or an error, in row order."""

    def save(self, output: OutputSchema, run_seed: int) -> Saved:
        """What was answered in this attempt, for later ones."""
        bare = dataclasses.replace(
            self, prompts=dataclasses.replace(self.prompts, errors={}), refused={}, saved=()
        )
        rows = bare.fill(run_seed)
        return Saved.of(rows.sources, rows.table(self.prompts.rows, output), bare.counts())
