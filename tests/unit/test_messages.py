"""The protocol: every message of every direction survives its wire, and nothing else is let in."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest

from shoal import messages
from shoal.core.framing import Codec, FramingError
from shoal.messages import Blob

UNIONS = {
    name: getattr(messages, name)
    for name in ("Handshake", "FromClient", "ToClient", "FromWorker", "ToWorker", "FromPeer", "ToPeer", "FromNanny",
                 "ToNanny")
}  # fmt: skip


def example(kind: Any, depth: int = 0) -> Any:
    """A value of an annotation, with something in every container."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return Blob([b"pickle", b"buffer" * depth]) if depth < 3 else b"payload"
    if kind in (int, float, str, bytes, bool):
        return {int: 7, float: 1.5, str: "text", bytes: b"bytes", bool: True}[kind]
    if origin is list:
        return [example(args[0], depth + 1)]
    if origin is tuple:
        return tuple(example(arg, depth + 1) for arg in args)
    if origin is dict:
        return {example(args[0]): example(args[1], depth + 1)}
    if origin is typing.Union or type(kind).__name__ == "UnionType":
        return None if depth > 6 and type(None) in args else example(args[0], depth)
    fields = typing.get_type_hints(kind)
    return kind(**{name: example(fields[name], depth + 1) for name in kind.__struct_fields__})


CASES = [(name, kind) for name, union in UNIONS.items() for kind in typing.get_args(union)]


@pytest.mark.parametrize(("union", "kind"), CASES, ids=[f"{name}-{kind.__name__}" for name, kind in CASES])
def test_every_message_survives_its_wire(union: str, kind: Any) -> None:
    """Encoded in a list with its buffers beside it, decoded, equal."""
    message = example(kind)
    codec = Codec(UNIONS[union])
    body, buffers = codec.encode([message, message])
    decoded = codec.decode(body, [memoryview(bytes(buffer)) for buffer in buffers])
    assert decoded == [message, message]


def test_a_message_of_another_direction_is_refused() -> None:
    """A union is closed."""
    body, _ = Codec(messages.ToClient).encode([messages.KeysCancelled(["x"], "no")])
    with pytest.raises(FramingError, match="not of this protocol"):
        Codec(messages.FromClient).decode(body, [])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"not": "a list"}),
        msgspec.msgpack.encode([["Submit"]]),
        msgspec.msgpack.encode([["Unwant", [1, 2]]]),
        msgspec.msgpack.encode([["Unwant", ["x"]]])[:-1],
    ],
)
def test_a_body_that_is_none_is_refused(body: bytes) -> None:
    """With a typed error, whatever is wrong."""
    with pytest.raises(FramingError):
        Codec(messages.FromClient).decode(body, [])


def test_a_reference_to_a_buffer_that_is_not_there_is_refused() -> None:
    """A blob cannot reach beyond its frame."""
    codec = Codec(messages.FromPeer)
    body, buffers = codec.encode([messages.PutData(1, "c", {"x": Blob([b"one", b"two"])})])
    assert len(buffers) == 2
    with pytest.raises(FramingError, match="not in its frame"):
        codec.decode(body, [memoryview(b"one")])


def test_new_fields_have_defaults() -> None:
    """An older peer's shorter message is read: what it does not say is the default."""
    body = msgspec.msgpack.encode([["WorkerDied", "w", "reason", ["k"]]])
    (message,) = Codec(messages.FromNanny).decode(body, [])
    assert message == messages.WorkerDied("w", "reason", ["k"], False, True, "")
