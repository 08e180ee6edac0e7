"""The house: arrows point one way, and what is documented is there."""

import ast
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FORBIDDEN = {
    "schemas": {"model", "pipeline", "jax", "apache_beam"},
    "model": {"pipeline", "apache_beam", "pyarrow"},
    "model/engine/scheduler.py": {"jax", "numpy"},
}


def imports(path: pathlib.Path) -> set[str]:
    """The packages that a file names in its imports, wherever they stand."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("place", FORBIDDEN)
def test_arrows_point_one_way(place):
    path = ROOT / place
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert files
    for file in files:
        assert not imports(file) & FORBIDDEN[place], file


def test_every_target_is_in_the_help():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: (\S+)$", makefile, re.MULTILINE))
    command = ["make", "--no-print-directory", "help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line.split(None, 2) for line in shown.stdout.splitlines()]
    assert {target for _, target, _ in lines} == targets
    assert {"setup", "demo", "test", "test-all", "lint", "help"} <= targets


def test_ci_runs_what_the_readme_says():
    ci, readme = ((ROOT / name).read_text() for name in (".ci/run", "README.md"))
    for command in ("make help", "make demo", "make test", "make lint"):
        assert command in ci
    assert "make demo" in readme
    assert "make test" in readme
