"""lm-evaluation-harness by Beam runs: its requests as tables, and the runs' answers to them.

Two models of the harness, given the same tasks, with the runs between the two:

  python -m pipeline.harness run --model grok1-requests --model_args to=requests \
    --tasks hellaswag,gsm8k --predict_only --output_path requests/log
  grok1 score … --input requests/loglikelihood.parquet --output choices
  grok1 generate … --input requests/generate_until.parquet --output texts
  python -m pipeline.harness run --model grok1-run --tasks hellaswag,gsm8k \
    --model_args loglikelihood=choices,generate_until=texts
"""

import collections
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from model.generation import sampling_values
from pipeline.completions import read_completions
from schemas.checks import InvalidParameter
from schemas.completion import SUCCEEDED
from schemas.error import SetupError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

KEYS = ("task", "doc_id", "idx", "repeat")
"""The columns that tell a request: its task, document, place among the document's requests, and
number among the same request's repetitions."""

_TEXTS = {
    "loglikelihood": ("context", "continuation"),
    "loglikelihood_rolling": ("document",),
    "generate_until": ("prompt",),
}
"""Kind of request -> the columns of its arguments that are text."""


def requests_table(kind: str, requests: Sequence["Instance"], max_gen_toks: int = 256) -> pa.Table:
    """Requests of one kind as input of ``grok1 score``, or ``grok1 generate``.

    Args:
      kind: ``loglikelihood``, ``loglikelihood_rolling`` or ``generate_until``.
      requests: as the harness hands them to a model.
      max_gen_toks: most tokens of a completion where a task does not say.

    Returns:
      A row a request: ``KEYS``, its texts, and a column for each sampling parameter that one of
      them sets.

    Raises:
      InvalidParameter: a task asks for what is no sampling parameter, or tasks give one of them
        values of types that no column can hold together.
    """
    rows = []
    for key, asked in zip(_keys(requests), requests, strict=True):
        row = dict(zip(KEYS, key, strict=True))
        row |= zip(_TEXTS[kind], asked.args, strict=False)
        if kind == "generate_until":
            row |= sampling_values(asked.args[1], max_gen_toks)
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _column(name, [row.get(name) for row in rows]) for name in names})


def _column(name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        raise InvalidParameter(
            name, "has values of differing types in these tasks; write the tasks down apart"
        ) from None


def _keys(requests: Sequence["Instance"]) -> Iterator[tuple[Any, ...]]:
    seen: collections.Counter[tuple[Any, ...]] = collections.Counter()
    for asked in requests:
        own = asked.task_name, asked.doc_id, asked.idx
        yield *own, seen[own]
        seen[own] += 1


@register_model("grok1-requests")
class Requests(LM):
    """Writes down what it is asked, a Parquet file a kind of request, and answers nothing."""

    def __init__(self, to: str, max_gen_toks: int = 256, **_: Any) -> None:
        """Args: the folder, and most tokens of a completion where a task does not say."""
        super().__init__()
        self._to, self._max_gen_toks = pathlib.Path(to), max_gen_toks

    def _write(self, kind: str, requests: list["Instance"]) -> None:
        self._to.mkdir(parents=True, exist_ok=True)
        table = requests_table(kind, requests, self._max_gen_toks)
        pq.write_table(table, self._to / f"{kind}.parquet")

    def loglikelihood(
        self, requests: list["Instance"], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Writes; the answers are empty."""
        self._write("loglikelihood", requests)
        return [(0.0, False)] * len(requests)

    def loglikelihood_rolling(
        self, requests: list["Instance"], disable_tqdm: bool = False
    ) -> list[float]:
        """Writes; the answers are empty."""
        self._write("loglikelihood_rolling", requests)
        return [0.0] * len(requests)

    def generate_until(self, requests: list["Instance"], disable_tqdm: bool = False) -> list[str]:
        """Writes; the answers are empty."""
        self._write("generate_until", requests)
        return [""] * len(requests)


@register_model("grok1-run")
class Run(LM):
    """Answers the harness from the outputs of runs over what ``grok1-requests`` wrote."""

    def __init__(
        self,
        loglikelihood: str | None = None,
        loglikelihood_rolling: str | None = None,
        generate_until: str | None = None,
        **_: Any,
    ) -> None:
        """Args: the output folder, or its URL, of the run over each kind of request."""
        super().__init__()
        self._folders = {
            "loglikelihood": loglikelihood,
            "loglikelihood_rolling": loglikelihood_rolling,
            "generate_until": generate_until,
        }

    @functools.cache  # noqa: B019  # a model lives as long as the evaluation
    def _rows(self, kind: str) -> Mapping[tuple[Any, ...], Mapping[str, Any]]:
        folder = self._folders[kind]
        if folder is None:
            raise SetupError(f"the tasks ask for {kind}; name the run's output: {kind}=FOLDER")
        own = ("text",) if kind == "generate_until" else ("logprob", "is_greedy")
        columns = [*KEYS, "status", "error_message", *own]
        rows = read_completions(folder, columns=columns).to_pylist()
        return {tuple(row[name] for name in KEYS): row for row in rows}

    def _answers(self, kind: str, requests: list["Instance"]) -> Iterator[Mapping[str, Any]]:
        rows = self._rows(kind)
        for key in _keys(requests):
            row = rows.get(key)
            told = ", ".join(f"{name} {value}" for name, value in zip(KEYS, key, strict=True))
            if row is None:
                raise SetupError(
                    f"{self._folders[kind]} has no answer to {told}; run it over the requests of "
                    "the same tasks, with the same options"
                )
            if row["status"] != SUCCEEDED:
                raise ValueError(f"{told}: {row['error_message']}")
            yield row

    def loglikelihood(
        self, requests: list["Instance"], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """What ``grok1 score`` found.

        Raises:
          SetupError: a request was not asked.
          ValueError: one has an error.
        """
        found = self._answers("loglikelihood", requests)
        return [(row["logprob"], row["is_greedy"]) for row in found]

    def loglikelihood_rolling(
        self, requests: list["Instance"], disable_tqdm: bool = False
    ) -> list[float]:
        """The same of documents."""
        return [row["logprob"] for row in self._answers("loglikelihood_rolling", requests)]

    def generate_until(self, requests: list["Instance"], disable_tqdm: bool = False) -> list[str]:
        """What ``grok1 generate`` wrote; raises as ``loglikelihood``."""
        return [row["text"] for row in self._answers("generate_until", requests)]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
