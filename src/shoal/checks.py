"""What may stand in a message, checked where a user gives it, or made so where a task does.

Two kinds of functions. Those that check are for arguments of calls: they return the value in the form in which it
travels, or raise an error that names the argument. Those that mend (:func:`text`, :func:`size`) are for what nobody
can be told to give differently, as the text of an error: they always return something that travels.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any, Final

from shoal.errors import UsageError

#: Characters of a key, and of a name that a user gives.
MOST_KEY: Final = 65_536
MOST_NAME: Final = 4_096
#: Characters of a text that nobody waits for as a whole: reasons, lines of logs.
MOST_TEXT: Final = 20_000
#: Sizes and counts travel as 64 bits with a sign.
MOST_COUNT: Final = 2**63 - 1
#: A priority has room to be negated, and added to.
MOST_PRIORITY: Final = 2**62
#: More of a resource means nothing, and sums of this many are still finite.
MOST_AMOUNT: Final = 1e300
#: Bytes of one task's function and arguments, and of one plugin or value that is left with the scheduler.
MOST_PAYLOAD: Final = 2**31

# ------------------------------------------------------------------------------------------------------ mending


def text(value: str, most: int = MOST_TEXT) -> str:
    """``value`` as text that UTF-8 can carry: what it cannot is written as an escape, what is too long is cut.

    >>> text("caf\\udce9.csv")
    'caf\\\\udce9.csv'
    """
    if len(value) > most:
        value = value[: most - 1] + "…"
    if value.isascii():
        return value if type(value) is str else str.__str__(value)
    return value.encode("utf-8", "backslashreplace").decode()


def size(value: Any) -> int:
    """A size or a count within 64 bits; what is no number, or negative, is 0."""
    try:
        return min(max(operator.index(value), 0), MOST_COUNT)
    except Exception:  # __index__ of a user's may raise anything
        return 0


def plain(value: Any, depth: int = 20) -> Any:
    """``value`` made of what a message can carry; what it cannot carry is replaced by its description."""
    kind = type(value)
    if kind is str:
        return text(value)
    if kind is int:
        return min(max(value, -MOST_COUNT - 1), MOST_COUNT)
    if value is None or kind in (bool, float, bytes):
        return value
    if depth and kind in (list, tuple, set, frozenset):
        return [plain(one, depth - 1) for one in value]
    if depth and kind is dict:
        return {
            name if type(name) is int and abs(name) <= MOST_COUNT else text(str(name)): plain(one, depth - 1)
            for name, one in value.items()
        }
    return f"<{text(kind.__name__)}>"


# ------------------------------------------------------------------------------------------------------ checking


def carries(value: str) -> bool:
    """Whether UTF-8 can carry a text."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def name(value: Any, what: str, most: int = MOST_NAME, *, for_process: bool = False) -> str:
    """Check a name that a user gave.

    Parameters
    ----------
    value
        The name; subclasses of ``str`` are taken, too.
    what
        The argument, for the error.
    most
        Characters.
    for_process
        Whether it is also given to the operating system, which takes no NUL in a name.

    Raises
    ------
    UsageError
        If it is no text, empty, too long, or not to be encoded as UTF-8.
    """
    if not isinstance(value, str):
        raise UsageError(f"{what} must be text, got {_shown(value)}")
    if not value:
        raise UsageError(f"{what} must not be empty")
    if len(value) > most:
        raise UsageError(f"{what} must have at most {most:,} characters, got {len(value):,}")
    if not carries(value):
        raise UsageError(f"{what} must be text that UTF-8 can encode, which {_shown(value)} is not (a lone surrogate)")
    if for_process and "\0" in value:
        raise UsageError(f"{what} must not contain NUL characters, got {_shown(value)}")
    return value if type(value) is str else str.__str__(value)


def optional_name(value: Any, what: str, most: int = MOST_NAME) -> str | None:
    """As :func:`name`, where None stays None."""
    return None if value is None else name(value, what, most)


def note(value: Any, what: str) -> str:
    """Check a text for people, as a reason: it may be empty, and what is too long is cut.

    Raises
    ------
    UsageError
        If it is no text, or not to be encoded as UTF-8.
    """
    if not isinstance(value, str):
        raise UsageError(f"{what} must be text, got {_shown(value)}")
    if not carries(value):
        raise UsageError(f"{what} must be text that UTF-8 can encode, which {_shown(value)} is not (a lone surrogate)")
    return text(value)


def workers(value: Any, what: str = "workers") -> list[str] | None:
    """Check names or addresses of workers: one, or a collection of them; numbers are names, too. None stays None.

    Raises
    ------
    UsageError
        If one cannot be a worker's name.
    """
    if value is None:
        return None
    if isinstance(value, str) or _is_whole(value):
        value = [value]
    if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
        raise UsageError(f"{what} must be a name or address, or a list of them, got {_shown(value)}")
    return [worker(one, what) for one in value]


def worker(value: Any, what: str = "name") -> str:
    """Check the name of a worker, which may be a number.

    Raises
    ------
    UsageError
        If it cannot be one.
    """
    if _is_whole(value):
        value = str(whole(value, what))
    return name(value if isinstance(value, str | bytes) or value is None else _as_text(value), what, for_process=True)


def _as_text(value: Any) -> Any:
    """What is no text may have one that names it, as addresses of other libraries; plain data has none."""
    return value if isinstance(value, bool | float | list | tuple | dict | set) else str(value)


def whole(value: Any, what: str, low: int = -MOST_COUNT, high: int = MOST_COUNT) -> int:
    """Check a whole number; numpy's are taken, too.

    Raises
    ------
    UsageError
        If it is none, or not between ``low`` and ``high``.
    """
    try:
        found = operator.index(value)
    except Exception:
        raise UsageError(f"{what} must be {_range(low, high)}, got {_shown(value)}") from None
    if not low <= found <= high:
        raise UsageError(f"{what} must be {_range(low, high)}, got {_shown(found)}")
    return found


def number(value: Any, what: str, low: float = -MOST_AMOUNT, high: float = MOST_AMOUNT) -> float:
    """Check a finite number; numpy's are taken, too.

    Raises
    ------
    UsageError
        If it is none, not finite, or not between ``low`` and ``high``.
    """
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        found = float(value)
    except Exception:
        raise UsageError(f"{what} must be a number, got {_shown(value)}") from None
    if not math.isfinite(found) or not low <= found <= high:
        limits = f"from {low:g} on" if high >= MOST_AMOUNT else f"between {low:g} and {high:g}"
        raise UsageError(f"{what} must be a finite number {limits}, got {_shown(value)}")
    return found


def priority(value: Any) -> int:
    """Check a priority; what is behind the point is dropped.

    Raises
    ------
    UsageError
        If it is no finite number within 62 bits.
    """
    try:
        found = operator.index(value)
    except Exception:
        found = int(number(value, "priority"))
    return whole(found, "priority", -MOST_PRIORITY, MOST_PRIORITY)


def flag(value: Any, what: str) -> bool:
    """Check what is to be true or false: anything that can be asked for its truth; None is False.

    Raises
    ------
    UsageError
        If it cannot be asked.
    """
    try:
        return bool(value)
    except Exception as error:
        raise UsageError(f"{what} must be True or False, got {_shown(value)}") from error


def amounts(value: Any, what: str = "resources") -> dict[str, float] | None:
    """Check amounts of resources, by name; an amount of 0 asks for nothing. None stays None.

    Raises
    ------
    UsageError
        If a name or an amount makes no sense.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise UsageError(f"{what} must map names to amounts, got {_shown(value)}")
    found = {}
    for one, amount in value.items():
        checked = name(one, f"a name in {what}")
        found[checked] = number(amount, f"{what}[{checked!r:.200}]", 0.0)
    return found


def payload(nbytes: int, what: str, advice: str = "scatter it (client.scatter), and pass the future") -> None:
    """Check the size of what is pickled.

    Raises
    ------
    UsageError
        If it is over :data:`MOST_PAYLOAD`.
    """
    if nbytes > MOST_PAYLOAD:
        raise UsageError(
            f"{what} takes {nbytes / 2**30:.1f} GiB, and {MOST_PAYLOAD / 2**30:g} GiB is the most that is sent with "
            f"one task or request: {advice}"
        )


def _is_whole(value: Any) -> bool:
    return not isinstance(value, bool) and hasattr(type(value), "__index__")


def _range(low: int, high: int) -> str:
    if high >= MOST_COUNT:
        return f"a number from {low} on, within 64 bits" if low > -MOST_COUNT else "a whole number within 64 bits"
    return f"a whole number between {low} and {high}"


def _shown(value: Any) -> str:
    """A value in an error text, which is to be short, and may come from anywhere."""
    try:
        shown = repr(value)
    except Exception as error:
        shown = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text(shown, 200)
