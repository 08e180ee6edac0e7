"""A finished run, for what looks at runs."""

import dataclasses
import pathlib

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
)

COLUMN, RENAMED = "<script>document.title</script>", "=<i>renamed</i>"
"""A column as the input calls it, and as the output does."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run over hostile prompts or contexts, one of them broken, and what they were.

    Each of the others has ``each`` answers.
    """

    output: pathlib.Path
    prompts: list[str | None]
    each: int = 1

    @property
    def page(self) -> str:
        return (self.output / "_report.html").read_text()
