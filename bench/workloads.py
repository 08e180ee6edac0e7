"""The work that is measured, the same for this engine and its peers: prompts as token ids.

Needs nothing but Python, so that any peer's environment can read it; a workload of a name is the
same everywhere, for ever.
"""

import dataclasses
import math
import random
from collections.abc import Callable

VOCAB_SIZE = 8192
"""V of the bench model."""

CONTEXT = 1024
"""Longest sequence of the bench model; no workload is longer."""

_FIRST_ID = 325
"""Ids below are special, single bytes and white space."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One row.

    Attributes:
      prompt: token ids.
      max_tokens: tokens to generate, end of text ignored; 0 to score the prompt instead.
      n: completions of it.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    n: int = 1


@dataclasses.dataclass(frozen=True)
class Workload:
    """Rows that belong together.

    Attributes:
      name: its key in ``WORKLOADS``.
      jobs: the rows.
    """

    name: str
    jobs: tuple[Job, ...]

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all rows, each prompt counted once."""
        return sum(len(job.prompt) for job in self.jobs)

    @property
    def output_tokens(self) -> int:
        """Tokens generated for all rows and samples."""
        return sum(job.n * job.max_tokens for job in self.jobs)

    def varied(self, turn: int) -> "Workload":
        """The same with other tokens; see ``vary``."""
        jobs = (dataclasses.replace(job, prompt=vary(job.prompt, turn)) for job in self.jobs)
        return Workload(self.name, tuple(jobs))

    def first(self, count: int) -> "Workload":
        """The first rows only, for a look at whether something runs."""
        return Workload(self.name, self.jobs[:count])


def uniform(count: int) -> tuple[Job, ...]:
    """Prompts of 128 tokens, 64 new tokens each."""
    draw = random.Random(f"uniform-{count}")
    return tuple(Job(_ids(draw, 128), 64) for _ in range(count))


def mixed(count: int = 1000) -> tuple[Job, ...]:
    """Prompt lengths log-normal from 10 to 600, outputs geometric with mean 60, at most 256."""
    draw = random.Random("mixed")
    jobs = []
    for _ in range(count):
        length = min(600, max(10, round(draw.lognormvariate(math.log(100), 1.0))))
        output = math.ceil(math.log(1 - draw.random()) / math.log(1 - 1 / 60)) or 1
        jobs.append(Job(_ids(draw, length), min(256, output)))
    return tuple(jobs)


def few_shot(count: int = 500) -> tuple[Job, ...]:
    """Prompts that share their first 400 tokens, then 16 to 64 of their own; 64 new tokens each."""
    draw = random.Random("few-shot")
    shared = _ids(draw, 400)
    return tuple(Job(shared + _ids(draw, draw.randint(16, 64)), 64) for _ in range(count))


def best_of(count: int = 64) -> tuple[Job, ...]:
    """Eight completions of 64 tokens each for prompts of 128 tokens."""
    draw = random.Random("best-of")
    return tuple(Job(_ids(draw, 128), 64, n=8) for _ in range(count))


def scoring(count: int = 1000) -> tuple[Job, ...]:
    """Documents to score, with the lengths of ``mixed``'s prompts."""
    draw = random.Random("scoring")
    return tuple(Job(_ids(draw, len(job.prompt)), 0) for job in mixed(count))


WORKLOADS: dict[str, Callable[[], tuple[Job, ...]]] = {
    "uniform-128": lambda: uniform(128),
    "uniform-256": lambda: uniform(256),
    "mixed": mixed,
    "few-shot": few_shot,
    "best-of": best_of,
    "scoring": scoring,
}
"""All workloads by name."""


def make(name: str) -> Workload:
    """The workload of a name."""
    return Workload(name, WORKLOADS[name]())


def vary(prompt: tuple[int, ...], turn: int) -> tuple[int, ...]:
    """Another prompt for each turn, so that no cache remembers the turn before; 0 is the prompt."""
    size = VOCAB_SIZE - _FIRST_ID
    return tuple(_FIRST_ID + (token - _FIRST_ID + 101 * turn) % size for token in prompt)


def _ids(draw: random.Random, count: int) -> tuple[int, ...]:
    return tuple(draw.randrange(_FIRST_ID, VOCAB_SIZE) for _ in range(count))
