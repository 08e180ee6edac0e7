"""The job that would be sent to Dataflow, for a person to read before it is."""

from collections.abc import Mapping, Sequence
from typing import Any

from apache_beam.portability.api import beam_runner_api_pb2
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from model.checkpoint import files
from model.engine.options import ACCELERATOR_SLOTS
from pipeline.dataflow.checks import spread_advice
from pipeline.dataflow.draft import draft
from pipeline.dataflow.options import Submission
from pipeline.dataflow.stages import fused_stages, readable
from pipeline.estimate.cost import Rate
from pipeline.plan import Chunk
from pipeline.prepare import Job
from pipeline.spans import spans


def explain(
    job: Job, chunks: Sequence[Chunk], submission: Submission, rates: dict[str, Rate]
) -> None:
    """Prints worker pool, image, price, stages and options.

    Args:
      job: checked, its output not claimed.
      chunks: of its plan.
      submission: what would be submitted.
      rates: prices by machine.
    """
    console, s = Console(), submission
    machine = s.profile.machine
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    rate = rates.get(machine.name)
    pieces = sum(1 for _ in spans(chunks))
    decoded = min(job.engine.slots or ACCELERATOR_SLOTS, s.slots)
    facts = [
        ("job", f"{job.rows:,} rows in {job.files:,} files, {job.chunks:,} parts"),
        ("spread", f"{pieces:,} pieces of work, {s.threads} at once on a worker"),
        ("checkpoint", f"{files.redact(job.options.checkpoint)}, {s.weights}"),
        ("output", files.redact(job.options.output)),
        ("where", f"project {s.project}, {s.region}, staging in {s.bucket}"),
        ("workers", f"up to {s.workers} × {s.machine_type}: {machine.title}"),
        ("accelerator", s.profile.accelerator),
        ("offered in", ", ".join(s.profile.zones)),
        ("image", s.image or "none"),
        (
            "slots",
            f"{decoded:,} sequences decoded at once on a worker, which has room for "
            f"{s.slots:,} of {job.max_context:,} tokens",
        ),
        ("price", _price(rate, s.workers)),
    ]
    for name, fact in facts:
        table.add_row(name, Text(fact))
    console.print(Panel(table, title="what would run on Dataflow", box=box.ROUNDED, expand=False))
    if advice := spread_advice(pieces, s.workers, s.threads, job.rows):
        console.print(Text(advice, "yellow"))
    built = draft(job, submission)
    steps = _table("stage", "steps, in one go")
    for number, names in enumerate(stages(built.graph), 1):
        steps.add_row(str(number), Text(" → ".join(names)))
    console.print(steps)
    options = _table("option", "value")
    for name, value in readable_options(built.options):
        options.add_row(Text(name), Text(value))
    console.print(options)
    if s.profile.environment:
        variables = _table("image variable", "value")
        for name, value in s.profile.environment.items():
            variables.add_row(Text(name), Text(value))
        console.print(variables)


def stages(graph: beam_runner_api_pb2.Pipeline) -> list[list[str]]:
    """The steps of each stage, in order."""
    return [names for stage in fused_stages(graph) if (names := readable(stage))]


def readable_options(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What Beam and the service are told, in alphabetical order; of a list, each on its line."""
    return [
        (name, "\n".join(map(str, value)) if isinstance(value, list) else str(value))
        for name, value in sorted(told.items())
    ]


def _table(*headings: str) -> Table:
    """Columns that break a long value: one that is cut short cannot be checked."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _price(rate: Rate | None, workers: int) -> str:
    if rate is None:
        return "not in the table of rates"
    each = f"{rate.usd_per_hour:,.2f} US$ an hour each"
    total = f"{workers * rate.usd_per_hour:,.2f} with all of them"
    return f"{each}, {total} (list price, before what Dataflow itself charges)"
