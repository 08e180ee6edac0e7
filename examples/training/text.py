"""The text: the source and the manual that every Python brings along, in documents and tokens."""

import ast
import dataclasses
import pathlib
import sysconfig
from collections.abc import Iterable, Iterator

import numpy as np

from model.tokenizer import Tokenizer
from schemas.error import SetupError

HELD_OUT = (
    "calendar.py",
    "configparser.py",
    "fractions.py",
    "ftplib.py",
    "heapq.py",
    "json/decoder.py",
    "mailbox.py",
    "pprint.py",
    "shelve.py",
    "statistics.py",
    "tarfile.py",
    "textwrap.py",
    "urllib/robotparser.py",
    "zipapp.py",
)
"""Modules that are kept from training, to measure with."""

_LEFT_OUT = {
    *("site-packages", "dist-packages", "__pycache__", "__phello__"),
    *("test", "tests", "idle_test", "lib2to3", "encodings", "pydoc_data"),
}
"""Folders that are no part of the library, not always installed, or tables rather than text."""

_TOPICS = "pydoc_data/topics.py"


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Tokens end to end, a document after another, each ended by EOS.

    Attributes:
      tokens: [N] uint16 ids.
      starts: where each document begins.
      nbytes: of the text, in UTF-8.
    """

    tokens: np.ndarray
    starts: np.ndarray
    nbytes: int


def read_documents() -> tuple[list[str], list[str]]:
    """Documents to train on, and those held out, in the order of the files' names.

    Raises:
      SetupError: this Python lacks its library's source.
    """
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    training, held_out = _manual(library), []
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if _LEFT_OUT & set(name.parts) or name.name.startswith("_sysconfigdata"):
            continue
        documents = held_out if name.as_posix() in HELD_OUT else training
        documents.extend(cut(path.read_text("utf-8", errors="ignore")))
    if not held_out or len(training) < len(held_out):
        raise SetupError(f"{library} has no source to train on: use a Python that brings it")
    return training, held_out


def cut(source: str) -> Iterator[str]:
    """A module's text in documents: each definition with what is right above it, and the rest."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    lines = source.splitlines(keepends=True)
    cuts = [0]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            start = min(n.lineno for n in [node, *node.decorator_list]) - 1
            while start > cuts[-1] and lines[start - 1].startswith("#"):
                start -= 1
            cuts += [start, node.end_lineno or start]
    for start, end in zip(cuts, [*cuts[1:], len(lines)], strict=True):
        if text := "".join(lines[start:end]).strip("\n"):
            yield text + "\n"


def encode(documents: Iterable[str], tokenizer: Tokenizer) -> Corpus:
    """The documents as tokens."""
    documents = list(documents)
    encoded = [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(documents)]
    ends = np.cumsum([len(ids) for ids in encoded])
    return Corpus(
        tokens=np.concatenate([np.array(ids, np.uint16) for ids in encoded]),
        starts=np.concatenate([[0], ends[:-1]]),
        nbytes=sum(len(text.encode()) for text in documents),
    )


def windows(corpus: Corpus, length: int) -> np.ndarray:
    """Where windows of a length begin: with a document where one begins, else a length further.

    A model is asked to go on from the beginning of a text, so that is what it should see most.
    Each token is in a window, those of short documents in several.
    """
    last = len(corpus.tokens) - length
    starts, at = [], 0
    while at < last:
        starts.append(at)
        after = np.searchsorted(corpus.starts, at + length // 2)
        following = int(corpus.starts[after]) if after < len(corpus.starts) else last
        at = min(following, at + length)
    return np.array([*starts, last])


def _manual(library: pathlib.Path) -> list[str]:
    """The topics of ``help()``; a module that only assigns one dict of texts."""
    path = library / _TOPICS
    if not path.is_file():
        return []
    assigned = next(n for n in ast.parse(path.read_text("utf-8")).body if isinstance(n, ast.Assign))
    topics = ast.literal_eval(assigned.value)
    return [topics[name].strip("\n") + "\n" for name in sorted(topics)]
