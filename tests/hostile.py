"""Hostile values, and messages of every kind that are made of them."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from shoal import messages
from shoal.messages import Blob

#: Every direction of the protocol but the handshake, which goes before it.
UNIONS: dict[str, Any] = {
    name: getattr(messages, name)
    for name in ("FromClient", "ToClient", "FromWorker", "ToWorker", "FromPeer", "ToPeer", "FromNanny", "ToNanny",
                 "FromCaller", "ToCaller")
}  # fmt: skip
#: Each message of each direction.
CASES = [(name, kind) for name, union in UNIONS.items() for kind in typing.get_args(union)]

good_text = st.text("abc\xe9€", min_size=1, max_size=6)
#: What UTF-8 cannot carry, what is strange, what is nothing.
hostile_text = st.sampled_from(["caf\udce9", "\ud800", "\udfff" * 3, "\0", "", "x" * 5000, "(", "\x00(", "('x', 0)"])
hostile_int = st.sampled_from([10**30, -(10**30), 2**63, 2**64, -(2**63) - 1, -1, 0, 2**63 - 1])
hostile_float = st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e308, -1.0])
#: What no field is of.
hostile_object = st.sampled_from([object(), 1j, {1: {2: object()}}, range(3), [[[object()]]], int])


def plain_values(hostile: bool) -> st.SearchStrategy[Any]:
    """For fields that take any value."""
    good = st.none() | st.integers(-5, 5) | good_text | st.binary(max_size=5)
    bad = good | hostile_text | hostile_int | hostile_float | hostile_object
    return st.recursive(bad if hostile else good, lambda inner: st.lists(inner, max_size=2), max_leaves=4)


def payloads() -> st.SearchStrategy[Any]:
    """Pickles, small and with buffers."""
    return st.binary(max_size=8) | st.builds(Blob, st.just([b"pickle", b"buffer"]))


def values(kind: Any, hostile: bool, depth: int = 0, words: Sequence[str] = ()) -> st.SearchStrategy[Any]:
    """Values of an annotation; with ``hostile``, some that no encoder takes; ``words`` mean something."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        meta = args[1]
        if meta.extra:
            found = payloads() if meta.extra["payload"] == "there" else payloads() | st.none()
            return found | hostile_object | st.integers() if hostile else found
        inner = values(args[0], hostile, depth, words)
        return inner if hostile or typing.get_origin(args[0]) is not list else inner.filter(bool)
    if kind is Any:
        return payloads() | plain_values(hostile)
    if kind is str and words:
        return st.sampled_from(words) | st.sampled_from(words) | hostile_text
    if kind is str:
        return good_text | hostile_text if hostile else good_text
    if kind is int:
        return st.integers(0, 100) | hostile_int if hostile else st.integers(1, 100)
    if kind is float:
        return st.floats(0, 100) | hostile_float if hostile else st.floats(0, 100)
    if kind is bytes:
        return st.binary(max_size=8)
    if kind is bool:
        return st.booleans()
    if kind in (None, type(None)):
        return st.none()
    if origin is list:
        return st.lists(values(args[0], hostile, depth + 1, words), max_size=3)
    if origin is tuple:
        return st.tuples(*(values(arg, hostile, depth + 1, words) for arg in args))
    if origin is dict:
        names, held = values(args[0], hostile, depth, words), values(args[1], hostile, depth + 1, words)
        return st.dictionaries(names.filter(_hashable), held, max_size=2)
    if origin is typing.Union or type(kind).__name__ == "UnionType":
        return st.one_of(*(values(arg, hostile, depth, words) for arg in args if depth < 5 or arg is type(None)))
    return structs(kind, hostile, depth + 1, words)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def structs(kind: Any, hostile: bool, depth: int = 0, words: Sequence[str] = ()) -> st.SearchStrategy[Any]:
    """Messages (or items of them) of one kind."""
    fields = typing.get_type_hints(kind, include_extras=True)
    return st.builds(kind, *(values(fields[name], hostile, depth, words) for name in kind.__struct_fields__))
