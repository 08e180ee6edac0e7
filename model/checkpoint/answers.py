"""What a store's error says of a file: that it may not be read, that it is gone, or nothing."""

import enum

_REFUSALS, _ABSENT = (401, 403), (404, 410)
"""What a web server answers where it does not let one in, and where there is nothing."""

_STATUS = ("status", "code")
"""Attributes of clients' errors that hold such a number."""


class Answer(enum.Enum):
    """What a store has said of a file."""

    REFUSED = enum.auto()
    GONE = enum.auto()
    NONE = enum.auto()
    """It is out of reach, or fails: it may answer another time."""


def answer(error: Exception) -> tuple[Answer, str]:
    """What an error says of the file, and the web server's status in words, if it has one."""
    status = _status(error)
    if status is None and isinstance(error.__cause__, Exception):
        # The web's client reports whatever keeps it from a file as a file that is missing.
        status = _status(error.__cause__)
        if status is None and isinstance(error, FileNotFoundError) and _is_outage(error.__cause__):
            return Answer.NONE, ""
    if status in _REFUSALS:
        return Answer.REFUSED, f"its server answers {status}"
    if status in _ABSENT:
        return Answer.GONE, ""
    if status is not None:
        return Answer.NONE, ""
    # Google's client has no class of its own for a refusal.
    if isinstance(error, PermissionError) or str(error).startswith("Forbidden: "):
        return Answer.REFUSED, ""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Answer.GONE, ""
    return Answer.NONE, ""


def telling(error: Exception) -> Exception:
    """The error whose text says what is wrong: a missing file's says only its name."""
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error


def _status(error: BaseException) -> int | None:
    for name in _STATUS:
        value = str(getattr(error, name, ""))
        if value.isdecimal() and 400 <= int(value) < 600:
            return int(value)
    return None


def _is_outage(error: BaseException) -> bool:
    """Whether a connection failed, by the classes of the language and of the web's client."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return False
    return isinstance(error, OSError) or type(error).__module__.startswith("aiohttp")
