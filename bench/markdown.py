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
    _find(path, document, name)
    path.write_text(_marks(name).sub(lambda m: f"{m[1]}{text.strip()}\n{m[3]}", document), "utf-8")


def rows(path: pathlib.Path, name: str) -> list[list[str]]:
    """The cells of the table between two marks of a document, its header first.

    Raises:
      ValueError: the document has no such marks.
    """
    lines = _find(path, path.read_text("utf-8"), name)[2].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    return [cells[0], *cells[2:]]


def _find(path: pathlib.Path, document: str, name: str) -> re.Match[str]:
    if found := _marks(name).search(document):
        return found
    raise ValueError(f"{path} has no marks <!-- {name} --> and <!-- /{name} -->")


def _marks(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {re.escape(name)} -->\n)(.*?)(<!-- /{re.escape(name)} -->)", re.S)
