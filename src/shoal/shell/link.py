"""One connection: the session of ``core/session.py`` on an asyncio transport of any kind.

What is sent in one turn of the event loop leaves as one frame, without a timer. Bytes that break the protocol close
this link, with the reason in the log, and harm nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

from shoal import config
from shoal.core.channel import Channel
from shoal.core.framing import Codec, Frame, FrameReader, SealError, pack_frame, seal_frame
from shoal.core.liveness import GRACE
from shoal.core.parcels import Parcels
from shoal.core.session import NONCE_BYTES, Session
from shoal.errors import HandshakeError, HandshakeTimeoutError, LinkClosedError, LinkError
from shoal.shell.areas import AREAS
from shoal.shell.backlog import Backlog, end_unless_taken
from shoal.shell.carriers import carrier_of
from shoal.shell.liveness import judge_of

logger = logging.getLogger("shoal.link")

#: Seconds that a handshake may take.
HANDSHAKE_TIMEOUT = 10.0
#: Bytes that are kept for a peer whose connection is cut.
KEPT_BYTES = 256 << 20
#: The body of a frame that only acknowledges.
_ACK = b"\x90"


class Identity:
    """Who this process is on its links, and the secret that it proves."""

    __slots__ = ("id", "inbound", "role", "secret")

    def __init__(self, role: str, id: str, secret: bytes, inbound: dict[str, Any]) -> None:
        self.role, self.id, self.secret, self.inbound = role, id, secret, inbound


class Link(asyncio.BufferedProtocol):
    """A link to one peer.

    One that is given ``redial`` (by who dialled) or ``find`` (by who listens) outlives a connection that breaks
    without a word: for ``grace`` seconds what is said is kept, and all of it arrives once, in order, on the next one.

    Parameters
    ----------
    identity
        Who this end is.
    dialling
        Whether this end opened the connection.
    on_open, on_messages, on_closed
        Called with the link; and its messages; and the reason. ``on_closed`` follows only an open.
    on_cut
        Called with the link and the reason where a connection broke and another may follow.
    redial
        Opens another connection for the link that it is given.
    find
        The link of a peer (role, id, token) that is open or cut.
    grace
        Seconds.
    on_room
        Called with the link and whether it is full (see ``backlog.py``), when that changes.
    on_silent
        Called with the link and the reason, every now and then, while nothing is heard of the process at the other end
        although its machine answers.
    """

    def __init__(
        self,
        identity: Identity,
        dialling: bool,
        on_open: Callable[[Link], None],
        on_messages: Callable[[Link, list[Any]], None],
        on_closed: Callable[[Link, str], None],
        *,
        on_cut: Callable[[Link, str], None] | None = None,
        redial: Callable[[Link], Coroutine[Any, Any, Link]] | None = None,
        find: Callable[[str, str, bytes], Link | None] | None = None,
        grace: float = 0.0,
        on_room: Callable[[Link, bool], None] | None = None,
        on_silent: Callable[[Link, str], None] | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._identity, self._dialling = identity, dialling
        self._on_open, self._on_messages, self._on_closed = on_open, on_messages, on_closed
        self._on_cut, self._redial, self._find, self._grace = on_cut, redial, find, grace
        self._on_silent = on_silent
        #: Whether bytes came, and went, since the judge's last look (see ``liveness.py``); why it found the peer gone.
        self.heard = self.said = False
        self._silent = ""
        self._judge = judge_of(self.loop)
        self._codec: Codec
        self._parcels: Parcels
        self._channel: Channel | None = None
        if redial is not None and grace:
            self._channel = Channel(secrets.token_bytes(16))
        self._transport: Any = None
        self._out: list[Any] = []
        self._scheduled = False
        self._opened = self._cut = self._over = False
        self._reason = ""
        self._timer: asyncio.TimerHandle | None = None
        self._grace_timer: asyncio.TimerHandle | None = None
        self._redialling: asyncio.Task[None] | None = None
        self.address = self.peer_id = self.peer_role = ""
        #: The process at the other end, where its memory may be read from here.
        self.peer_process: int | None = None
        self._on_room = on_room
        self.backlog = Backlog(self.loop, config.link_bytes(), self._room_changed)
        self._prepare()

    def _prepare(self) -> None:
        """Be ready for a handshake."""
        self.reader = FrameReader(allocate=AREAS.allocate)
        self.session = Session(
            self._identity.role,
            self._identity.id,
            self._identity.secret,
            secrets.token_bytes(NONCE_BYTES),
            self._dialling,
            self._identity.inbound,
            self.reader,
            channel=self._channel,
            find=None if self._find is None else self._find_channel,
        )
        #: Resolved once the handshake is through, or failed with its reason.
        self.ready: asyncio.Future[None] = self.loop.create_future()
        self.ready.add_done_callback(lambda future: future.cancelled() or future.exception())

    def _find_channel(self, role: str, id: str, token: bytes) -> Channel | None:
        found = self._find(role, id, token) if self._find is not None else None
        return None if found is None else found.channel

    @property
    def channel(self) -> Channel | None:
        """The conversation, where it outlives connections."""
        return self._channel

    @property
    def closed(self) -> bool:
        """Whether nothing can be said any more."""
        if self._over or not self._lasting:
            return self._over or self._transport is None or self._transport.is_closing()
        return False

    @property
    def _lasting(self) -> bool:
        """Whether it outlives its connection (which may be broken already, and this end be told of it only next)."""
        return self._cut or (self._opened and self._channel is not None)

    @property
    def cut(self) -> bool:
        """Whether the connection broke, and another may follow."""
        return self._cut

    # -------------------------------------------------------------------------------------------- what is owed

    @property
    def full(self) -> bool:
        """Whether so much is owed to the peer that nothing should be said that can wait."""
        return self.backlog.full

    @property
    def owed(self) -> int:
        """Bytes that were said, and that the peer has not taken."""
        written: int = 0 if self._transport is None else self._transport.get_write_buffer_size()
        return written if self._channel is None else max(written, self._channel.kept_bytes)

    @property
    def _peer_name(self) -> str:
        return f"{self.peer_role or 'a stranger'} {self.peer_id or 'at ' + self.address}"

    def _room_changed(self, full: bool) -> None:
        if self._on_room is not None and self._opened:
            self._on_room(self, full)

    def pause_writing(self) -> None:
        if not self._dialling and not self._transport.is_closing():
            self._transport.pause_reading()
        if not self.backlog.full:
            self.backlog.fill(self.owed, self._peer_name)

    def resume_writing(self) -> None:
        if not self._dialling and not self._transport.is_closing():
            self._transport.resume_reading()
        self.backlog.lower(self.owed, self._peer_name)

    def _said(self, pieces: list[Any]) -> None:
        """Look at what is owed now that ``pieces`` were written."""
        owed, backlog = self.owed, self.backlog
        if not backlog.full:
            if owed > backlog.mark:
                backlog.fill(owed, self._peer_name)
        elif backlog.said(sum(map(len, pieces)), owed) and not self._cut:
            self._reason = f"{owed} bytes are owed to it, and it takes none"
            logger.warning("gave up %s: %s", self._peer_name, self._reason)
            self._over = True
            self._transport.abort()

    # -------------------------------------------------------------------------------------------- one connection

    def connection_made(self, transport: Any) -> None:
        if self._cut:
            self._prepare()
        self._transport = transport
        transport.set_write_buffer_limits(self.backlog.mark, self.backlog.mark // 2)
        peer = transport.get_extra_info("peername")
        self.address = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "local socket"
        if not isinstance(peer, tuple):  # such connections break when the process at the other end is gone
            self._channel = self.session.channel = None
        self.session.carrier = carrier_of(transport, self._dialling)
        late = HandshakeTimeoutError("the handshake took too long")
        self._timer = self.loop.call_later(HANDSHAKE_TIMEOUT, self._give_up, str(late), late)
        if self._dialling:
            self._write(*self.session.hello())

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self.heard = True
        try:
            for frame in self.reader.received(nbytes):
                if self._opened and not self._cut:
                    self._take(frame)
                else:
                    self._shake(frame)
        except HandshakeError as error:
            if not self._dialling:
                self._write(*self.session.refusal(str(error)))
            self._give_up(str(error), error)
        except SealError as error:
            self._distrust(str(error))
        except LinkError as error:
            self._give_up(str(error), error)
        except Exception as error:
            # Whatever its messages caused here: another connection would bring no others.
            logger.exception("what %s %s said cannot be handled", self.peer_role or "a stranger at", self.address)
            self._give_up(f"what it said cannot be handled: {type(error).__name__}: {error}")

    def _distrust(self, reason: str) -> None:
        """Somebody meddles with this connection: what outlives it goes on on another."""
        logger.warning("dropped the connection with %s %s: %s", self.peer_role, self.address, reason)
        if self._channel is None or not self._opened:
            self._give_up(reason, HandshakeError(reason))
        self._transport.abort()

    def _take(self, frame: Frame) -> None:
        channel = self._channel
        if channel is not None:
            channel.acknowledged(frame.acknowledged)
            if self.backlog.full:
                self.backlog.lower(self.owed, self._peer_name)
            if not frame.sequence:
                self._over = self._over or not len(frame.body)  # its last word, or an acknowledgement
                return
            if not channel.hears(frame.sequence, len(frame.body) + sum(map(len, frame.buffers))):
                return
        messages = self._codec.decode(frame.body, frame.buffers)
        if channel is not None and channel.should_say and not self._scheduled:
            self._write_pieces(pack_frame(_ACK, (), 0, channel.header()[1]))
        if messages:
            self._on_messages(self, messages)

    def _shake(self, frame: Frame) -> None:
        reply = self.session.shake(frame)
        if reply is not None:
            self._write(*reply)
        if not self.session.open:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._channel = self.session.channel
        self.peer_process = self.session.peer_process
        if self.session.resumed and not self._dialling:
            self._hand_over()
            return
        self._watch()
        if not self.ready.done():
            self.ready.set_result(None)
        if self._cut:
            self._go_on()
            return
        self.peer_id, self.peer_role = self.session.peer_id, self.session.peer_role or ""
        self._codec = self.session.codec
        self._parcels = Parcels(self._codec)
        self._opened = True
        self._on_open(self)

    def _give_up(self, reason: str, error: Exception | None = None) -> None:
        """This connection is of no use."""
        logger.warning(
            "closed the link with %s %s: %s", self.session.peer_role or "a stranger at", self.address, reason
        )
        if not self.ready.done():
            told = error if isinstance(error, LinkError) else HandshakeError(reason)
            self.ready.set_exception(told.with_traceback(None))
        if not self._cut:
            self._reason = reason
            self._over = True
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Give up a connection on which no handshake is through."""
        if not self.session.open:
            self._give_up(reason, LinkClosedError(reason))
            if self._transport is not None:
                self._transport.abort()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._judge.forget(self)
        self._let_go()
        if not self.session.open or self._cut:
            self.session.close()
            if not self._cut:
                self.backlog.close()
            if not self.ready.done():
                text = f"during the handshake: {exc or 'the other side closed it'}"
                refused = isinstance(exc, ssl.SSLError) and not isinstance(exc, ssl.SSLEOFError)
                self.ready.set_exception(HandshakeError(text) if refused else LinkClosedError(text))
            return
        self.session.close()
        reason = self._reason or self._silent or (str(exc) if exc else "the other side closed it")
        if self._opened and self._channel is not None and not self._over:
            self._suspend(reason)
        else:
            self._end(reason)

    def _let_go(self) -> None:
        """Refer to nothing of a connection that is lost, nor it to this link, so that no cycle keeps it."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.set_protocol(_NOBODY)
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def tell_outcome_no_more(self) -> None:
        """Whoever waited for the handshake knows how it went: an error refers to who heard of it."""
        self.ready = self.loop.create_future()
        self.ready.set_result(None)

    def _end(self, reason: str) -> None:
        """The link is no more."""
        self._over, self._cut = True, False
        self.backlog.close()
        for timer in (self._grace_timer, self._redialling):
            if timer is not None and timer is not _current_task():
                timer.cancel()
        self._grace_timer = self._redialling = None
        if self._opened:
            self._opened = False
            self._on_closed(self, self._reason or reason)

    # -------------------------------------------------------------------------------------------- cut, and going on

    def _suspend(self, reason: str) -> None:
        """The connection broke without a word: another may follow."""
        self._cut = True
        logger.warning("the connection with %s %s broke (%s); it may come back", self.peer_role, self.address, reason)
        grace, self._silent = (self._silence_grace() if self._silent else self._grace), ""
        text = f"{reason}, and it did not come back within {grace:g} s"
        self._grace_timer = self.loop.call_later(grace, self._end, text)
        if self._redial is not None:
            self._redialling = self.loop.create_task(self._dial_again(self._redial))
        if self._on_cut is not None:
            self._on_cut(self, reason)

    async def _dial_again(self, redial: Callable[[Link], Coroutine[Any, Any, Link]]) -> None:
        try:
            await redial(self)
        except LinkError as error:
            self._end(str(error))

    def _hand_over(self) -> None:
        """This connection carries on the conversation of another link, which takes it."""
        assert self._find is not None
        assert self._channel is not None
        session = self.session
        old = self._find(session.peer_role or "", session.peer_id, self._channel.token)
        assert old is not None
        transport, self._transport = self._transport, None
        self.backlog.close()
        self.ready.set_result(None)
        transport.set_protocol(old)
        if old._transport is not None:  # this end has not seen yet that its connection is dead
            old._transport.set_protocol(asyncio.Protocol())
            old._transport.abort()
        old.session, old.reader, old._transport, old.address = session, self.reader, transport, self.address
        old._watch()
        old._go_on()

    def _go_on(self) -> None:
        """Another connection is there: say again what may not have been heard."""
        assert self._channel is not None
        self._cut = False
        if self._grace_timer is not None:
            self._grace_timer.cancel()
        frames = list(self._channel.again(self.session.peer_heard))
        logger.info("the connection with %s %s is back; %d frames again", self.peer_role, self.address, len(frames))
        for pieces in frames:
            self._write_pieces(pieces)
        self.backlog.lower(self.owed, self._peer_name)

    # -------------------------------------------------------------------------------------------- beats

    @property
    def transport(self) -> Any:
        """What carries the bytes now."""
        return self._transport

    def _watch(self) -> None:
        """Have this connection looked at, unless both ends are in this process."""
        if self._transport.get_extra_info("socket") is not None:
            self._judge.watch(self, isinstance(self._transport.get_extra_info("peername"), tuple))

    def beat(self) -> None:
        """Say that this end is there, unless bytes are on their way that say it as well."""
        if not self.closed and not self._cut and not self._transport.get_write_buffer_size():
            acknowledged = 0 if self._channel is None else self._channel.header()[1]
            self._write_pieces(pack_frame(_ACK, (), 0, acknowledged))

    def fell_silent(self, seconds: float, gone: bool) -> None:
        """Nothing was heard for ``seconds``; ``gone``: nor does the kernel hear anything of the machine there."""
        if gone:
            self._silent = f"nothing was heard of its machine for {seconds:.0f} s (distributed.comm.timeouts.tcp)"
            self._transport.abort()
        elif self._on_silent is not None:
            self._on_silent(self, f"it said nothing for {seconds:.0f} s, though its machine answers")

    def _silence_grace(self) -> float:
        return min(self._grace, max(self._judge.timeout * GRACE, 0.5))

    # -------------------------------------------------------------------------------------------- saying

    def send(self, message: Any) -> None:
        """Put ``message`` on the link; it leaves with all others of this turn of the loop."""
        self._out.append(message)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what was sent so far."""
        self._scheduled = False
        if not self._out or self.closed or not self._opened:
            self._out.clear()
            return
        out, self._out = self._out, []
        try:
            for body, buffers in self._parcels.frames(out):
                if not self._over:
                    self._write_frame(body, buffers)
        except Exception as error:
            # What was taken can be neither written nor put back in its order: the other side is to know.
            logger.exception("what was said to %s %s cannot be written", self.peer_role, self.address)
            self._abandon(f"{len(out)} messages could not be written: {type(error).__name__}: {error}")
        if self._parcels.refused:
            self._tell_refused()

    def _tell_refused(self) -> None:
        """Messages could not be encoded: whoever waits for an answer to them gets an error."""
        parcels = self._parcels
        for kind, why in parcels.refused:
            logger.error(
                "a message (%s) to %s %s could not be encoded, which is a bug in shoal: %s",
                kind, self.peer_role, self.address, why,
            )  # fmt: skip
        heard, parcels.heard, parcels.refused = parcels.heard, [], []
        if heard:
            self.loop.call_soon(self._hear, heard)

    def _hear(self, messages: list[Any]) -> None:
        if self._opened and not self._over:
            self._on_messages(self, messages)

    def _abandon(self, reason: str) -> None:
        """End the link without a further word, be it cut or not."""
        self._reason = self._reason or reason
        transport = self._transport
        self._end(reason)
        if transport is not None:
            transport.abort()

    def _write_frame(self, body: bytes, buffers: list[Any]) -> None:
        channel = self._channel
        if channel is None:
            pieces = pack_frame(body, buffers)
            self._write_pieces(pieces)
            self._said(pieces)
            return
        pieces = pack_frame(body, buffers, *channel.header())
        channel.keep(pieces, sum(map(len, pieces)))
        if not self._cut:
            self._write_pieces(pieces)
        self._said(pieces)
        if not self._cut:
            return
        if channel.kept_bytes > KEPT_BYTES:
            self._end(f"{channel.kept_bytes} bytes were said while the connection was cut")

    def _write(self, body: bytes, buffers: list[Any]) -> None:
        self._write_pieces(pack_frame(body, buffers))

    def _write_pieces(self, pieces: list[Any]) -> None:
        self.said = True
        if self.session.seal is not None:
            pieces = seal_frame(pieces, self.session.seal)
        if self._transport is None:
            return
        for piece in pieces:
            self._transport.write(piece)

    def close(self, reason: str = "") -> None:
        """Write what was sent, then close."""
        self.flush()
        self._reason = self._reason or reason
        if self._cut:
            self._end(reason)
        elif self._transport is not None:
            if self._channel is not None and self._opened and not self._transport.is_closing():
                self._write(b"", [])  # so that it is not taken for a cut
            self._over = True
            self._transport.close()
            end_unless_taken(self.loop, self._transport)


#: What hears of connections that are lost.
_NOBODY = asyncio.Protocol()


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
