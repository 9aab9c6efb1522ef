"""The handshake lets in who knows the secret, and nobody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shoal.core.framing import FrameReader, FramingError, SealError, pack_frame, seal_frame
from shoal.core.scheduler.boxes import KEEPER
from shoal.core.scheduler.meeting import FORGETFUL
from shoal.core.session import Carrier, Session
from shoal.errors import HandshakeError, LinkError
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


@pytest.mark.parametrize("id", [KEEPER, FORGETFUL, "", "a\nb", "x" * 201, "é", "\0"])
def test_no_peer_has_an_id_of_the_schedulers_own(id: str) -> None:
    """What is left with the scheduler belongs to one of them; others would spoil its log."""
    client, server = pair(b"x", b"x")
    hello = client._handshake.encode([Hello(PROTOCOL_VERSION, "client", id, b"1" * 16)])
    with pytest.raises(FramingError, match="proper nonce, id"):
        shake(client, server, hello)


def _open(
    here: Carrier, there: Carrier, meddle: Callable[[Any], None] = lambda message: None
) -> tuple[Session, Session]:
    """Both ends of a link over these carriers, whose handshake goes through somebody's hands."""
    client, server = pair(b"x", b"x")
    client.carrier, server.carrier = here, there

    def passed(session: Session, body: bytes) -> tuple[bytes, list[object]]:
        (message,) = session._handshake.decode(body, [])
        meddle(message)
        return session._handshake.encode([message])

    challenge = shake(client, server, passed(client, client.hello()[0]))
    proof = shake(server, client, passed(server, challenge[0]))
    welcome = shake(client, server, passed(client, proof[0]))
    pieces = pack_frame(*welcome)
    if server.seal is not None:
        pieces = seal_frame(pieces, server.seal)
    (frame,) = client.reader.feed(b"".join(map(bytes, pieces)))
    client.shake(frame)
    return client, server


_TLS, _OTHER = Carrier(b"tls one"), Carrier(b"tls two")
_MINE, _THEIRS = Carrier(process=1, peer_process=2), Carrier(process=2, peer_process=1)
_PLAIN = Carrier(seal=True)


@pytest.mark.parametrize(
    ("here", "there", "sealed"),
    [
        (Carrier(), Carrier(), False),
        (_TLS, _TLS, False),
        (_MINE, _THEIRS, False),
        (_PLAIN, _PLAIN, True),
        (_PLAIN, Carrier(), True),
        (Carrier(), _PLAIN, True),
        (_MINE, _PLAIN, True),
        (_PLAIN, _THEIRS, True),
        (Carrier(process=1, peer_process=9), _THEIRS, True),
        (_MINE, Carrier(process=2, peer_process=9), True),
    ],
)
def test_what_is_sealed(here: Carrier, there: Carrier, sealed: bool) -> None:
    """Frames are, unless both ends know that nobody sits between."""
    client, server = _open(here, there)
    assert (client.open, server.open) == (True, True)
    assert ((client.seal is not None), (server.seal is not None)) == (sealed, sealed)
    assert sealed or (client.peer_process, server.peer_process) == (here.peer_process or None, here.process or None)


@pytest.mark.parametrize(("here", "there"), [(_TLS, _OTHER), (_TLS, _PLAIN), (_PLAIN, _TLS), (Carrier(), _TLS)])
def test_who_ends_the_encryption_between_is_noticed(here: Carrier, there: Carrier) -> None:
    """Its certificate is not the one that the listener shows."""
    with pytest.raises(HandshakeError, match="between"):
        _open(here, there)


@pytest.mark.parametrize("carrier", [_TLS, _PLAIN])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seal", True), ("seal", False), ("process", 5), ("id", "another"), ("role", "worker"), ("nonce", b"3" * 16),
        ("channel", b"c" * 16), ("heard", 7), ("proof", b"p" * 32),
    ],
)  # fmt: skip
def test_what_is_changed_in_a_handshake_is_noticed(carrier: Carrier, field: str, value: Any) -> None:
    """By whoever would then open the link: it does not open with another idea of it at the two ends."""
    changed = 0

    def meddle(message: Any) -> None:
        nonlocal changed
        if getattr(message, field, value) != value:
            setattr(message, field, value)
            changed += 1

    try:
        _open(carrier, carrier, meddle)
    except LinkError:
        assert changed
    else:
        assert not changed


def test_nothing_is_put_in_behind_a_proof() -> None:
    """Bytes that come with it, before the welcome, were not said by the dialler."""
    client, server = pair(b"x", b"x")
    client.carrier = server.carrier = _PLAIN
    challenge = shake(client, server, client.hello())
    proof = shake(server, client, challenge)
    more = pack_frame(b"\x90")[0]
    with pytest.raises(FramingError, match="one frame"):
        server.reader.feed(pack_frame(*proof)[0] + more)
    with pytest.raises(SealError):
        client.reader.feed(more + more)
