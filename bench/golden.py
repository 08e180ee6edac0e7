"""Runs the golden tests of release and bf16 modes on a GPU; for ``bench.gpu --golden``."""

import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).parents[1]


def command() -> list[str]:
    """Runs those tests, the slow one of release mode included, which pytest leaves out unasked."""
    tests = ["tests/model/engine/test_golden.py", "-k", "bf16 or release", "-m", "slow or not slow"]
    return [sys.executable, "-m", "pytest", *tests]


def backend() -> str:
    """What JAX runs on: ``gpu``, or ``cpu``, to which it falls back.

    Asked in a process of its own, which lets the GPU go: this one would keep its memory from tests.
    """
    program = "import jax; print(jax.default_backend())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return (found.stdout.split() or ["none"])[-1]


def run() -> int:
    """pytest's exit code."""
    return subprocess.run(command(), cwd=_ROOT).returncode
