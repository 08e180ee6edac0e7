"""What fits where: compiles every step of the full model for each machine, with nothing attached.

Needs the extra ``aot``: ``.venv-aot/bin/python -m bench.full_size --write`` (a quarter of an hour).
"""

import argparse
import pathlib

from bench import markdown
from model.config import GROK_1
from model.fit import Fit, Question, compile_for, find_fit

DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "full-size.md"

QUESTIONS = [
    Question(machine=machine, config=GROK_1, weights=weights, context=context, slots=slots)
    for machine, weights, slots, context in (
        ("h100x8", "int8", None, 8192),
        ("h100x8", "int8", 256, 2048),
        ("h100x8", "int4", 256, 2048),
        ("a100x8", "int8", 256, 2048),
        ("v5p-4", "int8", 128, 2048),
        ("v5p-4", "int8", 32, 8192),
        ("v6e-8", "int4", 128, 2048),
        ("v6e-8", "int4", 32, 8192),
        ("v6e-8", "int8", 8, 2048),
    )
]
"""The sizes; without slots the most that fit are looked for."""


def main() -> None:
    """Compiles, prints, and records if asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench.full_size", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"record in {DOCUMENT.name}")
    given = parser.parse_args()
    fits = []
    for question in QUESTIONS:
        fits.append(compile_for(question) if question.slots else find_fit(question))
        print(f"{question.machine} {question.weights}: {verdict(fits[-1])}", flush=True)
    for name, text in (("fits", fits_table(fits)), ("floors", floors_table(fits))):
        print(text)
        if given.write:
            markdown.replace(DOCUMENT, name, text)


def fits_table(fits: list[Fit]) -> str:
    """GiB of one device, and whether that is within its limit."""
    header = ["machine", "weights", "sequences × context"]
    header += ["weights", "cache", "temporaries", "peak", "limit", ""]
    rows = []
    for fit in fits:
        found = fit.to_dict()
        names = ("weights", "cache", "temporaries", "peak", "limit")
        sizes = [f"{found[f'{name}_gib']:.2f}" for name in names]
        if fit.refused:
            sizes[2] = ""
        rows.append([*_subject(fit), *sizes, verdict(fit)])
    return markdown.table(header, rows)


def floors_table(fits: list[Fit]) -> str:
    """Tokens a second that bandwidth and products allow, of what fits."""
    header = ["machine", "weights", "sequences × context", "decode, tokens/s", "prefill, tokens/s"]
    rows = []
    for fit in fits:
        if fit.fits:
            found = fit.to_dict()
            floors = [found[f"{kind}_floor_tokens_per_second"] for kind in ("decode", "prefill")]
            rows.append([*_subject(fit), *(f"{floor:,}" for floor in floors)])
    return markdown.table(header, rows)


def verdict(fit: Fit) -> str:
    """In words."""
    if fit.refused:
        return "refused by the compiler"
    if not fit.fits:
        return "does not fit"
    return "fits; the most that do" if fit.max_slots else "fits"


def _subject(fit: Fit) -> list[str]:
    asked = fit.question
    return [asked.profile.title, asked.weights, f"{asked.slots} × {asked.context}"]


if __name__ == "__main__":
    main()
