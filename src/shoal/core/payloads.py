"""Whether what stands in the place of a payload is one: bytes, or a :class:`Blob`.

msgspec checks all other fields while it decodes. A payload may be either of two types, of which one is an extension,
which it cannot say; so messages that have payloads are looked at once more, in one pass without a Python call for each.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final

import msgspec

from shoal.messages import Blob

_THERE: Final[frozenset[type]] = frozenset({bytes, Blob})
_MAYBE: Final[frozenset[type]] = frozenset({bytes, Blob, type(None)})

#: Raises ValueError where a payload of these messages or items is none.
Check = Callable[[Sequence[Any]], None]


def checks_of(union: Any) -> dict[type, Check]:
    """How messages of a union are checked, by their type; those without payloads are not in it."""
    kinds = typing.get_args(union) or (union,)
    found = {kind: _check_of(kind) for kind in kinds if isinstance(kind, type) and issubclass(kind, msgspec.Struct)}
    return {kind: check for kind, check in found.items() if check is not None}


_made: dict[type, Check | None] = {}


def _check_of(kind: type[msgspec.Struct]) -> Check | None:
    """Check all structs of one kind at once, field by field."""
    if kind in _made:
        return _made[kind]
    parts: list[Check] = []

    def check(structs: Sequence[Any]) -> None:
        for part in parts:
            part(structs)

    _made[kind] = check  # an error may have another that led to it
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        part = _part_of(kind.__name__, name, hint)
        if part is not None:
            parts.append(part)
    if not any(part is not check for part in parts):
        _made[kind] = None
    return _made[kind]


def _allowed(hint: Any) -> frozenset[type] | None:
    """The types of a payload, where the hint is one's."""
    for meta in getattr(hint, "__metadata__", ()):
        if isinstance(meta, msgspec.Meta) and meta.extra and "payload" in meta.extra:
            return _THERE if meta.extra["payload"] == "there" else _MAYBE
    return None


def _part_of(kind: str, name: str, hint: Any) -> Check | None:
    get = attrgetter(name)
    where = f"{kind}.{name}"
    allowed = _allowed(hint)
    if allowed is not None:

        def one(structs: Sequence[Any]) -> None:
            if not allowed.issuperset(map(type, map(get, structs))):
                raise ValueError(f"{where} is no payload")

        return one
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict and (held := _allowed(args[1])) is not None:

        def mapping(structs: Sequence[Any]) -> None:
            for values in map(get, structs):
                if values and not held.issuperset(map(type, values.values())):
                    raise ValueError(f"a value of {where} is no payload")

        return mapping
    for inner in args if origin is not dict else ():
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            return _within(get, _check_of(inner), origin is list)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return _within(get, _check_of(hint), False)
    return None


def _within(get: Callable[[Any], Any], check: Check | None, several: bool) -> Check | None:
    if check is None:
        return None

    def within(structs: Sequence[Any]) -> None:
        for value in map(get, structs):
            if value is not None:
                check(value if several else (value,))

    return within
