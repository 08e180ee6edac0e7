"""What a run came to, as tables for a person."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from model.checkpoint import files
from model.evaluation import perplexity
from pipeline.plan import is_part
from pipeline.prepare import Job
from pipeline.report.text import text_of
from pipeline.storage import Folder, open_parquet
from schemas.columns import values
from schemas.completion import SUCCEEDED

RESULTS = {"generate": "completions", "score": "scores"}
"""What a task's output is called."""

HEADINGS = {
    "generate": ("prompt", "completion", "end"),
    "score": ("context", "continuation", "logprob"),
}
"""Of the rows that are shown."""

_SAMPLES = 5
_CELL = 160
"""Characters of a prompt or completion that are shown."""

_LINES = 6
"""Lines of it."""


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
    """Prints totals, conservation, errors and speed, and a few rows.

    Args:
      job: the job.
      manifest: of its finished run.
      counters: what this run counted; none if there was nothing left to do.
    """
    console = Console()
    totals = summary_table(manifest, counters, job.done)
    title = f"{RESULTS[job.options.task]} in {files.redact(job.options.output)}"
    console.print(Panel(totals, title=Text(title), box=box.ROUNDED, expand=False))
    first = first_scores if job.options.task == "score" else first_completions
    headings = HEADINGS[job.options.task]
    samples = list(first(job.folder, job))
    if samples:
        table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)
        for before, answer, about in samples:
            cells = _cell(before, "dim"), _cell(answer), Text(about, "dim")
            table.add_row(*cells, end_section=True)
        console.print(table)


def summary_table(
    manifest: Mapping[str, Any], counters: Mapping[str, int], parts_before: int
) -> Table:
    """The totals of a finished run.

    Args:
      manifest: of the run.
      counters: what this start counted; none if there was nothing left to do.
      parts_before: how many parts were there when it began.
    """
    m = manifest
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row(
        "rows",
        f"{m['rows_in']:,} in = {m['succeeded']:,} succeeded + {m['errored']:,} errored; "
        f"{m['rows_out']:,} out",
    )
    for name, fact in token_facts(m, m["settings"]["task"]).items():
        table.add_row(name, fact)
    if m["duplicates"]:
        table.add_row("duplicates", f"{_number(m['duplicates'], 'row')} answered as an equal one")
    if m["finish_reasons"]:
        table.add_row("ended by", _tally(m["finish_reasons"]))
    if m["errors"]:
        table.add_row("errors", Text(_tally(m["errors"]), "red"))
    if m["files_errored"]:
        table.add_row("files", Text(_file_errors(m), "red"))
    table.add_row("parts", _parts(m["parts"], counters, parts_before))
    if speed := _speed(counters):
        table.add_row("speed", speed)
    if len(m["engines"]) > 1 or len(m["code"]) > 1:
        kinds = f"{len(m['engines'])} engine set-ups, {len(m['code'])} versions of the code"
        table.add_row("mixed", Text(f"{kinds}; see _manifest.json", "yellow"))
    return table


def token_facts(totals: Mapping[str, Any], task: str) -> dict[str, str]:
    """What was read and made, in tokens."""
    t = totals
    if task != "score":
        return {
            "tokens": f"{t['prompt_tokens']:,} prompt ({t['cached_tokens']:,} shared), "
            f"{t['completion_tokens']:,} completion"
        }
    facts = {
        "tokens": f"{t['prompt_tokens']:,} context ({t['cached_tokens']:,} shared), "
        f"{t['scored_tokens']:,} scored"
    }
    if t["scored_tokens"]:
        text = f"{perplexity(t['logprob'], t['scored_tokens']):.4g} a token"
        if t["text_bytes"]:
            text += f", {perplexity(t['text_logprob'], t['text_bytes']):.4g} a byte"
        facts["perplexity"] = f"{text}; {_number(t['greedy'], 'continuation')} greedy"
    return facts


def first_completions(folder: Folder, job: Job) -> Iterator[tuple[str, str, str]]:
    """The first few: prompt, completion, and what ended it, made safe for a terminal."""
    roles = _read(job, (job.roles.prompt, job.roles.prompt_token_ids))
    for row, added in _first_rows(folder, job, roles, ("text", "token_ids", "finish_reason")):
        prompt = next((value for value in row if value is not None), "")
        text, ids, reason = added
        yield shown(prompt), shown(ids if text is None else text), reason


def first_scores(folder: Folder, job: Job) -> Iterator[tuple[str, str, str]]:
    """The first few: context, what was scored, and its log-probability, made safe."""
    r = job.roles
    befores = _read(job, (r.context, r.context_token_ids))
    texts = (r.continuation, r.document, r.continuations)
    added = ("continuation_index", "token_ids", "logprob", "is_greedy")
    for row, (index, ids, logprob, greedy) in _first_rows(folder, job, befores + texts, added):
        before = next((value for value in row[: len(befores)] if value is not None), "")
        text = next((value for value in row[len(befores) :] if value is not None), ids)
        if r.continuations is not None:
            text = text[index]
        yield shown(before), shown(text), f"{logprob:.3f}{' greedy' if greedy else ''}"


def _read(job: Job, roles: Sequence[str | None]) -> tuple[str | None, ...]:
    """The input columns behind these: for what is built of others, the first of those."""
    return tuple(roles) if job.recipe is None else job.recipe.columns[:1]


def _first_rows(
    folder: Folder, job: Job, roles: Sequence[str | None], added: Sequence[str]
) -> Iterator[tuple[list[Any], list[Any]]]:
    """The first good output rows: what input columns hold, None for no column, and added ones."""
    names, prefix = job.output.schema.names, job.options.output_prefix
    inputs = [None if r is None else names[job.input_schema.get_field_index(r)] for r in roles]
    columns = [prefix + name for name in ("status", *added)]
    wanted = [name for name in inputs if name is not None] + columns
    left = _SAMPLES
    for part in sorted(filter(is_part, folder.names())):
        with open_parquet(folder.at(part), 1 << 20) as source:
            parquet = pq.ParquetFile(source)
            for batch in parquet.iter_batches(64, columns=wanted, use_threads=False):
                held = {name: values(batch, name) for name in dict.fromkeys(wanted)}
                for i, status in enumerate(held[columns[0]]):
                    if status != SUCCEEDED:
                        continue
                    own = [None if name is None else held[name][i] for name in inputs]
                    yield own, [held[name][i] for name in columns[1:]]
                    left -= 1
                    if not left:
                        return


def shown(value: Any) -> str:
    """A value in a table's cell: cut to size, and nothing in it can steer the terminal."""
    text = text_of(value, _CELL // 2)
    lines = text[:_CELL].split("\n", _LINES)
    cut = "\n".join(lines[:_LINES])
    safe = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in cut)
    return "".join(safe).rstrip("\n") + ("…" if len(cut.rstrip()) < len(text.rstrip()) else "")


def _cell(text: str, style: str = "") -> Text:
    """Prose is wrapped; lines of something like code are left where they stand, and cut."""
    return Text(text, style, no_wrap="\n" in text)


def _file_errors(manifest: Mapping[str, Any]) -> str:
    first = manifest["file_errors"][0]
    number, unknown = manifest["files_errored"], manifest["files_of_unknown_rows"]
    text = f"{number:,} of {manifest['files']:,} could not be read, or not wholly"
    if unknown:
        text += f" ({unknown:,} of an unknown number of rows)"
    more = "; all are in _errors/files.parquet" if number > 1 else ""
    return f"{text}: {first['error_code']}: {first['error_message']}{more}"


def _parts(parts: int, counters: Mapping[str, int], before: int) -> str:
    if not counters and before < parts:  # a runner elsewhere may count nothing
        return f"{parts:,}" + (f", {before:,} of them there before" if before else "")
    written = counters.get("parts_committed", 0)
    told = f"{written:,} written" + (f", {before:,} there before" if before else "")
    if (others := parts - written - before) > 0:
        # An attempt that wrote its part and then failed is counted by no runner.
        told += f"; {others:,} written meanwhile by another run, or another attempt of this one"
    return told


def _speed(counters: Mapping[str, int]) -> str:
    busy, rows = counters.get("busy_milliseconds", 0), counters.get("decode_rows", 0)
    if not busy:
        return ""
    tokens = counters.get("decoded_tokens", 0) or counters.get("prefilled_tokens", 0)
    words = [f"{1000 * tokens / busy:,.0f} tokens/s while busy"]
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
