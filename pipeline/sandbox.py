"""Jinja2 so that a template's text depends on its values alone, in every process.

No clocks, no chance, no order of sets, and no Python object, whose text would be its address: only
data become text. A mapping's own keys go before Python's methods of the same names.
"""

import datetime
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter, safe_range
from markupsafe import Markup

from pipeline.template_bounds import SPEC, check_room, check_widths
from pipeline.template_values import (
    DATE_METHODS,
    MAX_SIZE,
    NULL,
    IsNull,
    Missing,
    NotPure,
    TextlessCycler,
    TextlessJoiner,
    TextlessNamespace,
    data,
    date_text,
)

_DATES = datetime.date | datetime.time | datetime.timedelta

_WRITTEN = " written"
"""A filter of our own, for what ``~`` joins; a template cannot name it."""


class Function:
    """Something to call with data that gives data; it has no text itself."""

    __slots__ = ("_call", "_name", "_own")

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        self._name, self._call = name, call
        own = getattr(call, "__self__", None)
        self._own = () if own is None or isinstance(own, type | types.ModuleType) else (own,)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Calls it, unless what it would make is too large."""
        args, options = _given(args), dict(zip(options, _given(options.values()), strict=True))
        check_room(self._name, (*self._own, *args), options)
        return data(self._call(*args, **options))

    def __repr__(self) -> str:
        raise NotPure(f"{self._name} is a function, which has no text; call it, or write a value")


GLOBALS: dict[str, Any] = {
    name: Function(name, call)
    for name, call in (
        ("range", safe_range),
        ("dict", dict),
        ("namespace", TextlessNamespace),
        ("cycler", TextlessCycler),
        ("joiner", TextlessJoiner),
    )
}
"""What a name means where no column has it; a template is given these by hand."""


class Environment(ImmutableSandboxedEnvironment):
    """Templates that read values, can do no more, and give the same text everywhere."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(undefined=Missing, keep_trailing_newline=True, finalize=finalize)
        self.globals.clear()  # else what a template reads would leave out columns of their names
        del self.filters["random"]
        for name, function in self.filters.items():
            self.filters[name] = _filter(name, function)
        self.filters["attr"] = self.getattr
        self.filters[_WRITTEN] = finalize
        self.tests["none"] = lambda value: value is None or value is NULL
        self.tests["sameas"] = lambda value, other: data(value) is data(other)
        self.policies["json.dumps_kwargs"] = {"sort_keys": True, "default": _json}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """``obj.attribute``: of a mapping, its item."""
        if isinstance(obj, Mapping) and attribute in obj:
            return NULL if obj[attribute] is None else obj[attribute]
        return self._found(obj, attribute, super().getattr)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """``obj[argument]``."""
        return self._found(obj, argument, super().getitem)

    def _found(self, obj: Any, name: Any, find: Callable[[Any, Any], Any]) -> Any:
        if isinstance(obj, datetime.tzinfo):
            raise NotPure("a time zone is no value; write tzname() or utcoffset() of the date")
        value = find(None if obj is NULL else obj, name)
        if isinstance(value, jinja2.Undefined) or not callable(value):
            return NULL if value is None else value
        if isinstance(obj, _DATES):
            return Function(str(name), _date_method(obj, name, value))
        return value if isinstance(value, Function) else Function(str(name), value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """A text's ``format``, whose fields are as narrow as they have to be."""
        named = isinstance(value, types.MethodType | types.BuiltinMethodType)
        if not named or value.__name__ not in ("format", "format_map"):
            return None
        text = value.__self__
        if not isinstance(text, str):
            return None
        if isinstance(text, Markup):
            raise NotPure("format would escape here; format the text before it is escaped")
        formatter = _Formatter(self)
        if value.__name__ == "format_map":
            return lambda values: formatter.vformat(text, (), values)
        return lambda *args, **values: formatter.vformat(text, args, values)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """``left operator right``."""
        left, right = data(left), data(right)
        if left is NULL or right is NULL:
            raise IsNull
        check_room(operator, (left, right), {})
        return data(super().call_binop(context, operator, left, right))


class _Formatter(SandboxedFormatter):
    """Python's, whose fields are data."""

    _size = 0

    def format_field(self, value: Any, format_spec: str) -> str:
        """A value by its specification; a formatter is made for each text."""
        check_widths(format_spec, SPEC)
        value = data(value)
        if isinstance(value, datetime.date | datetime.time) and format_spec:
            return date_text(value, format_spec)
        made = super().format_field(value, format_spec)
        self._size += len(made)
        if self._size > MAX_SIZE:
            raise NotPure("what format makes is too large")
        return str(made)


def write_out(tree: nodes.Template) -> None:
    """Makes what ``~`` joins pass ``finalize``, as what is written by itself does."""
    for joined in tree.find_all(nodes.Concat):
        joined.nodes = [
            nodes.Filter(node, _WRITTEN, [], [], None, None, lineno=node.lineno)
            for node in joined.nodes
        ]
        assert tree.environment is not None  # the parser sets it
        joined.set_environment(tree.environment)


def finalize(value: Any) -> Any:
    """What is written for a value.

    Raises:
      IsNull: nothing can be.
      NotPure: it is no data.
    """
    if isinstance(value, jinja2.Undefined):
        return value  # says itself what is missing, where it is written
    return str(value if isinstance(value, Function) else data(value))


def _filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, with data for what it is given and what it gives."""

    @functools.wraps(function)
    def filtered(*args: Any, **options: Any) -> Any:
        inner = 1 if isinstance(args[0], Context | EvalContext | jinja2.Environment) else 0
        value, *others = args[inner:]
        writes = name == "format"
        given = (data(value), *(map(data, others) if writes else _given(others)))
        options = dict(zip(options, _given(options.values()), strict=True))
        check_room(name, given, options)
        return data(function(*args[:inner], *given, **options))

    return filtered


def _given(values: Any) -> tuple[Any, ...]:
    """Arguments: a None that the template itself writes there stands for the default."""
    return tuple(value if value is None else data(value) for value in values)


def _date_method(obj: Any, name: Any, value: Any) -> Callable[..., Any]:
    zoned = getattr(obj, "tzinfo", None) is not None
    if name not in DATE_METHODS or (name == "timestamp" and not zoned):
        raise NotPure(
            f"{name} reads the machine's clock or time zone, and a prompt is the same on all "
            "machines; take it out"
        )
    if name != "strftime":
        return value

    def strftime(format: str) -> str:
        return date_text(obj, format)

    return strftime


def _json(value: Any) -> Any:
    if value is NULL:
        return None
    raise TypeError(f"a {type(value).__name__} has no JSON; write it as a text")
