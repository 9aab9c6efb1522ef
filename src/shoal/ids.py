"""Identifiers, and the textual form of task keys.

Rule of this file: every id that crosses a wire is a string, so that tables keyed by it sort, print and hash
the same on all machines. Addresses are attributes of a process, never its identity.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from typing import Any, Final, NewType, NoReturn

from shoal.checks import MOST_KEY, carries
from shoal.errors import UsageError

#: One process start of a worker. A restarted worker has a new one, at whatever address.
WorkerId = NewType("WorkerId", str)
#: Where workers live: their nanny's id, or the worker's own id where there is no nanny.
SlotId = NewType("SlotId", str)
#: One client object.
ClientId = NewType("ClientId", str)
#: A task's name on the wire and in every table (see :func:`key_to_wire`).
Key = str

_ESCAPE = "\x00"
#: Tuples within tuples of a key.
_DEEPEST: Final = 50
#: Most keys that are tuples: a name and numbers, which are read ten times faster than by Python's own parser.
_PART: Final = re.compile(r"\('([^'\\]*)',?((?:, (?:0|[1-9]\d*))*)\)")


def key_to_wire(key: Any) -> Key:
    """Return the text that names ``key`` in messages and tables.

    dask allows text, bytes, numbers and tuples of these as keys. Text stands for itself; a tuple is its repr, as
    ``"('x', 0)"``; all else is marked so that :func:`key_from_wire` restores it.

    Raises
    ------
    TypeError
        If ``key`` is of a type that is no dask key.
    UsageError
        If it is empty, too long, or cannot be encoded as UTF-8.
    """
    if type(key) is str:
        if not key or len(key) > MOST_KEY or not (key.isascii() or carries(key)):
            _refuse(key)
        return _ESCAPE + repr(key) if key[:1] in ("(", _ESCAPE) else key
    _check_key(key)
    plain = _plain(key)
    if not plain and isinstance(plain, str | bytes):
        _refuse(plain)
    wire = repr(plain) if isinstance(key, tuple) else _ESCAPE + repr(plain)
    if len(wire) > MOST_KEY:
        _refuse(wire)
    return wire


def _refuse(key: str | bytes) -> NoReturn:
    """Say what is wrong with a key."""
    if not key:
        raise UsageError("key must not be empty")
    if len(key) > MOST_KEY:
        raise UsageError(f"key must have at most {MOST_KEY:,} characters, got {len(key):,}: {key[:100]!r}…")
    raise UsageError(f"key must be text that UTF-8 can encode, which {key!r:.200} is not (a lone surrogate)")


def key_from_wire(text: Key) -> Any:
    """Return the key that :func:`key_to_wire` made ``text`` from; what it never made stands for itself."""
    if text[:1] == "(":
        usual = _PART.fullmatch(text)
        if usual is not None:
            try:
                return (usual[1], *map(int, usual[2].split(", ")[1:]))
            except ValueError:  # a number of thousands of digits
                return text
        return _read(text, text)
    if text[:1] == _ESCAPE:
        return _read(text[1:], text)
    return text


def _read(literal: str, text: Key) -> Any:
    try:
        key = ast.literal_eval(literal)
        _check_key(key)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return key


def _check_key(key: Any, depth: int = 0) -> None:
    if isinstance(key, tuple):
        if depth >= _DEEPEST:
            raise UsageError(f"key must not have tuples within tuples more than {_DEEPEST} deep")
        for part in key:
            _check_key(part, depth + 1)
    elif isinstance(key, float) and not math.isfinite(key):
        raise UsageError(f"key must be made of finite numbers, got {key!r}")
    elif isinstance(key, str):
        if not carries(key):
            _refuse(key)
    elif not isinstance(key, bytes | int | float) and not hasattr(type(key), "__index__"):
        raise TypeError(
            f"key must be text, bytes, a number or a tuple of these, got {type(key).__name__} in {key!r:.200}"
        )


def _plain(key: Any) -> Any:
    """Strip subclasses (numpy integers, str subclasses) whose repr would not read back."""
    if isinstance(key, tuple):
        return tuple(_plain(part) for part in key)
    for kind in (bool, int, float, str, bytes):
        if isinstance(key, kind):
            return kind(key)  # type: ignore[arg-type]
    return operator.index(key)


def key_prefix(key: Key) -> str:
    """Return the task prefix of ``key``: what similar tasks share, as ``"inc"`` for ``"inc-3f2a…"``.

    >>> key_prefix("read-parquet-0a1b2c3d")
    'read-parquet'
    >>> key_prefix("('sum-0a1b2c3d4e5f', 0, 1)")
    'sum'
    """
    if key[:1] == _ESCAPE:
        key = key[1:]
    if key[:1] == "(":
        key = key_group(key)
    words = key.split("-")
    if not words[0]:
        return key or "other"
    kept = [words[0].lstrip("_'(\"") or words[0]]
    for word in words[1:]:
        if not word.isidentifier() or _is_token(word):
            break
        kept.append(word)
    if len(kept) == 1 and _is_token(kept[0]) and len(kept[0]) == 32:
        return "data"
    return "-".join(kept)


def key_group(key: Key) -> str:
    """Return what tuples have in common that name the parts of one collection.

    >>> key_group("('sum-0a1b2c3d4e5f', 0, 1)")
    'sum-0a1b2c3d4e5f'
    """
    return key[1:].split(",", 1)[0].strip("'\" )")


def is_digest(key: Key) -> bool:
    """Whether a key ends with a digest of what it names, as those do that dask makes.

    >>> is_digest("('sum-0a1b2c3d4e5f', 0, 1)"), is_digest("mine")
    (True, False)
    """
    return _is_token((key_group(key) if key[:1] == "(" else key).rpartition("-")[2])


def _is_token(word: str) -> bool:
    return len(word) >= 8 and all(c in "0123456789abcdef" for c in word)
