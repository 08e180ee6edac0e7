"""Prompts made of a row's columns and of examples, for models that only continue a text.

A template over the columns gives the prompt's last piece, or the prompt column does; few-shot
examples from a second table go before it, the same for all rows or drawn by the row's id. Workers
make the same prompts: they load the same template and table, and a row's draw is its own.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.checkpoint import files
from pipeline.options import JobOptions, PromptOptions
from pipeline.template import Template, TemplateFailed
from schemas.columns import Undecodable, listed, values
from schemas.error import ErrorCode, RowError, SetupError

BUILT = "built prompt"
"""The column that stands for what was built; nothing in the output bears its name."""

TARGETS = {"generate": "prompt", "score": "context"}
"""The role that is built, by task."""

_MAX_BYTES = 64 << 20
"""Of a table of examples; all workers hold it."""

_TOKEN_BYTES = 4
"""Usual for text."""


class ExamplesChanged(Exception):
    """The table of examples is not the one that the job was set up with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a job's prompts are built. Picklable and small; ``builder`` makes it work.

    Attributes:
      template: text of the template, or None.
      base: the column that is the last piece where there is no template.
      columns: input columns that are read.
      few_shot: the table of examples, or None.
      digest: of its bytes.
      few_shot_template: turns an example into a piece.
      count: pieces of examples in a prompt.
      per_row: whether each row draws its own, without return.
      separator: between pieces.
      seed: what draws derive from, beside the row's id.
      example_tokens: about how many tokens the examples of a prompt have.
    """

    template: str | None
    base: str | None
    columns: tuple[str, ...]
    few_shot: str | None
    digest: str | None
    few_shot_template: str | None
    count: int
    per_row: bool
    separator: str
    seed: int
    example_tokens: float = 0.0

    def settings(self) -> dict[str, Any]:
        """What of it decides a prompt, JSON-ready."""
        own = dataclasses.asdict(self)
        for name in ("few_shot", "columns", "seed", "example_tokens"):
            del own[name]
        return own


def make_recipe(options: JobOptions, schema: pa.Schema) -> Recipe | None:
    """The recipe of a job on an input, or None if its prompts are taken as they are.

    The examples are not looked at; see ``with_examples``.

    Raises:
      SetupError: the template does not fit the input.
    """
    given = options.prompting
    if given.template is None and given.few_shot is None:
        return None
    target = TARGETS[options.task]
    document = options.columns.get("document", "document")
    if target == "context" and document in schema.names:
        flag = "--template" if given.few_shot is None else "--few-shot"
        raise SetupError(
            f"{flag} makes contexts, and the documents in {document!r} have none; leave it out, or "
            "let them pass through: --columns document="
        )
    base, columns = None, _columns(given.template, schema, options.shown_input)
    if given.template is None:
        base = options.columns.get(target, target)
        if base not in schema.names:
            raise SetupError(
                f"--few-shot: {options.shown_input} has no column {base!r} for the examples to "
                f"precede, only {listed(schema.names)}; name it, or give a --template"
            )
        columns = (base,)
    elif options.columns.get(target):
        raise SetupError(
            f"--columns {target}={options.columns[target]}: the template makes the {target}; "
            "leave one of the two out"
        )
    return Recipe(
        template=given.template,
        base=base,
        columns=columns,
        few_shot=given.few_shot,
        digest=None,
        few_shot_template=given.few_shot_template,
        count=given.few_shot_count or 0,
        per_row=given.few_shot_sampling == "per-row",
        separator=given.separator,
        seed=options.run_seed,
    )


def check(given: PromptOptions) -> None:
    """Compiles the templates.

    Raises:
      SetupError: one is wrong.
    """
    for flag, text in (
        ("--template", given.template),
        ("--few-shot-template", given.few_shot_template),
    ):
        if text is not None:
            Template(text, flag)


def with_examples(recipe: Recipe | None) -> Recipe | None:
    """The recipe once its table of examples has been read, and each example rendered.

    Raises:
      SetupError: the table cannot be read, is too small, or does not fit its template.
    """
    if recipe is None or recipe.few_shot is None:
        return recipe
    where = files.redact(recipe.few_shot)
    examples, digest = _read_examples(recipe.few_shot)
    count = recipe.count or len(examples)
    if len(examples) < count or not examples:
        raise SetupError(
            f"--few-shot-count {count}: {where} has {len(examples)} rows; give more, or ask for "
            "fewer"
        )
    pieces = _render_all(recipe, examples)
    length = sum(len(piece.encode()) for piece in pieces) / len(pieces)
    return dataclasses.replace(
        recipe, digest=digest, count=count, example_tokens=count * length / _TOKEN_BYTES
    )


def roles_of(recipe: Recipe | None, options: JobOptions) -> Mapping[str, str]:
    """The user's map from roles to columns, with what is built in its place."""
    if recipe is None:
        return options.columns
    target = TARGETS[options.task]
    return {**options.columns, f"{target}_token_ids": "", target: BUILT}


def schema_with(recipe: Recipe | None, schema: pa.Schema) -> pa.Schema:
    """An input's schema with the column that is built."""
    return schema if recipe is None else schema.append(pa.field(BUILT, pa.large_string()))


class Builder:
    """A recipe with its templates compiled and its examples rendered. Immutable."""

    def __init__(self, recipe: Recipe) -> None:
        """Reads the table of examples.

        Raises:
          ExamplesChanged: it is another one by now.
        """
        self._recipe = recipe
        self._template = None if recipe.template is None else Template(recipe.template)
        self._pieces: list[str] = []
        self._asked: list[str | None] = []
        if recipe.few_shot is not None:
            examples, digest = _read_examples(recipe.few_shot)
            if digest != recipe.digest:
                raise ExamplesChanged(
                    f"{files.redact(recipe.few_shot)} has changed since the run began; start the "
                    "run again"
                )
            self._pieces = _render_all(recipe, examples)
            self._asked = [self._ask(example) for example in examples]

    def build(
        self, rows: pa.Table, row_uids: Sequence[str]
    ) -> tuple[pa.Table, dict[int, RowError]]:
        """The rows with what is built for them, and row -> why nothing could be."""
        columns = {name: values(rows, name) for name in self._recipe.columns}
        texts: list[str | None] = []
        errors: dict[int, RowError] = {}
        for i, uid in enumerate(row_uids):
            try:
                own = self._own({name: column[i] for name, column in columns.items()})
            except TemplateFailed as fault:
                errors[i] = RowError(ErrorCode.TEMPLATE_FAILED, str(fault), "template")
                texts.append(None)
            except _Missing as fault:
                errors[i] = RowError(fault.code, str(fault), self._recipe.base)
                texts.append(None)
            else:
                pieces = [self._pieces[k] for k in self._pick(own, uid)]
                texts.append(self._recipe.separator.join([*pieces, own]))
        return rows.append_column(BUILT, pa.array(texts, pa.large_string())), errors

    def _own(self, row: Mapping[str, Any]) -> str:
        if self._template is not None:
            return self._template.render(row)
        [value] = row.values()
        if value is None:
            raise _Missing(ErrorCode.PROMPT_MISSING, f"{self._recipe.base} is null")
        if isinstance(value, Undecodable):
            raise _Missing(ErrorCode.PROMPT_TYPE, f"{self._recipe.base} {value}")
        return value

    def _ask(self, example: Mapping[str, Any]) -> str | None:
        """An example as a row's last piece would be, if it has the columns for that."""
        if not set(self._recipe.columns) <= set(example):
            return None
        try:
            return self._own({name: example[name] for name in self._recipe.columns})
        except (TemplateFailed, _Missing):
            return None

    def _pick(self, own: str, uid: str) -> list[int]:
        """Places of a row's examples; one that asks what the row asks would give it away."""
        total, count = len(self._pieces), self._recipe.count
        order = draw(f"{self._recipe.seed}/{uid}", total) if self._recipe.per_row else range(total)
        picked: list[int] = []
        for place in order:
            if len(picked) == count:
                break
            if self._asked[place] != own:
                picked.append(place)
        return picked


class _Missing(Exception):
    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@functools.lru_cache(maxsize=2)
def builder(recipe: Recipe) -> Builder:
    """The recipe at work, kept for the process's next chunks.

    Raises:
      ExamplesChanged: the table of examples is another one by now.
    """
    return Builder(recipe)


def draw(address: str, total: int) -> Iterator[int]:
    """0 to ``total`` - 1 in an order that an address decides, made as far as it is looked at."""
    swapped: dict[int, int] = {}
    for at in range(total):
        digest = hashlib.blake2b(f"few-shot|{address}|{at}".encode(), digest_size=8).digest()
        other = at + int.from_bytes(digest, "little") % (total - at)
        yield swapped.get(other, other)
        swapped[other] = swapped.get(at, at)


def _columns(template: str | None, schema: pa.Schema, where: str) -> tuple[str, ...]:
    if template is None:
        return ()
    names = Template(template).names
    if missing := [name for name in names if name not in schema.names]:
        raise SetupError(
            f"--template names {missing[0]!r}, but {where} has no such column, only "
            f"{listed(schema.names)}"
        )
    return tuple(names)


def _render_all(recipe: Recipe, examples: Sequence[Mapping[str, Any]]) -> list[str]:
    assert recipe.few_shot is not None
    assert recipe.few_shot_template is not None
    template, pieces = Template(recipe.few_shot_template, "--few-shot-template"), []
    for row, example in enumerate(examples):
        try:
            pieces.append(template.render(example))
        except TemplateFailed as fault:
            raise SetupError(
                f"--few-shot-template: row {row} of {files.redact(recipe.few_shot)}: {fault}"
            ) from None
    return pieces


def _read_examples(url: str) -> tuple[list[dict[str, Any]], str]:
    """The rows of a Parquet file, and a digest of its bytes."""
    data = files.read_bytes(url, _MAX_BYTES)
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SetupError(
            f"--few-shot {files.redact(url)} is no readable Parquet file: {reason}; "
            "grok1 import makes one of JSON lines and CSV"
        ) from None
    columns = {name: values(table, name) for name in table.schema.names}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return rows, hashlib.blake2b(data, digest_size=16).hexdigest()
