"""Setting a job up: what can be wrong for all rows is found here, before any model loads.

The machine that does this needs no accelerator and imports neither Beam nor JAX.
"""

import dataclasses
import datetime
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from model.checkpoint import files
from model.checkpoint.source import Checkpoint, open_checkpoint
from model.engine.options import EngineOptions
from model.tokenizer import Tokenizer
from pipeline import plan, shards
from pipeline.options import GenerateOptions
from pipeline.storage import Folder
from schemas.completion import OutputSchema, output_schema
from schemas.error import SetupError
from schemas.prompt import Roles, resolve

JOB, SUCCESS = "_job.json", "_SUCCESS"
MANIFEST, MANIFEST_PARTS = "_manifest.json", "_manifest.parquet"

_FORMAT = 1
"""Version of ``_job.json``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker must know; the chunks stand in the plan. Picklable, some kilobytes.

    Attributes:
      options: what the user asked for.
      run_id: names the run that owns the output folder; empty before one does.
      bases: the folders that input files lie below.
      input_schema: the schema that all files' rows are read into.
      roles: what its columns are for.
      output: the schema of the parts.
      tokenizer: the SentencePiece model, or None where no row needs one.
      engine: the engine's settings, with ``max_context`` filled in.
      vocab_size: ids are below it.
      settings: what decides the results, as it stands in every footer.
      identity: digest of the settings, the schemas, the checkpoint and the tokenizer.
      files: how many files the input has.
      rows: how many rows.
      chunks: how many parts the output will have.
      done: how many of them were there when the job was prepared.
      rows_done: rows of these.
    """

    options: GenerateOptions
    run_id: str
    bases: tuple[str, ...]
    input_schema: pa.Schema
    roles: Roles
    output: OutputSchema
    tokenizer: str | None
    engine: EngineOptions
    vocab_size: int
    settings: dict[str, Any]
    identity: str
    files: int
    rows: int
    chunks: int
    done: int
    rows_done: int

    @property
    def folder(self) -> Folder:
        """The output folder."""
        return Folder(self.options.output)

    @property
    def max_context(self) -> int:
        """Most tokens of a prompt and its completion together."""
        assert self.engine.max_context is not None
        return self.engine.max_context


def prepare_job(options: GenerateOptions) -> Job:
    """Checks the whole set-up, claims the output folder and writes the plan.

    Raises:
      SetupError: one sentence with what is wrong, where, and what to do.
    """
    job, planned, chunks = check_job(options)
    run_id = _claim(job, planned)
    folder = job.folder
    with _writing(folder):
        plan.write_plan(folder, planned, chunks)
        present = folder.names()
        done = [chunk for chunk in chunks if chunk.part_name in present]
        if len(done) < len(chunks) and SUCCESS in present:
            folder.remove([SUCCESS, MANIFEST, MANIFEST_PARTS])
    rows_done = sum(chunk.rows for chunk in done)
    return dataclasses.replace(job, run_id=run_id, done=len(done), rows_done=rows_done)


def check_job(
    options: GenerateOptions,
) -> tuple[Job, list[plan.PlannedFile], list[plan.Chunk]]:
    """Checks all of a set-up but its output folder, and writes nothing.

    Returns:
      The job, not yet any run's; the input's files; its chunks.

    Raises:
      SetupError: one sentence with what is wrong, where, and what to do.
    """
    shards_ = shards.read_footers(shards.list_inputs(options.input, options.input_root))
    schema = shards.unify(shards_)
    roles = resolve(schema, options.columns, options.shown_input)
    output = output_schema(schema, roles, prefix=options.output_prefix, rename=options.rename)
    if options.unique_custom_id and roles.custom_id is None:
        raise SetupError(
            f"--unique-custom-id: {options.shown_input} has no column 'custom_id'; "
            "name it: --columns custom_id=NAME"
        )
    checkpoint = open_checkpoint(options.checkpoint)
    checkpoint.verify()
    tokenizer = _tokenizer(options, roles, checkpoint)
    max_context = min(checkpoint.config.sequence_len, options.engine.max_context or 2**31 - 1)
    if "max_tokens" not in roles.sampling and options.sampling.max_tokens >= max_context:
        raise SetupError(
            f"--max-tokens {options.sampling.max_tokens} leaves no room for a prompt in a context "
            f"of {max_context} tokens; give fewer"
        )
    settings = {
        "checkpoint": checkpoint.identity(),
        "tokenizer": None if tokenizer is None else tokenizer.identity,
        "max_context": max_context,
        **options.result_settings(),
    }
    identity = plan.fingerprint(settings, str(schema), str(output.schema), digits=32)
    bases, planned, chunks = plan.make_plan(shards_, roles, options, identity)
    settings |= {"limit": options.limit, "chunk_rows": options.chunk_rows}
    job = Job(
        options=options,
        run_id="",
        bases=tuple(bases),
        input_schema=schema,
        roles=roles,
        output=output,
        tokenizer=options.tokenizer or checkpoint.tokenizer_url if tokenizer else None,
        engine=dataclasses.replace(options.engine, max_context=max_context),
        vocab_size=checkpoint.config.vocab_size,
        settings=settings,
        identity=identity,
        files=len(planned),
        rows=sum(chunk.rows for chunk in chunks),
        chunks=len(chunks),
        done=0,
        rows_done=0,
    )
    return job, planned, chunks


def _tokenizer(options: GenerateOptions, roles: Roles, checkpoint: Checkpoint) -> Tokenizer | None:
    url = options.tokenizer or checkpoint.tokenizer_url
    if url is not None:
        tokenizer = Tokenizer.load(url)
        tokenizer.check_against(checkpoint.config)
        if options.bos == "always" and tokenizer.bos_id < 0:
            raise SetupError(f"--bos always: {files.redact(url)} has no BOS token; leave it out")
        return tokenizer
    needs = None
    if roles.prompt is not None:
        needs = f"column {roles.prompt!r} holds text"
    elif options.sampling.stop:
        needs = "--stop takes strings"
    elif "stop" in roles.sampling:
        needs = f"column {roles.sampling['stop']!r} holds stop strings"
    if needs:
        raise SetupError(
            f"{needs}, but {files.redact(options.checkpoint)} has no tokenizer.model; "
            "name one: --tokenizer FILE"
        )
    return None


def _claim(job: Job, planned: Sequence[plan.PlannedFile]) -> str:
    """Makes the output folder this job's own, or finds that it is already; returns the run id."""
    options, folder, settings = job.options, job.folder, job.settings
    record = {
        "format": _FORMAT,
        "run_id": uuid.uuid4().hex,
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "checkpoint": files.redact(options.checkpoint),
        "tokenizer": None if job.tokenizer is None else files.redact(job.tokenizer),
        "input": {
            "files": len(planned),
            "rows": sum(file.rows for file in planned),
            "digest": plan.fingerprint([(f.path, f.size, f.footer) for f in planned], digits=32),
        },
    }
    data = (json.dumps(record, indent=1) + "\n").encode()
    with _writing(folder):
        names = folder.names()
        foreign = sorted(n for n in names if not plan.is_part(n) and not n.startswith(("_", ".")))
        if foreign:
            raise SetupError(
                f"{_shown(folder)} holds {foreign[0]!r}, which is no part of a run, so that "
                "readers would mix them; choose an empty folder: --output FOLDER"
            )
        if options.overwrite:
            # The new owner first: from here on, a straggler of the old run commits nothing.
            folder.replace(JOB, data)
            folder.remove([SUCCESS, MANIFEST, MANIFEST_PARTS, *filter(plan.is_part, names)])
            return str(record["run_id"])
        if JOB not in names:
            if parts := list(filter(plan.is_part, names)):
                raise SetupError(
                    f"{_shown(folder)} holds {len(parts)} parts but no {JOB} that says which "
                    "run's; choose another --output folder, or discard them with --overwrite"
                )
            if folder.create(JOB, data):
                return str(record["run_id"])
        return _same_run(folder, record, planned)


def _same_run(
    folder: Folder, record: Mapping[str, Any], planned: Sequence[plan.PlannedFile]
) -> str:
    remedy = "choose another --output folder, or start anew with --overwrite"
    try:
        there = json.loads(folder.read(JOB) or b"")
        old, old_input, run_id = there["settings"], there["input"], str(there["run_id"])
        if there["format"] != _FORMAT:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise SetupError(
            f"{_shown(folder)}/{JOB} was not written by this version; {remedy}"
        ) from None
    new = json.loads(json.dumps(record["settings"]))
    differ = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if differ:
        more = f", and {len(differ) - 1} more settings differ" if len(differ) > 1 else ""
        raise SetupError(
            f"{_shown(folder)} holds a run with another {differ[0]}: {_told(old.get(differ[0]))} "
            f"there, {_told(new.get(differ[0]))} now{more}; {remedy}"
        )
    if old_input["digest"] != record["input"]["digest"]:
        raise SetupError(
            f"{_shown(folder)} holds a run over another input: "
            f"{_difference(plan.read_files(folder), planned)}; {remedy}"
        )
    return run_id


def _difference(old: Sequence[plan.PlannedFile], new: Sequence[plan.PlannedFile]) -> str:
    before = {file.path: (file.size, file.footer) for file in old}
    after = {file.path: (file.size, file.footer) for file in new}
    for path in sorted({**before, **after}):
        if path not in after:
            return f"file {path!r} is gone"
        if path not in before:
            return f"file {path!r} is new"
        if before[path] != after[path]:
            return f"file {path!r} has changed"
    return "its files have changed"


class _writing:
    """Turns any fault of the output's store into one sentence."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, SetupError):
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            reason = files.redact(" ".join(reason.split())[:300])
            raise SetupError(
                f"cannot write to {_shown(self._folder)}: {reason}; choose another --output "
                "folder, or correct its permissions"
            ) from error


def _shown(folder: Folder) -> str:
    return files.redact(folder.url)


def _told(value: Any) -> str:
    return "none" if value is None else json.dumps(value)[:60]
