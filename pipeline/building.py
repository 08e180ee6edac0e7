"""Prompts made of a row's columns and of examples, for models that only continue a text.

A template over the columns gives the prompt's last piece, or the prompt column does; few-shot
examples from a second table go before it, the same for all rows or drawn by the row's id. Workers
make the same prompts: they load the same template and table, and a row's draw is its own.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from model.checkpoint import files
from pipeline import examples
from pipeline.examples import ExamplesChanged
from pipeline.options import JobOptions, PromptOptions
from pipeline.template import Template, TemplateFailed
from schemas.columns import Undecodable, is_text, listed, values
from schemas.error import ErrorCode, RowError, SetupError

BUILT = "built prompt"
"""The column that stands for what was built; nothing in the output bears its name."""

TARGETS = {"generate": "prompt", "score": "context"}
"""The role that is built, by task."""


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
        kind = schema.field(base).type
        if not is_text(kind) and kind != pa.null():
            raise SetupError(
                f"column {base!r} holds {kind}, but few-shot examples precede strings; cast it, "
                "name another, or give a --template"
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
    assert recipe.few_shot_template is not None  # ``PromptOptions`` refuses one without the other
    found = examples.read(recipe.few_shot, recipe.few_shot_template)
    count = recipe.count or len(found.rows)
    if len(found.rows) < count:
        raise SetupError(
            f"--few-shot-count {count}: {files.redact(recipe.few_shot)} has {len(found.rows)} "
            "rows; give more, or ask for fewer"
        )
    return dataclasses.replace(
        recipe, digest=found.digest, count=count, example_tokens=count * found.tokens
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
        self._pieces: Sequence[str] = ()
        self._asked: list[str | None] = []
        if recipe.few_shot is not None:
            assert recipe.few_shot_template is not None
            found = examples.read(recipe.few_shot, recipe.few_shot_template)
            if found.digest != recipe.digest:
                raise ExamplesChanged(
                    f"{files.redact(recipe.few_shot)} has changed since the run began; start the "
                    "run again"
                )
            self._pieces = found.pieces
            self._asked = [self._ask(example) for example in found.rows]

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
        address = f"{self._recipe.seed}/{uid}" if self._recipe.per_row else None
        return examples.pick(self._recipe.count, self._asked, own, address)


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


def _columns(template: str | None, schema: pa.Schema, where: str) -> tuple[str, ...]:
    if template is None:
        return ()
    names = Template(template).columns(schema.names)
    if missing := [name for name in names if name not in schema.names]:
        raise SetupError(
            f"--template names {missing[0]!r}, but {where} has no such column, only "
            f"{listed(schema.names)}; name one of these"
        )
    return tuple(names)
