"""The input as a job takes it: its files, those that cannot be read marked, and their schema."""

from collections.abc import Container, Sequence

import pyarrow as pa

from model.checkpoint import files
from pipeline import building, plan, shards, tasks
from pipeline.claim import writing
from pipeline.options import JobOptions
from pipeline.shards import Shard
from pipeline.storage import Folder
from pipeline.unify import unify
from schemas.error import SetupError


def read_inputs(
    options: JobOptions, former: Sequence[plan.PlannedFile]
) -> tuple[pa.Schema, list[Shard]]:
    """Lists the input's files, reads their footers and fixes the schema of their rows.

    Args:
      options: the job.
      former: the files of the plan that lies in the output folder. What it leaves out is left out
        again, unless the job is to ``extend``, and its files come first, each in its place: the
        parts that are there are numbered after them.

    Returns:
      The schema, and all files; those with a fault have no rows in the job.

    Raises:
      SetupError: no file can be read, or one cannot and the job is ``strict``; or added files would
        change what the parts hold that are there.
    """
    place = {file.path: file.index for file in former}
    before = {file.path: file.fault for file in former if file.fault is not None}
    left_out = {} if options.extend else before
    listed = shards.list_inputs(options.input, options.input_root, options.output)
    listed.sort(key=lambda file: place.get(file.path, len(place)))
    read = shards.read_footers([file for file in listed if file.path not in left_out])
    found = {shard.file.path: shard for shard in read}
    schema, shards_ = unify(
        [found.get(f.path) or Shard(file=f, fault=left_out[f.path]) for f in listed],
        lambda schema: _fits(schema, options),
    )
    faults = [shard.fault for shard in shards_ if shard.fault is not None]
    if faults and (options.strict or schema is None):
        many = f"{len(faults)} of {len(shards_)} input files cannot be read; the first: "
        stops = "; --strict stops here" if options.strict else ""
        first = f"{many if len(faults) > 1 else ''}{faults[0].message}"
        raise SetupError(f"{first}; restore the file, or leave it out of --input{stops}")
    assert schema is not None
    if options.extend and former:
        _check_extension(schema, shards_, place.keys() - before.keys(), options)
    return schema, shards_


def _check_extension(
    schema: pa.Schema, shards_: Sequence[Shard], former: Container[str], options: JobOptions
) -> None:
    """Raises SetupError if files beyond those with rows in the plan changed all rows' schema."""
    known, _ = unify(
        [shard for shard in shards_ if shard.file.path in former],
        lambda schema: _fits(schema, options),
    )
    if known is None or known == schema:
        return
    field = next(field for field in schema if field not in list(known))
    there = "no such column" if field.name not in known.names else known.field(field.name).type
    raise SetupError(
        f"--extend: the files added have a column {field.name!r} of {field.type}, but the run in "
        f"{files.redact(options.output)} has {there}; choose another --output folder for them"
    )


def _fits(schema: pa.Schema, options: JobOptions) -> bool:
    try:
        recipe = building.make_recipe(options, schema)
        tasks.of(options).resolve(
            building.schema_with(recipe, schema), building.roles_of(recipe, options), ""
        )
    except SetupError:
        return False
    return True


def former_files(output: str) -> list[plan.PlannedFile]:
    """The files of the plan that lies in an output folder.

    A job that goes on leaves out again what that leaves out, whatever became of it since: what is
    done has been done without its rows. ``--extend`` takes them in.
    """
    folder = Folder(output)
    with writing(folder):
        return plan.read_files(folder)
