"""One link: hello, version, mutual proof of the cluster's secret, then messages.

Nothing that a peer sends is looked at beyond its hello until it has proven that it knows the secret, and nothing of
a user's is unpickled before. The proof is an HMAC over both nonces, both ids and both roles, so that it cannot be
replayed on another link or turned around, and over what each end knows of the carrier, so that nobody who sits between
can pass the handshake on and speak afterwards: the certificate that the listener shows, where the carrier is TLS; the
processes at both ends, where the kernel tells them; else what follows is sealed (``core/sealing.py``).
Refusals are said in words before the link is closed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from enum import IntEnum, auto
from typing import Any, Final, NamedTuple

from shoal.core.channel import Channel, to_wire
from shoal.core.framing import BODY_LIMIT, BUFFER_LIMIT, Codec, Frame, FrameReader, FramingError
from shoal.core.machine import Table
from shoal.core.sealing import Seal, seals
from shoal.errors import HandshakeError
from shoal.messages import PROTOCOL_VERSION, Challenge, Handshake, Hello, Proof, Refused, Welcome

NONCE_BYTES: Final = 16
#: Characters of the id of a peer.
MOST_ID: Final = 200


class SessionState(IntEnum):
    """Where a link is in its life."""

    #: The dialler has said hello and waits for the challenge.
    GREETING = 0
    #: The listener waits for a hello.
    LISTENING = auto()
    #: The listener has challenged and waits for the proof.
    CHALLENGING = auto()
    #: The dialler has proven and waits to be welcomed.
    PROVING = auto()
    #: Both sides have proven the secret; messages flow.
    OPEN = auto()
    #: The end.
    CLOSED = auto()


class SessionEvent(IntEnum):
    """What happens to a link."""

    HELLO = 0
    CHALLENGE = auto()
    PROOF = auto()
    WELCOME = auto()
    CLOSE = auto()


_S, _E = SessionState, SessionEvent
SESSION: Final = Table(
    "session",
    SessionState,
    SessionEvent,
    SessionState.LISTENING,
    {
        (_S.LISTENING, _E.HELLO): _S.CHALLENGING,
        (_S.CHALLENGING, _E.PROOF): _S.OPEN,
        (_S.GREETING, _E.CHALLENGE): _S.PROVING,
        (_S.PROVING, _E.WELCOME): _S.OPEN,
        (_S.LISTENING, _E.CLOSE): _S.CLOSED,
        (_S.CHALLENGING, _E.CLOSE): _S.CLOSED,
        (_S.GREETING, _E.CLOSE): _S.CLOSED,
        (_S.PROVING, _E.CLOSE): _S.CLOSED,
        (_S.OPEN, _E.CLOSE): _S.CLOSED,
    },
    terminal=[_S.CLOSED],
)


class Carrier(NamedTuple):
    """What one end knows of the connection that carries a link."""

    #: The same at both ends, unless somebody sits between: for TLS, a digest of the listener's certificate.
    binding: bytes = b""
    #: Whether others may take it over, so that each frame must prove that the peer made it.
    seal: bool = False
    #: This process, and the one at the other end as the kernel tells it; 0 and 0 where it does not.
    process: int = 0
    peer_process: int = 0


class Session:
    """The handshake and the codec of one end of a link.

    Parameters
    ----------
    role, id
        Who this end is.
    secret
        The cluster's secret.
    nonce
        Fresh random bytes (:data:`NONCE_BYTES` of them).
    dialling
        Whether this end opened the connection.
    inbound
        What may arrive once the link is open: ``{role of the peer: union of messages}``.
    peer_role
        For the dialler: which role must answer, or None where any may.
    channel
        For the dialler: the conversation that this connection carries, if it is to outlive it.
    find
        For the listener: the conversation of a peer (role, id, token) that is known and goes on, or None.
    """

    __slots__ = (
        "_codec", "_find", "_handshake", "_hello", "_inbound", "_nonce", "_sealing", "_seals", "_secret", "_transcript",
        "carrier", "channel", "dialling", "id", "peer_heard", "peer_id", "peer_role", "reader", "role", "seal", "state",
    )  # fmt: skip

    def __init__(
        self,
        role: str,
        id: str,
        secret: bytes,
        nonce: bytes,
        dialling: bool,
        inbound: dict[str, Any],
        reader: FrameReader,
        peer_role: str | None = None,
        channel: Channel | None = None,
        find: Callable[[str, str, bytes], Channel | None] | None = None,
    ) -> None:
        self.role, self.id, self.dialling = role, id, dialling
        self.peer_role, self.peer_id = peer_role, ""
        self.reader = reader
        self.state = SessionState.GREETING if dialling else SessionState.LISTENING
        self._secret, self._nonce, self._inbound = secret, nonce, inbound
        self._handshake = Codec(Handshake)
        self._codec: Codec | None = None
        self._transcript = b""
        self._sealing = False
        self._seals: tuple[Seal, Seal]
        #: What is known of the connection; to be set before the first word.
        self.carrier = Carrier()
        #: For all that is said from now on, if it is to be sealed.
        self.seal: Seal | None = None
        #: The conversation, if it outlives the connection, and how much the peer has heard of it, where it goes on.
        self.channel = channel
        self.peer_heard = 0
        self._find = find
        self._hello: Hello | None = None

    @property
    def resumed(self) -> bool:
        """Whether the conversation began on another connection."""
        return self.peer_heard != 0

    @property
    def open(self) -> bool:
        return self.state is SessionState.OPEN

    @property
    def peer_process(self) -> int | None:
        """The process that proved the secret, where the kernel says so too and nobody sits between."""
        return None if self._sealing else self.carrier.peer_process or None

    def hello(self) -> tuple[bytes, list[Any]]:
        """The dialler's first words."""
        self._hello = hello = Hello(PROTOCOL_VERSION, self.role, self.id, self._nonce)
        hello.seal, hello.process = self.carrier.seal, self.carrier.process
        if self.channel is not None:
            hello.channel = self.channel.token
            hello.heard = to_wire(self.channel.heard) if self.channel.begun else 0
        return self._handshake.encode([hello])

    def refusal(self, reason: str) -> tuple[bytes, list[Any]]:
        """What is said before a handshake is given up."""
        return self._handshake.encode([Refused(reason)])

    def close(self) -> None:
        self._find = None
        if self.state is not SessionState.CLOSED:
            self._advance(SessionEvent.CLOSE)

    def shake(self, frame: Frame) -> tuple[bytes, list[Any]] | None:
        """Take a frame of the handshake; return what is to be answered, if anything.

        Raises
        ------
        HandshakeError
            If the peer cannot be let in, or refused this end: the link is to be closed, after the reason was sent.
        FramingError
            If the frame is no handshake at all.
        """
        messages = self._handshake.decode(frame.body, frame.buffers)
        if len(messages) != 1:
            raise FramingError("a handshake frame holds one message")
        message = messages[0]
        if isinstance(message, Refused):
            raise HandshakeError(f"refused by the other side: {message.reason[:500]}")
        state = self.state
        if state is SessionState.LISTENING and isinstance(message, Hello):
            return self._on_hello(message)
        if state is SessionState.GREETING and isinstance(message, Challenge):
            return self._on_challenge(message)
        if state is SessionState.CHALLENGING and isinstance(message, Proof):
            right = hmac.compare_digest(message.proof, self._prove(_DIALLER[message.seal]))
            if not right or (self._sealing and not message.seal):
                raise HandshakeError("wrong secret")
            self._sealing = message.seal
            if message.seal:
                theirs, self.seal = seals(self._secret, self._transcript)
                self.reader.expect_seals(theirs)
            heard = self._take_up()
            self._advance(SessionEvent.PROOF)
            self._opened()
            return self._handshake.encode([Welcome(heard, self.channel is not None)])
        if state is SessionState.PROVING and isinstance(message, Welcome):
            self.peer_heard = message.heard
            if not message.keeps:
                self.channel = None
            if self._sealing:
                self.seal = self._seals[0]
            self._advance(SessionEvent.WELCOME)
            self._opened()
            return None
        raise FramingError(f"{type(message).__name__} out of turn while {state.name.lower()}")

    def _take_up(self) -> int:
        """The peer is who it says: begin the conversation, or go on with it; return how much of it was heard here."""
        hello = self._hello
        assert hello is not None
        if not hello.channel or self._find is None:
            return 0
        if not hello.heard:
            self.channel = Channel(hello.channel)
            return 0
        found = self._find(hello.role, hello.id, hello.channel)
        if found is None:
            raise HandshakeError("nothing is known here of what was going on: this side was restarted, or gave it up")
        self.channel, self.peer_heard = found, hello.heard
        return to_wire(found.heard)

    @property
    def codec(self) -> Codec:
        """What turns messages into frames and back, once the link is open."""
        assert self._codec is not None, "the link is not open"
        return self._codec

    def _on_hello(self, hello: Hello) -> tuple[bytes, list[Any]]:
        self._check_version(hello.version)
        if hello.role not in self._inbound:
            raise HandshakeError(f"a {self.role} has no links with the role {hello.role[:40]!r}")
        if len(hello.nonce) != NONCE_BYTES or not _is_id(hello.id) or len(hello.channel) > 64:
            raise FramingError("a hello without a proper nonce, id or channel")
        self.peer_role, self.peer_id = hello.role, hello.id
        self._hello = hello
        carrier = self.carrier
        self._sealing = carrier.seal or hello.seal or hello.process != carrier.peer_process
        answer = Challenge(PROTOCOL_VERSION, self.role, self.id, self._nonce, b"", self._sealing, carrier.process)
        self._transcript = _transcript(hello, answer, carrier.binding)
        answer.proof = self._prove("listener")
        self._advance(SessionEvent.HELLO)
        return self._handshake.encode([answer])

    def _on_challenge(self, challenge: Challenge) -> tuple[bytes, list[Any]]:
        self._check_version(challenge.version)
        if challenge.role not in self._inbound or (self.peer_role is not None and challenge.role != self.peer_role):
            raise HandshakeError(f"expected a {self.peer_role or 'known role'}, found a {challenge.role[:40]!r}")
        self.peer_role, self.peer_id = challenge.role, challenge.id
        hello, carrier = self._hello, self.carrier
        assert hello is not None
        self._transcript = _transcript(hello, challenge, carrier.binding)
        if not hmac.compare_digest(challenge.proof, self._prove("listener")):
            raise HandshakeError("the other side does not know this cluster's secret, or somebody sits between")
        self._sealing = carrier.seal or challenge.seal or challenge.process != carrier.peer_process
        if self._sealing:
            self._seals = seals(self._secret, self._transcript)
            self.reader.expect_seals(self._seals[1])
        self.reader.raise_limits(BODY_LIMIT, BUFFER_LIMIT)  # what follows the welcome may come with it
        self._advance(SessionEvent.CHALLENGE)
        return self._handshake.encode([Proof(self._prove(_DIALLER[self._sealing]), self._sealing)])

    def _prove(self, side: str) -> bytes:
        return hmac.digest(self._secret, side.encode() + b"\0" + self._transcript, hashlib.sha256)

    def _check_version(self, theirs: int) -> None:
        if theirs != PROTOCOL_VERSION:
            raise HandshakeError(
                f"protocol versions differ: {theirs} there, {PROTOCOL_VERSION} here; "
                "install the same release of shoal on both sides"
            )

    def _opened(self) -> None:
        self._find = None
        if self.channel is not None:
            self.channel.begun = True
        assert self.peer_role is not None
        self._codec = Codec(self._inbound[self.peer_role])
        self.reader.raise_limits(BODY_LIMIT, BUFFER_LIMIT)

    def _advance(self, event: SessionEvent) -> None:
        self.state = SESSION.advance(self.state, event, f"{self.role} {self.id}")


def _is_id(id: str) -> bool:
    """Whether a peer may be called so: ids with a space are the scheduler's own, others would spoil the log."""
    return 0 < len(id) <= MOST_ID and id.isascii() and id.isprintable() and " " not in id


#: What the dialler's proof begins with, unsealed and sealed.
_DIALLER: Final = ("dialler", "dialler, sealed")


def _transcript(hello: Hello, challenge: Challenge, binding: bytes) -> bytes:
    """All that both ends must agree on, such that no two different things give the same bytes."""
    parts = [
        hello.role.encode(), hello.id.encode(), hello.nonce, hello.channel, b"%d" % hello.heard, b"%d" % hello.seal,
        b"%d" % hello.process, challenge.role.encode(), challenge.id.encode(), challenge.nonce, b"%d" % challenge.seal,
        b"%d" % challenge.process, binding,
    ]  # fmt: skip
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)
