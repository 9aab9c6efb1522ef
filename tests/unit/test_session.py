"""The handshake lets in who knows the secret, and nobody else."""

from __future__ import annotations

import pytest

from shoal.core.framing import FrameReader, pack_frame
from shoal.core.session import Session
from shoal.errors import HandshakeError
from shoal.messages import INBOUND, PROTOCOL_VERSION, Hello, ToClient


def pair(secret: bytes, other: bytes) -> tuple[Session, Session]:
    return (
        Session("client", "c", secret, b"1" * 16, True, {"scheduler": ToClient}, FrameReader()),
        Session("scheduler", "s", other, b"2" * 16, False, INBOUND, FrameReader()),
    )


def shake(sender: Session, receiver: Session, message: tuple[bytes, list[object]]) -> tuple[bytes, list[object]] | None:
    (frame,) = receiver.reader.feed(b"".join(map(bytes, pack_frame(*message))))
    return receiver.shake(frame)


def test_both_sides_open() -> None:
    """Hello, challenge, proof, welcome."""
    client, server = pair(b"x", b"x")
    challenge = shake(client, server, client.hello())
    proof = shake(server, client, challenge)
    welcome = shake(client, server, proof)
    assert server.open
    assert shake(server, client, welcome) is None
    assert client.open
    assert (client.peer_id, server.peer_id, server.peer_role) == ("s", "c", "client")


def test_the_dialler_sees_through_a_listener_without_the_secret() -> None:
    """It never gets as far as proving its own."""
    client, server = pair(b"x", b"y")
    challenge = shake(client, server, client.hello())
    with pytest.raises(HandshakeError, match="secret"):
        shake(server, client, challenge)


def test_versions_are_named() -> None:
    """A mismatch says both."""
    client, server = pair(b"x", b"x")
    hello = client._handshake.encode([Hello(99, "client", "c", b"1" * 16)])
    with pytest.raises(HandshakeError, match=f"99 there, {PROTOCOL_VERSION} here"):
        shake(client, server, hello)
