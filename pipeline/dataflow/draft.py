"""The job that would be sent, as Dataflow's own client makes it, with nothing sent or staged."""

import dataclasses
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions, TestOptions
from apache_beam.portability.api import beam_runner_api_pb2

from pipeline.dataflow.options import Submission
from pipeline.job import wire
from pipeline.prepare import Job


@dataclasses.dataclass(frozen=True)
class Draft:
    """A job that was built and goes no further.

    Attributes:
      graph: its steps.
      options: what workers and service are told and would not take for granted, by name. The job's
        name, unless the user gave one, and the last part of its folders are of the moment.
    """

    graph: beam_runner_api_pb2.Pipeline
    options: dict[str, Any]


def draft(job: Job, submission: Submission) -> Draft:
    """Has Beam build the job up to where it would stage files.

    Args:
      job: checked, its output not claimed.
      submission: what would be submitted.
    """
    options = PipelineOptions(submission.arguments)
    setup, test = options.view_as(SetupOptions), options.view_as(TestOptions)
    setup_file, dry_run = setup.setup_file, test.dry_run
    # Packing the code takes seconds, and changes nothing that is shown.
    setup.setup_file, test.dry_run = None, True
    result: Any = wire(job, options).run()
    built = result.job
    built.options.view_as(SetupOptions).setup_file = setup_file
    built.options.view_as(TestOptions).dry_run = dry_run
    told = built.options.get_all_options(drop_default=True, retain_unknown_options=True)
    # Beam gathers them in a set.
    told["beam_plugins"] = sorted(told["beam_plugins"])
    return Draft(built.proto_pipeline, told)
