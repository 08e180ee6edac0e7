"""What a job is asked to do, checked before anything is read or built.

NumPy, fsspec and pyarrow are imported when a job is looked at: ``grok1 --help`` does not wait for
them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from model.config import GROK_1
from model.engine.options import NUMERICS_VERSION, EngineOptions
from schemas.error import SetupError
from schemas.sampling import MAX_LOGPROBS, TO_CONTEXT_END, SamplingParams

OVER_LENGTH = ("error", "truncate_left", "truncate_right")
"""What becomes of a prompt that leaves no room for ``max_tokens``: an error row, or its last
(``truncate_left``, as the release does) or first (``truncate_right``) tokens are kept."""

BOS = ("never", "always")
"""Whether a text prompt begins with the BOS token; prompts given as token ids are left alone."""


FEW_SHOT_SAMPLING = ("fixed", "per-row")
"""Which examples precede a prompt: the table's first, or some that each row draws by its id."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """How prompts are built, or the contexts of what is to be scored.

    Attributes:
      template: text of a Jinja2 template over a row's columns; None takes the prompt column.
      few_shot: Parquet file of examples that precede it, or None.
      few_shot_template: text of a Jinja2 template over the columns of an example.
      few_shot_count: examples of a prompt; None takes all.
      few_shot_sampling: one of ``FEW_SHOT_SAMPLING``.
      separator: between examples, and before the last piece.

    Raises:
      SetupError: a value is out of bounds, or one is missing.
    """

    template: str | None = None
    few_shot: str | None = None
    few_shot_template: str | None = None
    few_shot_count: int | None = None
    few_shot_sampling: str = "fixed"
    separator: str = "\n\n"

    def __post_init__(self) -> None:
        count = self.few_shot_count
        if count is not None and (type(count) is not int or count < 1):
            raise SetupError(f"--few-shot-count must be a positive integer, got {count!r}")
        if self.few_shot_sampling not in FEW_SHOT_SAMPLING:
            raise SetupError(
                f"--few-shot-sampling must be one of {', '.join(FEW_SHOT_SAMPLING)}, "
                f"got {self.few_shot_sampling!r}"
            )
        if self.few_shot is not None and self.few_shot_template is None:
            raise SetupError("--few-shot needs --few-shot-template, which makes text of an example")
        if self.few_shot is None and (self.few_shot_template is not None or count is not None):
            raise SetupError("--few-shot-template and --few-shot-count need --few-shot FILE")
        if self.few_shot_sampling == "per-row" and count is None:
            raise SetupError("--few-shot-sampling per-row needs --few-shot-count")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one start of a job may take. None of it is part of the job: it changes no result.

    Attributes:
      max_total_tokens: prompt and completion tokens of the whole output; None for any number.
      max_hours: of this start; None for any.
      stall_seconds: how long a device may give nothing while asked, below the 300 after which
        Dataflow calls a step stuck; None for ever.

    Raises:
      SetupError: a value is out of bounds.
    """

    max_total_tokens: int | None = None
    max_hours: float | None = None
    stall_seconds: float | None = 240.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                flag = "--" + field.name.replace("_", "-")
                raise SetupError(f"{flag} must be above 0, got {value!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What every job is told. Every path may be an fsspec URL.

    Attributes:
      task: what is done with each row, ``generate`` or ``score``.
      checkpoint: folder of the checkpoint.
      input: Parquet files, globs or folders.
      output: folder of the results; empty, or holding the same job's earlier attempts.
      tokenizer: SentencePiece model; None takes the one in the checkpoint's folder.
      engine: the engine's settings.
      columns: role -> input column, for files that call them otherwise.
      rename: input column -> its name in the output.
      output_prefix: put before the names of the added columns.
      input_root: folder that row ids are relative to; None takes the longest without a wildcard.
      unique_custom_id: derive row ids from ``custom_id`` instead of from file and row number.
      run_seed: seed of the run; with a row's id it decides the row's randomness.
      chunk_rows: rows of a part; None decides by prompt and completion length.
      limit: only this many rows, from the beginning.
      over_length: one of ``OVER_LENGTH``.
      bos: one of ``BOS``.
      prompting: how prompts are built.
      dedupe: whether rows that ask the same in a chunk are computed once; changes no result.
      strict: stop at the first file that cannot be read or row that has an error.
      overwrite: discard what the output folder holds of another job.
      extend: take files added since the output folder's run was started, after all others, and
        those that it left out, if they can be read by now, each in its place.
      allow_errors: share of rows that may be errored in a run that counts as a success.
      allow_file_errors: whether a run counts as a success in which files could not be read.
      limits: what this start may take.

    Raises:
      SetupError: a value is out of bounds.
    """

    task: ClassVar[str]

    checkpoint: str
    input: tuple[str, ...]
    output: str
    tokenizer: str | None = None
    engine: EngineOptions = dataclasses.field(default_factory=EngineOptions)
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    output_prefix: str = ""
    input_root: str | None = None
    unique_custom_id: bool = False
    run_seed: int = 0
    chunk_rows: int | None = None
    limit: int | None = None
    over_length: str = "error"
    bos: str = "never"
    prompting: PromptOptions = dataclasses.field(default_factory=PromptOptions)
    dedupe: bool = True
    strict: bool = False
    overwrite: bool = False
    extend: bool = False
    allow_errors: float = 0.0
    allow_file_errors: bool = False
    limits: Limits = dataclasses.field(default_factory=Limits)

    def __post_init__(self) -> None:
        if isinstance(self.input, str):
            object.__setattr__(self, "input", (self.input,))
        for name, value in (("--checkpoint", self.checkpoint), ("--output", self.output)):
            if not value:
                raise SetupError(f"{name} is empty; give a folder or URL")
        if not self.input or not all(self.input):
            raise SetupError("--input is empty; give Parquet files, a glob, a folder or a URL")
        for name, value, allowed in (
            ("--over-length", self.over_length, OVER_LENGTH),
            ("--bos", self.bos, BOS),
        ):
            if value not in allowed:
                raise SetupError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        for name, count in (("--chunk-rows", self.chunk_rows), ("--limit", self.limit)):
            if count is not None and (type(count) is not int or count < 1):
                raise SetupError(f"{name} must be a positive integer, got {count!r}")
        for name, other in (("--overwrite", self.overwrite), ("--limit", self.limit)):
            if self.extend and other:
                raise SetupError(f"--extend and {name} contradict each other; leave one out")
        if type(self.run_seed) is not int or not -(2**63) <= self.run_seed < 2**63:
            raise SetupError(f"--run-seed must be a 64-bit integer, got {self.run_seed!r}")
        if not 0 <= self.allow_errors <= 1:
            raise SetupError(
                f"--allow-errors must be a share between 0 and 1, got {self.allow_errors!r}"
            )

    def result_settings(self) -> dict[str, Any]:
        """The settings that decide a row's answer or how it is written, JSON-ready.

        Threads, slots and budgets are not among them: they change when a row is computed, not what
        comes out.
        """
        from schemas.completion import SCHEMA_VERSION

        return {
            "task": self.task,
            "run_seed": self.run_seed,
            "bos": self.bos,
            "over_length": self.over_length,
            "columns": dict(sorted(self.columns.items())),
            "rename": dict(sorted(self.rename.items())),
            "output_prefix": self.output_prefix,
            "unique_custom_id": self.unique_custom_id,
            "numerics": self.engine.numerics,
            "collectives": self.engine.collectives,
            "kv_cache_dtype": self.engine.kv_cache_dtype,
            "kernels": self.engine.kernels,
            "numerics_version": NUMERICS_VERSION,
            "schema_version": SCHEMA_VERSION,
        }

    @property
    def samples(self) -> int:
        """Output rows of a good row, if it does not say otherwise."""
        return 1

    @property
    def tokens_drawn(self) -> int:
        """Most tokens drawn for each of them, if the row does not say otherwise."""
        return 0

    @property
    def shown_input(self) -> str:
        """How messages call the input, in the singular."""
        from model.checkpoint import files

        first, more = files.redact(self.input[0]), len(self.input) - 1
        return f"the input ({first} and {more} more)" if more else first


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateOptions(JobOptions):
    """A job that completes prompts.

    Attributes:
      sampling: parameters for rows that do not set their own.
      token_healing: take the last token off a text prompt, and let the first one drawn begin with
        its text: a prompt that ends within a word or with a space goes on as text does.
      echo: put the prompt before the completion's text, as OpenAI's ``echo`` does.
    """

    task = "generate"

    sampling: SamplingParams = dataclasses.field(default_factory=SamplingParams)
    token_healing: bool = False
    echo: bool = False

    @property
    def samples(self) -> int:
        """See ``JobOptions``."""
        return self.sampling.n

    @property
    def tokens_drawn(self) -> int:
        """See ``JobOptions``."""
        to_end = self.sampling.max_tokens == TO_CONTEXT_END
        most = self.engine.max_context or GROK_1.sequence_len
        return most if to_end else self.sampling.max_tokens

    def result_settings(self) -> dict[str, Any]:
        """See ``JobOptions``."""
        own = {**super().result_settings(), **self.sampling.result_settings()}
        return {**own, "token_healing": self.token_healing, "echo": self.echo}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreOptions(JobOptions):
    """A job that scores continuations after their contexts, or whole documents.

    Attributes:
      logprobs: per token, its rank and this many likeliest tokens; None for neither.
      stride: tokens scored by each window of a document after its first; None is the whole context.
    """

    task = "score"

    logprobs: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.over_length == "truncate_right":
            raise SetupError(
                "--over-length truncate_right would cut a context off from its continuation; "
                "choose truncate_left or error"
            )
        if self.stride is not None and (type(self.stride) is not int or self.stride < 1):
            raise SetupError(f"--stride must be a positive integer, got {self.stride!r}")
        most = self.logprobs
        if most is not None and (type(most) is not int or not 0 <= most <= MAX_LOGPROBS):
            raise SetupError(f"--logprobs must be between 0 and {MAX_LOGPROBS}, got {most!r}")

    def result_settings(self) -> dict[str, Any]:
        """See ``JobOptions``."""
        return {**super().result_settings(), "logprobs": self.logprobs, "stride": self.stride}
