"""Setting a job up: what can be wrong for all rows is found here, before any model loads.

The machine that does this needs no accelerator and imports neither Beam nor JAX.
"""

import dataclasses
import time
import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from model.checkpoint import files
from model.checkpoint.source import Checkpoint, open_checkpoint
from model.engine.options import EngineOptions
from model.evaluation import prefix_token
from model.tokenizer import Tokenizer
from pipeline import budget, building, plan, tasks
from pipeline.building import Recipe
from pipeline.claim import RESULTS, SUCCESS, claim, writing
from pipeline.counts import read_counts
from pipeline.inputs import former_files, read_inputs
from pipeline.options import JobOptions
from pipeline.storage import Folder
from schemas.columns import Roles
from schemas.completion import OutputSchema, output_schema
from schemas.error import SetupError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker must know; the chunks stand in the plan. Picklable, some kilobytes.

    Attributes:
      options: what the user asked for.
      run_id: names the run that owns the output folder; empty before one does.
      bases: the folders that input files lie below.
      input_schema: the schema that all files' rows are read into.
      roles: what its columns are for: the task's own ``Roles``.
      recipe: how prompts are built, or None where they are taken as they are.
      output: the schema of the parts.
      tokenizer: the SentencePiece model, or None where no row needs one.
      engine: the engine's settings, with ``max_context`` filled in.
      vocab_size: ids are below it.
      prefix_token: what stands before a text that nothing stands before.
      settings: what decides the results, as it stands in every footer.
      identity: digest of the settings, the schemas, the checkpoint and the tokenizer.
      files: how many files the input has.
      rows: how many rows.
      chunks: how many parts the output will have.
      done: how many of them were there when the job was prepared.
      rows_done: rows of these.
      start: names this start of the job, of which a run may have several.
      began: when this start began, seconds since the epoch.
      tokens_before: of parts that were there then; counted only where there is a budget of them.
      attempts: how often the runner tries a chunk in one start; None if it does not try again.
    """

    options: JobOptions
    run_id: str
    bases: tuple[str, ...]
    input_schema: pa.Schema
    roles: Any
    recipe: Recipe | None
    output: OutputSchema
    tokenizer: str | None
    engine: EngineOptions
    vocab_size: int
    prefix_token: int
    settings: dict[str, Any]
    identity: str
    files: int
    rows: int
    chunks: int
    done: int
    rows_done: int
    start: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    began: float = dataclasses.field(default_factory=time.time)
    tokens_before: int = 0
    attempts: int | None = None

    @property
    def folder(self) -> Folder:
        """The output folder."""
        return Folder(self.options.output)

    @property
    def max_context(self) -> int:
        """Most tokens of a prompt and its completion together."""
        assert self.engine.max_context is not None
        return self.engine.max_context


def prepare_job(options: JobOptions) -> Job:
    """Checks the whole set-up, claims the output folder and writes the plan.

    Raises:
      SetupError: one sentence with what is wrong, where, and what to do.
    """
    former = [] if options.overwrite else former_files(options.output)
    job, planned, chunks = check_job(options, former)
    run_id = claim(job, planned)
    folder = job.folder
    with writing(folder):
        plan.write_plan(folder, planned, chunks)
        present = folder.names()
        done = [chunk for chunk in chunks if chunk.part_name in present]
        if len(done) < len(chunks) and SUCCESS in present:
            folder.remove([SUCCESS, *RESULTS])
        budget.clear(folder)
    rows_done = sum(chunk.rows for chunk in done)
    job = dataclasses.replace(job, run_id=run_id, done=len(done), rows_done=rows_done)
    if options.limits.max_total_tokens is not None:
        job = dataclasses.replace(job, tokens_before=_tokens(folder, done))
    return job


def _tokens(folder: Folder, chunks: Sequence[plan.Chunk]) -> int:
    counts = files.in_parallel(lambda chunk: read_counts(folder, chunk.part_name), chunks)
    return sum(map(budget.tokens, counts))


def check_job(
    options: JobOptions, former: Sequence[plan.PlannedFile] = ()
) -> tuple[Job, list[plan.PlannedFile], list[plan.Chunk]]:
    """Checks all of a set-up but its output folder, and writes nothing.

    Args:
      options: the job.
      former: the files of the plan that lies in the output folder.

    Returns:
      The job, not yet any run's; the input's files; its chunks.

    Raises:
      SetupError: one sentence with what is wrong, where, and what to do.
    """
    building.check(options.prompting)
    schema, shards = read_inputs(options, former)
    task = tasks.of(options)
    recipe = building.with_examples(building.make_recipe(options, schema))
    roles = task.resolve(
        building.schema_with(recipe, schema),
        building.roles_of(recipe, options),
        options.shown_input,
    )
    output = output_schema(
        schema,
        roles.consumed,
        columns=task.columns,
        prefix=options.output_prefix,
        rename=options.rename,
    )
    if options.unique_custom_id and roles.custom_id is None:
        raise SetupError(
            f"--unique-custom-id: {options.shown_input} has no column 'custom_id'; "
            "name it: --columns custom_id=NAME"
        )
    checkpoint = open_checkpoint(options.checkpoint)
    checkpoint.verify()
    tokenizer = _tokenizer(options, roles, checkpoint)
    max_context = options.engine.context_of(checkpoint.config)
    task.check(options, roles, max_context, checkpoint.config.vocab_size)
    settings = {
        "checkpoint": checkpoint.identity(),
        "tokenizer": None if tokenizer is None else tokenizer.identity,
        "max_context": max_context,
        "prompting": None if recipe is None else recipe.settings(),
        **options.result_settings(),
    }
    identity = plan.fingerprint(settings, str(schema), str(output.schema), digits=32)
    bases, planned, chunks = plan.make_plan(shards, _weights(roles, recipe), options, identity)
    settings |= {"limit": options.limit, "chunk_rows": options.chunk_rows}
    job = Job(
        options=options,
        run_id="",
        bases=tuple(bases),
        input_schema=schema,
        roles=roles,
        recipe=recipe,
        output=output,
        tokenizer=options.tokenizer or checkpoint.tokenizer_url if tokenizer else None,
        engine=dataclasses.replace(options.engine, max_context=max_context),
        vocab_size=checkpoint.config.vocab_size,
        prefix_token=prefix_token(tokenizer, checkpoint.config.eos_token),
        settings=settings,
        identity=identity,
        files=len(planned),
        rows=sum(chunk.rows for chunk in chunks),
        chunks=len(chunks),
        done=0,
        rows_done=0,
    )
    return job, planned, chunks


def _weights(roles: Roles, recipe: Recipe | None) -> plan.Weights:
    """What decides how many tokens a row has."""
    own = recipe.columns if recipe is not None else ()
    return plan.Weights(
        texts=(*roles.texts, *own),
        token_ids=tuple(roles.token_ids),
        tokens=recipe.example_tokens if recipe is not None else 0.0,
    )


def _tokenizer(options: JobOptions, roles: Roles, checkpoint: Checkpoint) -> Tokenizer | None:
    url = options.tokenizer or checkpoint.tokenizer_url
    if url is not None:
        tokenizer = Tokenizer.load(url)
        tokenizer.check_against(checkpoint.config)
        if options.bos == "always" and tokenizer.bos_id < 0:
            raise SetupError(f"--bos always: {files.redact(url)} has no BOS token; leave it out")
        return tokenizer
    needs = tasks.of(options).needs_tokenizer(options, roles)
    if needs:
        raise SetupError(
            f"{needs}, but {files.redact(options.checkpoint)} has no tokenizer.model; "
            "name one: --tokenizer FILE"
        )
    return None
