"""A finished run, for what looks at runs."""

import dataclasses
import pathlib

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run over hostile and broken prompts, and what was asked of it."""

    output: pathlib.Path
    prompts: list[str | None]

    @property
    def page(self) -> str:
        return (self.output / "_report.html").read_text()
