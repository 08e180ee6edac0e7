"""What a template's values are: data, and things such as functions, whose text would be no data.

Every value passes ``data`` on its way into a template, a filter, a function or an operator and out
of it, so that a null, or what has no text, cannot come into a prompt by any of them.
"""

import datetime
import decimal
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence, ValuesView
from collections.abc import Set as AbstractSet
from typing import Any

import jinja2
from jinja2.runtime import LoopContext
from jinja2.utils import Cycler, Joiner, Namespace

MAX_SIZE = 1 << 26
"""Of one value that a template makes: its characters, and each item as ``_ITEM_SIZE``."""

_ITEM_SIZE = 64
"""About the bytes that one takes; and looking at each takes time."""

MAX_BITS = 1 << 14
"""Of a whole number; Python writes none much longer."""

_SCALARS = (
    str | int | float | decimal.Decimal | datetime.date | datetime.time | datetime.timedelta
) | uuid.UUID

_DIRECTIVE = re.compile(r"%(.?[A-Za-z%]?|$)", re.DOTALL)
_SAFE_DIRECTIVE = re.compile(r"%(-?[dHIjmMSUWyeu]|[aAbBcDfFGhnpRtTVwxXYzZ%])")
"""Of ``strftime``; among the others is the C library's ``%s``, which takes a date for one in the
machine's time zone."""

DATE_METHODS = frozenset(
    [
        "ctime",
        "date",
        "dst",
        "fromisocalendar",
        "fromisoformat",
        "fromordinal",
        "isocalendar",
        "isoformat",
        "isoweekday",
        "replace",
        "strftime",
        "time",
        "timestamp",
        "timetz",
        "toordinal",
        "total_seconds",
        "tzname",
        "utcoffset",
        "weekday",
    ]
)
"""Of dates, times and durations: those that read no clock and no time zone but the value's own."""


class NotPure(Exception):
    """What was to be written depends on more than a row's values, or has no bound; says what."""


class IsNull(Exception):
    """A null was to be written."""


class Null:
    """A null: it equals None and is false, but has no text."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or other is self

    def __hash__(self) -> int:
        return hash(None)

    def _refuse(self, *_: object) -> Any:
        raise IsNull

    __repr__ = __format__ = _refuse
    __int__ = __float__ = __len__ = _refuse
    __add__ = __radd__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse


NULL = Null()
"""What a template has for None."""


class Binary(bytes):
    """Bytes whose text is what they encode."""

    def __str__(self) -> str:
        try:
            return self.decode()
        except UnicodeDecodeError:
            raise NotPure("bytes that are not valid UTF-8 have no text; cast them") from None

    def __repr__(self) -> str:
        return repr(str(self))

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


class Missing(jinja2.StrictUndefined):
    """What does not exist has no text, within a list neither."""

    __slots__ = ()
    __repr__ = jinja2.StrictUndefined._fail_with_undefined_error


class TextlessNamespace(Namespace):
    """A namespace, which has no text."""

    def __repr__(self) -> str:
        raise NotPure("a namespace has no text; write what it holds")


class TextlessCycler(Cycler):
    """A cycler, which has no text."""

    def __repr__(self) -> str:
        raise NotPure("a cycler has no text; write what its next() gives")


class TextlessJoiner(Joiner):
    """A joiner, which has no text."""

    def __repr__(self) -> str:
        raise NotPure("a joiner has no text; call it")


_HELPERS = jinja2.Undefined | TextlessNamespace | TextlessCycler | TextlessJoiner
"""No data, but these say so themselves where their text is asked for."""


def data(value: Any) -> Any:
    """The value as a template has it: nulls as ``NULL``, and a list for what gives items.

    Raises:
      NotPure: it is no data, holds what is none, or is too large.
    """
    return _Walk().data(value)


class _Walk:
    """Through one value; lists that hold each other many times are as large as their text."""

    def __init__(self) -> None:
        self._left = MAX_SIZE

    @property
    def size(self) -> int:
        return MAX_SIZE - self._left

    def data(self, value: Any) -> Any:
        self._spend(len(value) if isinstance(value, str | bytes) else _ITEM_SIZE)
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise NotPure("a number is too long to be written")
        if isinstance(value, _SCALARS | Null | Binary | _HELPERS):
            return value
        if value is None:
            return NULL
        if isinstance(value, bytes):
            return Binary(value)
        if isinstance(value, Mapping):
            return self._mapping(value)
        if isinstance(value, list | tuple):
            made = [self.data(item) for item in value]
            if all(new is old for new, old in zip(made, value, strict=True)):
                return value
            return made if isinstance(value, list) else tuple(made)
        listed = isinstance(value, range | Iterator | ValuesView) or _is_view(value)
        if listed and not isinstance(value, LoopContext):
            return [self.data(item) for item in value]
        kind = type(value).__name__
        raise NotPure(f"a {kind} is no value; write a number, a text, a list or a mapping")

    def _mapping(self, value: Mapping[Any, Any]) -> Mapping[Any, Any]:
        made = {self.data(key): self.data(item) for key, item in value.items()}
        return value if all(made[key] is item for key, item in value.items()) else made

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise NotPure("a value that the template makes is too large")


def _is_view(value: Any) -> bool:
    """Whether it is a mapping's keys or items, which have an order, as sets have none."""
    return isinstance(value, AbstractSet) and not isinstance(value, set | frozenset)


def size_of(values: Sequence[Any]) -> int:
    """What the values take, as ``MAX_SIZE`` counts.

    Raises:
      NotPure: as ``data``.
    """
    walk = _Walk()
    walk.data(values)
    return walk.size


def date_text(date: datetime.date | datetime.time, form: str) -> str:
    """The date by ``strftime``'s directives.

    Raises:
      NotPure: one of them is another on another machine.
    """
    for found in _DIRECTIVE.finditer(form):
        if not _SAFE_DIRECTIVE.match(form, found.start()):
            raise NotPure(
                f"{found.group()} depends on the machine, as its time zone does; write "
                "timestamp() of a date with a time zone, or strftime's usual directives"
            )
    return date.strftime(form)
