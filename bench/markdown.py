"""Puts measured numbers into documents: the text between two marks is replaced, all else stays."""

import pathlib
import re
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column is aligned left, the others right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def replace(path: pathlib.Path, name: str, text: str) -> None:
    """Puts a text between ``<!-- name -->`` and ``<!-- /name -->`` of a document.

    Raises:
      ValueError: the document has no such marks.
    """
    document = path.read_text("utf-8")
    marks = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.S)
    if not marks.search(document):
        raise ValueError(f"{path} has no marks <!-- {name} --> and <!-- /{name} -->")
    path.write_text(marks.sub(lambda m: f"{m[1]}{text.strip()}\n{m[2]}", document), "utf-8")
