"""Searches for bytes that break a promise, led by coverage: ``python -m tests.fuzz.run SECONDS``.

Each target of ``targets`` runs in a process of its own under Atheris. What it finds is written as
``fuzz-<target>-*`` in the current folder, and read again by ``python -m tests.fuzz.run FILE``.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

_MOST_MEMORY = 1500  # MiB: the interpreter with NumPy and JAX, and what a few files take
_MOST_SECONDS = 10
_MOST_BYTES = 16384
"""Of an input, if no seed has more."""


def main() -> int:
    """Fuzzes all targets for so many seconds each, or runs one file again."""
    what = sys.argv[1]
    if found := re.fullmatch(r"(?:.*/)?fuzz-(\w+?)-.*", what):
        from tests.fuzz import targets

        targets.check(found[1], pathlib.Path(what).read_bytes())
        return 0
    if len(sys.argv) > 2:
        _fuzz(sys.argv[2])
        return 0
    from tests.fuzz import targets

    failed = []
    for name in targets.TARGETS:
        with tempfile.TemporaryDirectory() as corpus:
            seeds = [*targets.seeds(name), *targets.bad_seeds(name)]
            for i, seed in enumerate(seeds):
                pathlib.Path(corpus, str(i)).write_bytes(seed)
            limits = [
                f"-max_total_time={what}",
                f"-rss_limit_mb={_MOST_MEMORY}",
                f"-timeout={_MOST_SECONDS}",
                f"-max_len={max(_MOST_BYTES, *map(len, seeds))}",
                f"-artifact_prefix=fuzz-{name}-",
                "-print_final_stats=1",
                "-verbosity=0",
            ]
            command = [sys.executable, "-m", "tests.fuzz.run", what, name, *limits, corpus]
            ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
            runs = re.search(r"number_of_executed_units: (\d+)", ended.stderr)
            count = f"{int(runs[1]):,} inputs" if runs else "stopped"
            print(f"{name}: {count}, {'a fault' if ended.returncode else 'no fault'}", flush=True)
            if ended.returncode:
                print(ended.stderr[-4000:], file=sys.stderr)
                failed.append(name)
    return 1 if failed else 0


def _fuzz(name: str) -> None:
    import atheris

    with atheris.instrument_imports(include=["model", "schemas"], enable_loader_override=False):
        from tests.fuzz import targets

    def one(data: bytes) -> None:
        targets.check(name, data)

    atheris.Setup([sys.argv[0], *sys.argv[3:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
