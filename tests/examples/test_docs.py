"""What docstrings and pages show of the Python API, run as it stands there."""

import doctest
import importlib
import os
import pathlib
import re
from collections.abc import Iterator

import pytest

from tests.jobs import write

ROOT = pathlib.Path(__file__).parents[2]

MODULES = ("model.engine.asking", "pipeline.job", "pipeline.results", "schemas.sampling")
"""Those whose docstrings have examples."""

PAGES = ("README.md", "docs/scoring.md")
"""Those that show Python."""


@pytest.fixture(scope="module", autouse=True)
def _world(talking: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder with what the examples name."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "grok-1").symlink_to(talking)
    (folder / "examples").symlink_to(ROOT / "examples")
    write(folder / "prompts" / "a.parquet", {"prompt": ["import ", "def f("]})
    before = pathlib.Path.cwd()
    os.chdir(folder)
    yield
    os.chdir(before)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    flags = doctest.NORMALIZE_WHITESPACE
    ran = doctest.testmod(importlib.import_module(name), optionflags=flags, report=False)
    assert ran.attempted
    assert ran.failed == 0, "see the standard output"


def test_no_module_with_examples_is_left_out():
    sources = [p for top in ("model", "pipeline", "schemas") for p in (ROOT / top).rglob("*.py")]
    shown = [path for path in sources if "  >>> " in path.read_text()]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in shown}
    assert names == set(MODULES)


@pytest.mark.parametrize("page", PAGES)
def test_pages(page):
    shown = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert shown
    # From the end: pages tell how completions are read before they tell how they are made.
    for code in reversed(shown):
        exec(compile(code, page, "exec"), {"__name__": "__main__"})


def test_no_page_with_python_is_left_out():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {str(p.relative_to(ROOT)) for p in pages if "```python\n" in p.read_text()}
    assert shown == set(PAGES)


def test_tests_that_pages_name_are_there():
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    named = {
        name
        for page in pages
        for name in re.findall(r"`(?:tests/)?([\w/]+/test_\w+\.py)", page.read_text())
    }
    assert "reliability/test_kill.py" in named
    assert [name for name in sorted(named) if not (ROOT / "tests" / name).exists()] == []
