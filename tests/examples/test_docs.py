"""What docstrings and pages show of the Python API, run as it stands there."""

import dataclasses
import doctest
import html
import importlib
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pipeline.cli import _COMMANDS
from schemas.error import EXPLANATIONS, INPUT_ERRORS, ErrorCode
from schemas.sampling import SamplingParams
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


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
    """The site, as ``make docs`` builds it: a page, link or anchor that is not there is a fault."""
    pytest.importorskip("mkdocs", reason="the packages of the extra docs are not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(folder)]
    ran = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True
    )
    assert ran.returncode == 0, ran.stderr.decode()
    return folder


def shown(site: pathlib.Path, page: str) -> str:
    text = html.unescape(re.sub(r"<[^>]+>", "", (site / page / "index.html").read_text()))
    return " ".join(text.split())


def test_every_code_is_explained_on_the_site(site):
    text = shown(site, "reference/errors")
    for code in ErrorCode:
        told = EXPLANATIONS[code]
        heading = f" {code}{' (of a file)' if code in INPUT_ERRORS else ''}¶"
        section = text.partition(heading)[2].partition("¶")[0].casefold()
        places = [section.index(words.casefold()) for words in dataclasses.astuple(told)]
        assert places == sorted(places)


def test_every_command_is_described_on_the_site(site):
    text = shown(site, "reference/commands")
    assert all(f"usage: grok1 {name.rstrip('_')}" in text for name in _COMMANDS)


def test_every_parameter_is_described_on_the_site(site):
    text = shown(site, "reference/sampling")
    assert all(f" {field.name} " in text for field in dataclasses.fields(SamplingParams))


def test_links_of_pages_outside_the_site_lead_somewhere():
    pages = [*ROOT.glob("*.md"), ROOT / "examples" / "README.md"]
    links = {
        (page.relative_to(ROOT), target)
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if "://" not in target
    }
    assert links
    assert [link for link in sorted(links) if not (ROOT / link[0].parent / link[1]).exists()] == []


def test_tests_that_pages_name_are_there():
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    named = {
        name
        for page in pages
        for name in re.findall(r"`(?:tests/)?([\w/]+/test_\w+\.py)", page.read_text())
    }
    assert "reliability/test_kill.py" in named
    assert [name for name in sorted(named) if not (ROOT / "tests" / name).exists()] == []
