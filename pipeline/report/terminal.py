"""What a run came to, as tables for a person."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from model.checkpoint import files
from pipeline.plan import is_part
from pipeline.prepare import Job
from pipeline.storage import Folder, open_parquet
from schemas.completion import SUCCEEDED

_SAMPLES = 5
_CELL = 160
"""Characters of a prompt or completion that are shown."""


def set_up_line(job: Job) -> str:
    """What is about to be done, in a line."""
    parts = f"{_number(job.chunks, 'part')}"
    if job.done:
        parts += f", {job.done:,} of them done"
    checkpoint = files.basename(job.options.checkpoint)
    return (
        f"{_number(job.rows, 'row')} in {_number(job.files, 'file')} → {parts} · "
        f"{checkpoint}, {job.engine.numerics} · {files.redact(job.options.output)}"
    )


def print_summary(job: Job, manifest: Mapping[str, Any], counters: Mapping[str, int]) -> None:
    """Prints totals, conservation, errors and speed, and a few completions.

    Args:
      job: the job.
      manifest: of its finished run.
      counters: what this run counted; none if there was nothing left to do.
    """
    console = Console()
    totals = summary_table(manifest, counters)
    title = f"completions in {files.redact(job.options.output)}"
    console.print(Panel(totals, title=Text(title), box=box.ROUNDED, expand=False))
    samples = list(first_completions(job.folder, job))
    if samples:
        table = Table("prompt", "completion", "end", box=box.SIMPLE_HEAD, pad_edge=False)
        for prompt, completion, reason in samples:
            table.add_row(Text(prompt, "dim"), Text(completion), Text(reason, "dim"))
        console.print(table)


def summary_table(manifest: Mapping[str, Any], counters: Mapping[str, int]) -> Table:
    """The totals of a finished run."""
    m = manifest
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row(
        "rows",
        f"{m['rows_in']:,} in = {m['succeeded']:,} succeeded + {m['errored']:,} errored; "
        f"{m['rows_out']:,} out",
    )
    table.add_row(
        "tokens",
        f"{m['prompt_tokens']:,} prompt ({m['cached_tokens']:,} shared), "
        f"{m['completion_tokens']:,} completion",
    )
    if m["finish_reasons"]:
        table.add_row("ended by", _tally(m["finish_reasons"]))
    if m["errors"]:
        table.add_row("errors", Text(_tally(m["errors"]), "red"))
    if m["files_errored"]:
        table.add_row("files", Text(_file_errors(m), "red"))
    table.add_row("parts", _parts(m, counters))
    if speed := _speed(counters):
        table.add_row("speed", speed)
    if len(m["engines"]) > 1 or len(m["code"]) > 1:
        kinds = f"{len(m['engines'])} engine set-ups, {len(m['code'])} versions of the code"
        table.add_row("mixed", Text(f"{kinds}; see _manifest.json", "yellow"))
    return table


def first_completions(folder: Folder, job: Job) -> Iterator[tuple[str, str, str]]:
    """The first few: prompt, completion, and what ended it, made safe for a terminal."""
    prefix, names = job.options.output_prefix, job.output.schema.names
    prompts = [
        names[job.input_schema.get_field_index(role)]
        for role in (job.roles.prompt, job.roles.prompt_token_ids)
        if role is not None
    ]
    added = [prefix + name for name in ("status", "text", "token_ids", "finish_reason")]
    left = _SAMPLES
    for part in sorted(filter(is_part, folder.names())):
        with open_parquet(folder.at(part), 1 << 20) as source:
            parquet = pq.ParquetFile(source)
            for batch in parquet.iter_batches(64, columns=prompts + added, use_threads=False):
                for row in batch.to_pylist():
                    status, text, ids, reason = (row[name] for name in added)
                    if status != SUCCEEDED:
                        continue
                    prompt = next(row[name] for name in prompts if row[name] is not None)
                    yield shown(prompt), shown(ids if text is None else text), reason
                    left -= 1
                    if not left:
                        return


def shown(value: Any) -> str:
    """A value in a table's cell: cut to size, and nothing in it can steer the terminal."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    text = value if isinstance(value, str) else " ".join(map(str, value[: _CELL // 2]))
    cut = text if len(text) <= _CELL else text[: _CELL - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def _file_errors(manifest: Mapping[str, Any]) -> str:
    first = manifest["file_errors"][0]
    number, unknown = manifest["files_errored"], manifest["files_of_unknown_rows"]
    text = f"{number:,} of {manifest['files']:,} could not be read, or not wholly"
    if unknown:
        text += f", {unknown:,} of them with nobody knows how many rows"
    more = "; all are in _errors/files.parquet" if number > 1 else ""
    return f"{text}: {first['error_code']}: {first['error_message']}{more}"


def _parts(manifest: Mapping[str, Any], counters: Mapping[str, int]) -> str:
    written = counters.get("parts_committed", 0)
    before = manifest["parts"] - written
    return f"{written:,} written" + (f", {before:,} there before" if before else "")


def _speed(counters: Mapping[str, int]) -> str:
    busy, rows = counters.get("busy_milliseconds", 0), counters.get("decode_rows", 0)
    if not busy:
        return ""
    words = [f"{1000 * counters.get('decoded_tokens', 0) / busy:,.0f} tokens/s while busy"]
    if rows:
        words.append(f"slots {counters.get('decode_rows_used', 0) / rows:.0%} full")
    for name, verb in (("load", "loaded"), ("compile", "compiled")):
        if took := counters.get(f"{name}_milliseconds", 0):
            words.append(f"{verb} in {took / 1000:.1f} s")
    return " · ".join(words)


def _tally(counts: Mapping[str, int]) -> str:
    return " · ".join(f"{name} {number:,}" for name, number in counts.items())


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
