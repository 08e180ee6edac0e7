"""The job that would be sent to Dataflow, for a person to read before it is."""

from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from model.checkpoint import files
from model.engine.options import ACCELERATOR_SLOTS
from pipeline.dataflow.checks import spread_advice
from pipeline.dataflow.options import HARNESS_THREADS, Submission
from pipeline.dataflow.stages import fused_stages, readable
from pipeline.estimate.cost import Rate
from pipeline.job import wire
from pipeline.plan import Chunk
from pipeline.prepare import Job
from pipeline.spans import spans

_HIDDEN = ("runner",)


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
    table.add_column()
    rate = rates.get(machine.name)
    pieces = sum(1 for _ in spans(chunks))
    decoded = min(job.engine.slots or ACCELERATOR_SLOTS, s.slots)
    facts = [
        ("job", f"{job.rows:,} rows in {job.files:,} files, {job.chunks:,} parts"),
        ("spread", f"{pieces:,} pieces of work, {HARNESS_THREADS} at once on a worker"),
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
    if advice := spread_advice(pieces, s.workers, job.rows):
        console.print(Text(advice, "yellow"))
    steps = Table("stage", "steps, in one go", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, names in enumerate(stages(job), 1):
        steps.add_row(str(number), Text(" → ".join(names)))
    console.print(steps)
    options = Table("option", "value", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, value in beam_options(s):
        options.add_row(Text(name), Text(value))
    console.print(options)
    if s.profile.environment:
        variables = Table("image variable", "value", box=box.SIMPLE_HEAD, pad_edge=False)
        for name, value in s.profile.environment.items():
            variables.add_row(Text(name), Text(value))
        console.print(variables)


def stages(job: Job) -> list[list[str]]:
    """The steps of each stage, in order."""
    graph = wire(job, PipelineOptions(["--runner=FnApiRunner"])).to_runner_api()
    return [names for stage in fused_stages(graph) if (names := readable(stage))]


def beam_options(submission: Submission) -> list[tuple[str, str]]:
    """What Beam is told, in alphabetical order."""
    told = PipelineOptions(submission.arguments).get_all_options(drop_default=True)
    return [
        (name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for name, value in sorted(told.items())
        if name not in _HIDDEN
    ]


def _price(rate: Rate | None, workers: int) -> str:
    if rate is None:
        return "not in the table of rates"
    each = f"{rate.usd_per_hour:,.2f} US$ an hour each"
    total = f"{workers * rate.usd_per_hour:,.2f} with all of them"
    return f"{each}, {total} (list price, before what Dataflow itself charges)"
