"""Jinja2 templates over a row's columns, sandboxed: a template reads values and can do no more."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from schemas.columns import Undecodable
from schemas.error import SetupError

if TYPE_CHECKING:
    import jinja2.nodes

_IMPURE = "gives another text each time, and a prompt is the same in every run and on every worker"


class TemplateFailed(Exception):
    """A row that the template cannot be filled with; says why in a few words."""


class Template:
    """A compiled template, whose text depends on the row alone.

    A null would come out as the word None, so it fails unless the template says what to write
    instead: {{ name or "nobody" }}.

    Attributes:
      names: what it reads, in order: columns, and functions such as ``range`` where no column is
        called that.
    """

    def __init__(self, text: str, flag: str = "--template") -> None:
        """Args: the text, and the argument that gave it.

        Raises:
          SetupError: it is no template, it leaves something to chance, or Jinja2 is not installed.
        """
        try:
            import jinja2
            import jinja2.meta

            from pipeline import sandbox, template_values
        except ImportError:
            raise SetupError(f"{flag} needs Jinja2: pip install 'grok1-batch[templates]'") from None
        environment = sandbox.Environment()
        try:
            text.encode()
            tree = environment.parse(text)
            _refuse(tree, flag)
            self._own = _without_self(tree)
            inverse = {own: name for name, own in self._own.items()}
            found = jinja2.meta.find_undeclared_variables(tree)
            self.names = sorted(inverse.get(name, name) for name in found)
            sandbox.write_out(tree)
            self._template = environment.from_string(tree, globals=sandbox.GLOBALS)
        except jinja2.TemplateSyntaxError as error:
            raise SetupError(f"{flag}, line {error.lineno}: {error.message}; correct it") from None
        except UnicodeEncodeError:
            raise SetupError(f"{flag} is not valid UTF-8; write it anew") from None
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise SetupError(f"{flag} cannot be compiled: {error}; correct it") from None
        except (RecursionError, SyntaxError, MemoryError):
            raise SetupError(f"{flag} is nested too deeply; make it flatter") from None
        self._functions, self._refused = sandbox.GLOBALS, (sandbox.IsNull, sandbox.NotPure)
        self._data, self._max_size = template_values.data, template_values.MAX_SIZE

    def columns(self, available: Collection[str]) -> list[str]:
        """The columns that it reads of a table with these, in order, and those that are missing."""
        return [name for name in self.names if name in available or name not in self._functions]

    def render(self, row: Mapping[str, Any]) -> str:
        """The text for a row.

        Raises:
          TemplateFailed: a column is missing, null or not what the template takes it for.
        """
        for name in self.names:
            if isinstance(row.get(name), Undecodable):
                raise TemplateFailed(f"column {name!r} {row[name]}")
        is_null, not_pure = self._refused
        try:
            values = {
                self._own.get(name, name): self._data(row[name])
                for name in self.names
                if name in row
            }
            return self._text(values)
        except is_null:
            nulls = [name for name in self.columns(row) if row.get(name) is None]
            what = f"column {nulls[0]!r}" if nulls else "a value that it writes"
            raise TemplateFailed(f"{what} is null") from None
        except not_pure as fault:
            raise TemplateFailed(str(fault)) from None
        except TemplateFailed:
            raise
        except Exception as error:  # filters and methods raise what they like
            reason = " ".join(str(error).split())[:200]
            raise TemplateFailed(f"{type(error).__name__}: {reason}") from None

    def _text(self, values: Mapping[str, Any]) -> str:
        pieces, size = [], 0
        for piece in self._template.generate(values):
            pieces.append(piece)
            size += len(piece)
            if size > self._max_size:
                raise TemplateFailed("the text is too large")
        return "".join(pieces)


def _refuse(tree: "jinja2.nodes.Template", flag: str) -> None:
    """Raises SetupError for what of Jinja2 draws, and for what reads other templates."""
    from jinja2 import nodes

    for other in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
        raise SetupError(
            f"{flag}, line {other.lineno}: there are no other templates to read; write it in here"
        )
    for used in tree.find_all(nodes.Filter):
        if used.name == "random":
            raise SetupError(
                f"{flag}, line {used.lineno}: the filter random {_IMPURE}; take it out"
            )
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == "lipsum":
            raise SetupError(f"{flag}, line {call.lineno}: lipsum() {_IMPURE}; take it out")


def _without_self(tree: "jinja2.nodes.Template") -> dict[str, str]:
    """Renames ``self``, which Jinja2 keeps for the template; returns its new name by the old."""
    from jinja2 import nodes

    own = "self_"
    named = list(tree.find_all(nodes.Name))
    while any(node.name == own for node in named):
        own += "_"
    for node in named:
        if node.name == "self":
            node.name = own
    return {"self": own}
