"""The input as a job takes it: its files, those that cannot be read marked, and their schema."""

from collections.abc import Mapping

import pyarrow as pa

from pipeline import building, plan, shards, tasks
from pipeline.claim import writing
from pipeline.options import JobOptions
from pipeline.shards import Shard
from pipeline.storage import Folder
from pipeline.unify import unify
from schemas.error import RowError, SetupError


def read_inputs(
    options: JobOptions, left_out: Mapping[str, RowError]
) -> tuple[pa.Schema, list[Shard]]:
    """Lists the input's files, reads their footers and fixes the schema of their rows.

    Args:
      options: the job.
      left_out: path of a file -> why it is not to be read.

    Returns:
      The schema, and all files; those with a fault have no rows in the job.

    Raises:
      SetupError: no file can be read, or one cannot and the job is ``strict``.
    """
    listed = shards.list_inputs(options.input, options.input_root, options.output)
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
        raise SetupError(f"{many if len(faults) > 1 else ''}{faults[0].sentence()}{stops}")
    assert schema is not None
    return schema, shards_


def _fits(schema: pa.Schema, options: JobOptions) -> bool:
    try:
        recipe = building.make_recipe(options, schema)
        tasks.of(options).resolve(
            building.schema_with(recipe, schema), building.roles_of(recipe, options), ""
        )
    except SetupError:
        return False
    return True


def former_faults(output: str) -> dict[str, RowError]:
    """Path -> why the plan that lies in an output folder leaves the file out.

    A job that goes on leaves it out again, whatever became of it since: what is done has been done
    without its rows.
    """
    folder = Folder(output)
    with writing(folder):
        planned = plan.read_files(folder)
    return {file.path: file.fault for file in planned if file.fault is not None}
