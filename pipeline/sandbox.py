"""Jinja2 so that a template's text depends on its values alone, in every process.

No clocks, no chance, no order of sets, and no Python object, whose text would be its address: only
data become text. A mapping's own keys go before Python's methods of the same names.
"""

import datetime
import decimal
import functools
import uuid
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import jinja2
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Cycler, Joiner, Namespace

_DATES = datetime.date | datetime.time | datetime.timedelta
_DATA = str | int | float | decimal.Decimal | _DATES | uuid.UUID | list | tuple | Mapping
"""What a column can hold, and what filters make of it."""

_CLOCKS = frozenset(("now", "today", "utcnow", "fromtimestamp", "timestamp", "astimezone"))
"""Of dates: what reads the clock, or the machine's time zone."""


class NotPure(Exception):
    """What was to be written depends on more than a row's values; says what."""


class IsNull(Exception):
    """A null was to be written."""


class _Function:
    """Something to call, which has no text."""

    __slots__ = ("_call", "_name")

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        self._name, self._call = name, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __repr__(self) -> str:
        raise NotPure(f"{self._name} is a function, which has no text; call it, or write a value")


class _Cycler(Cycler):
    def __repr__(self) -> str:
        raise NotPure("a cycler has no text; write what its next() gives")


class _Joiner(Joiner):
    def __repr__(self) -> str:
        raise NotPure("a joiner has no text; call it")


GLOBALS: dict[str, Any] = {
    name: _Function(name, call)
    for name, call in (
        ("range", safe_range),
        ("dict", dict),
        ("namespace", Namespace),
        ("cycler", _Cycler),
        ("joiner", _Joiner),
    )
}
"""What a name means where no column has it; a template is given these by hand."""


class Environment(ImmutableSandboxedEnvironment):
    """Templates that read values, can do no more, and give the same text everywhere."""

    intercepted_binops = frozenset(("-",))

    def __init__(self) -> None:
        super().__init__(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=finalize
        )
        self.globals.clear()  # else what a template reads would leave out columns of their names
        del self.filters["random"]
        for name, function in self.filters.items():
            self.filters[name] = _listing(function)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """``obj.attribute``: of a mapping, its item."""
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return _pure(obj, attribute, super().getattr(obj, attribute))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """``obj[argument]``."""
        return _pure(obj, argument, super().getitem(obj, argument))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """``left - right``; a difference of keys would have the order of a set."""
        made = super().call_binop(context, operator, left, right)
        if isinstance(made, Set):
            raise NotPure("a difference of keys has no order; filter them with reject instead")
        return made


def finalize(value: Any) -> Any:
    """What is written for a value.

    Raises:
      IsNull: nothing can be.
      NotPure: it is no data.
    """
    if value is None:
        raise IsNull
    if isinstance(value, jinja2.Undefined):
        return value  # says itself what is missing, where it is written
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise NotPure("bytes that are not valid UTF-8 have no text; cast them") from None
    if isinstance(value, _Function | _Cycler | _Joiner):
        return str(value)
    if not isinstance(value, _DATA):
        kind = type(value).__name__
        raise NotPure(f"a {kind} is no value; write a number, a text, a list or a mapping")
    return value


def _pure(obj: Any, name: Any, value: Any) -> Any:
    """An attribute as a template may have it."""
    if isinstance(obj, datetime.date | datetime.time) and _reads_clock(obj, name):
        raise NotPure(
            f"{name} reads the machine's clock or time zone, and a prompt is the same on all "
            "machines; take it out"
        )
    if isinstance(obj, datetime.date | datetime.time) and name == "strftime":
        return _Function("strftime", functools.partial(_formatted, obj))
    if callable(value) and not isinstance(value, jinja2.Undefined):
        return value if isinstance(value, _Function) else _Function(str(name), value)
    return value


def _formatted(date: datetime.date | datetime.time, form: str) -> str:
    if "%s" in form:  # the C library's, which takes the date for the machine's time
        raise NotPure("%s depends on the machine's time zone; write timestamp() of a date with one")
    return date.strftime(form)


def _reads_clock(obj: datetime.date | datetime.time, name: Any) -> bool:
    if name == "timestamp" and getattr(obj, "tzinfo", None) is not None:
        return False
    return name in _CLOCKS


def _listing(function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, with a list for what it would give item by item: that has no text."""

    @functools.wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        made = function(*args, **kwargs)
        return list(made) if isinstance(made, Iterator) else made

    return filtered
