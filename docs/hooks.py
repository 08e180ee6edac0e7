"""Fills pages of the site from the source, so that they cannot drift from it."""

import argparse
import dataclasses
import re

from pipeline.cli import make_parser
from schemas.error import EXPLANATIONS, INPUT_ERRORS, ErrorCode
from schemas.sampling import SamplingParams


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replaces each ``<!-- generated: NAME -->`` by what NAME makes."""
    makers = {"commands": commands, "errors": errors, "sampling": sampling}
    return re.sub(r"<!-- generated: (\w+) -->", lambda m: makers[m.group(1)](), markdown)


def commands() -> str:
    """Every command's own help."""
    parser = make_parser()
    subparsers = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    pages = []
    for name, command in subparsers.choices.items():
        pages.append(f"## grok1 {name}\n\n```text\n{command.format_help().strip()}\n```\n")
    return "\n".join(pages)


def errors() -> str:
    """A table of all codes, then of each what it means, where it comes from, what can be done."""
    sections, rows = [], ["| code | of a | what is the matter |", "|---|---|---|"]
    for code in ErrorCode:
        told = EXPLANATIONS[code]
        of = " (of a file)" if code in INPUT_ERRORS else ""
        anchor = f"{code}{'-of-a-file' if of else ''}"
        rows.append(f"| [`{code}`](#{anchor}) | {'file' if of else 'row'} | {told.meaning} |")
        sections.append(
            f"### `{code}`{of}\n\n{_sentence(told.meaning)}\n\n"
            f"- **Usual cause:** {told.cause}.\n- **What to do:** {told.remedy}."
        )
    return "\n\n".join(["\n".join(rows), *sections])


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def sampling() -> str:
    """A row a parameter, from the docstring that defines it."""
    text = re.search(r"Attributes:\n(.*?)\n\n", SamplingParams.__doc__ or "", re.DOTALL)
    described = dict(
        re.findall(r"^      (\w+): (.*?)(?=^      \w+: |\Z)", text.group(1) + "\n", re.M | re.S)
    )
    rows = []
    for field in dataclasses.fields(SamplingParams):
        meaning = " ".join(described[field.name].split())
        rows.append(f"| `{field.name}` | `{field.default!r}` | {meaning} |")
    return "\n".join(["| parameter | default | meaning |", "|---|---|---|", *rows])
