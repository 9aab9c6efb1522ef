"""One connection: the session of ``core/session.py`` on an asyncio transport of any kind.

What is sent in one turn of the event loop leaves as one frame, without a timer. Bytes that break the protocol close
this link, with the reason in the log, and harm nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Any

from shoal.core.framing import COUNT_LIMIT, FrameReader, pack_frame
from shoal.core.session import NONCE_BYTES, Session
from shoal.errors import HandshakeError, LinkClosedError, LinkError
from shoal.shell import direct
from shoal.shell.areas import AREAS

logger = logging.getLogger("shoal.link")

#: Seconds that a handshake may take.
HANDSHAKE_TIMEOUT = 10.0
#: Bytes of messages from which on what was said in one turn is written in several frames.
FRAME_BYTES = 64 << 20


class Identity:
    """Who this process is on its links, and the secret that it proves."""

    __slots__ = ("id", "inbound", "role", "secret")

    def __init__(self, role: str, id: str, secret: bytes, inbound: dict[str, Any]) -> None:
        self.role, self.id, self.secret, self.inbound = role, id, secret, inbound


class Link(asyncio.BufferedProtocol):
    """A link to one peer.

    Parameters
    ----------
    identity
        Who this end is.
    dialling
        Whether this end opened the connection.
    on_open, on_messages, on_closed
        Called with the link; and its messages; and the reason. ``on_closed`` follows only an open.
    """

    def __init__(
        self,
        identity: Identity,
        dialling: bool,
        on_open: Callable[[Link], None],
        on_messages: Callable[[Link, list[Any]], None],
        on_closed: Callable[[Link, str], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.reader = FrameReader(allocate=AREAS.allocate)
        self.session = Session(
            identity.role,
            identity.id,
            identity.secret,
            secrets.token_bytes(NONCE_BYTES),
            dialling,
            identity.inbound,
            self.reader,
        )
        self._on_open, self._on_messages, self._on_closed = on_open, on_messages, on_closed
        self._transport: Any = None
        self._out: list[Any] = []
        self._scheduled = False
        self._opened = False
        self._reason = ""
        self._timer: asyncio.TimerHandle | None = None
        self.address = ""
        #: The process at the other end, where its memory may be read from here.
        self.peer_process: int | None = None
        #: Resolved once the handshake is through, or failed with its reason.
        self.ready: asyncio.Future[Link] = self.loop.create_future()
        self.ready.add_done_callback(lambda future: future.cancelled() or future.exception())

    @property
    def peer_id(self) -> str:
        return self.session.peer_id

    @property
    def peer_role(self) -> str:
        return self.session.peer_role or ""

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self.address = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "local socket"
        self.peer_process = direct.peer_process(transport)
        self._timer = self.loop.call_later(HANDSHAKE_TIMEOUT, self._give_up, "the handshake took too long")
        if self.session.dialling:
            self._write(*self.session.hello())

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for frame in self.reader.received(nbytes):
                if self._opened:
                    self._on_messages(self, self.session.decode(frame))
                else:
                    self._shake(frame)
        except HandshakeError as error:
            if not self.session.dialling:
                self._write(*self.session.refusal(str(error)))
            self._give_up(str(error), error)
        except LinkError as error:
            self._give_up(str(error), error)

    def _shake(self, frame: Any) -> None:
        reply = self.session.shake(frame)
        if reply is not None:
            self._write(*reply)
        if self.session.open:
            self._opened = True
            if self._timer is not None:
                self._timer.cancel()
            if not self.ready.done():
                self.ready.set_result(self)
            self._on_open(self)

    def _give_up(self, reason: str, error: Exception | None = None) -> None:
        logger.warning("closed the link with %s %s: %s", self.peer_role or "a stranger at", self.address, reason)
        if not self.ready.done():
            self.ready.set_exception(error if isinstance(error, LinkError) else HandshakeError(reason))
        self._reason = reason
        if self._transport is not None:
            self._transport.close()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.session.close()
        reason = self._reason or (str(exc) if exc else "the other side closed it")
        if not self.ready.done():
            self.ready.set_exception(LinkClosedError(f"during the handshake: {reason}"))
        if self._opened:
            self._opened = False
            self._on_closed(self, reason)

    def send(self, message: Any) -> None:
        """Put ``message`` on the link; it leaves with all others of this turn of the loop."""
        self._out.append(message)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what was sent so far."""
        self._scheduled = False
        if not self._out or self.closed or not self.session.open:
            self._out.clear()
            return
        out, self._out = self._out, []
        self._write_all(out)

    def _write_all(self, messages: list[Any]) -> None:
        body, buffers = self.session.encode(messages)
        if len(messages) > 1 and (len(body) > FRAME_BYTES or len(buffers) > COUNT_LIMIT):
            middle = len(messages) // 2
            self._write_all(messages[:middle])
            self._write_all(messages[middle:])
        else:
            self._write(body, buffers)

    def _write(self, body: bytes, buffers: list[Any]) -> None:
        for piece in pack_frame(body, buffers):
            self._transport.write(piece)

    def close(self, reason: str = "") -> None:
        """Write what was sent, then close."""
        self.flush()
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.close()
