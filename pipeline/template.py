"""Jinja2 templates over a row's columns, sandboxed: a template reads values and can do no more."""

from collections.abc import Mapping
from typing import Any

from schemas.columns import Undecodable
from schemas.error import SetupError


class TemplateFailed(Exception):
    """A row that the template cannot be filled with; says why in a few words."""


class Template:
    """A compiled template.

    A null would come out as the word None, so it fails unless the template says what to write
    instead: {{ name or "nobody" }}.

    Attributes:
      names: the columns that it reads, in the order of their names.
    """

    def __init__(self, text: str, flag: str = "--template") -> None:
        """Args: the text, and the argument that gave it.

        Raises:
          SetupError: it is no template, or Jinja2 is not installed.
        """
        try:
            import jinja2
            import jinja2.meta
            import jinja2.sandbox
        except ImportError:
            raise SetupError(f"{flag} needs Jinja2: pip install 'grok1-batch[templates]'") from None
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_finalize
        )
        try:
            text.encode()
            names = jinja2.meta.find_undeclared_variables(environment.parse(text))
            self.names = sorted(names - set(environment.globals))
            self._template = environment.from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise SetupError(f"{flag}, line {error.lineno}: {error.message}; correct it") from None
        except UnicodeEncodeError:
            raise SetupError(f"{flag} is not valid UTF-8; write it anew") from None

    def render(self, row: Mapping[str, Any]) -> str:
        """The text for a row.

        Raises:
          TemplateFailed: a column is missing, null or not what the template takes it for.
        """
        for name in self.names:
            if isinstance(row.get(name), Undecodable):
                raise TemplateFailed(f"column {name!r} {row[name]}")
        try:
            return self._template.render(row)
        except _Null:
            nulls = [name for name in self.names if row.get(name) is None]
            what = f"column {nulls[0]!r}" if nulls else "a value that it writes"
            raise TemplateFailed(f"{what} is null") from None
        except Exception as error:  # filters and methods raise what they like
            reason = " ".join(str(error).split())[:200]
            raise TemplateFailed(f"{type(error).__name__}: {reason}") from None


class _Null(Exception):
    """A null was to be written."""


def _finalize(value: Any) -> Any:
    if value is None:
        raise _Null
    return value
