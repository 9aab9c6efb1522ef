"""Whether a message is one of this protocol, asked where it is made: its receiver would close the link over it.

What users give is checked by :mod:`shoal.checks` at the call that gives it. This stands behind that, at the one place
where their calls become messages: a field of another type than the protocol has costs the call, and nothing else.
"""

from __future__ import annotations

import re
import typing
from typing import Any, Final, TypeVar

import msgspec

from shoal.errors import UsageError

S = TypeVar("S", bound=msgspec.Struct)
_encoder: Final = msgspec.msgpack.Encoder()
_PLACE: Final = re.compile(r" - at `\$\[(\d+)\](.*)`$", re.DOTALL)
_made: dict[type, tuple[msgspec.msgpack.Decoder[Any], list[tuple[str, Any]]]] = {}


def checked(message: S) -> S:
    """Return a message, or an item of one, whose fields are all of their types; payloads are not looked at.

    Raises
    ------
    UsageError
        Naming the field that does not fit, and how.

    Examples
    --------
    >>> from shoal.messages import Options
    >>> checked(Options(actor=5))
    Traceback (most recent call last):
    shoal.errors.UsageError: actor does not fit into Options: Expected `bool`, got `int`
    """
    kind = type(message)
    decoder, heavy = _made.get(kind) or _make(kind)
    light: msgspec.Struct = message
    if heavy:
        light = msgspec.structs.replace(message, **dict(heavy))
    try:
        decoder.decode(_encoder.encode(light))
    except (msgspec.ValidationError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(_told(kind, str(error))) from None
    return message


def _make(kind: type) -> tuple[msgspec.msgpack.Decoder[Any], list[tuple[str, Any]]]:
    """The decoder of a kind, and what stands in the place of what it holds in large."""
    heavy: list[tuple[str, Any]] = []
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        inner = typing.get_args(hint)
        if _is_payload(hint):
            heavy.append((name, None))
        elif typing.get_origin(hint) is dict and _is_payload(inner[1]):
            heavy.append((name, {}))
    found = _made[kind] = msgspec.msgpack.Decoder(kind), heavy
    return found


def _is_payload(hint: Any) -> bool:
    return any(
        isinstance(meta, msgspec.Meta) and "payload" in (meta.extra or {}) for meta in getattr(hint, "__metadata__", ())
    )


def _told(kind: type, text: str) -> str:
    found = _PLACE.search(text)
    if found is None:
        return f"{kind.__name__} cannot be sent: {text}"
    names = [*(["tag"] if kind.__struct_config__.tag is not None else []), *kind.__struct_fields__]  # type: ignore[attr-defined]
    return f"{names[int(found[1])]}{found[2]} does not fit into {kind.__name__}: {text[: found.start()]}"
