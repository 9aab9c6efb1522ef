"""Where connections are accepted: those that have not proven the secret are few, cost little, and wait briefly.

A connection is nothing but a descriptor until it has said something. Its first byte tells what it speaks, TLS or
shoal's own frames, and only then are a transport and a link made. How many may be under way is limited, and more so of
those that shake hands by TLS, which takes some 50 kB. Past that, others wait for a moment; then the oldest of the host
that has most of them is let go of, and one that has said nothing before one that has.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import resource
import socket
import ssl
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Final

from shoal import config
from shoal.core.framing import Codec, pack_frame
from shoal.messages import Handshake, Refused
from shoal.shell.link import HANDSHAKE_TIMEOUT, Link

logger = logging.getLogger("shoal.link")

#: The first byte of TLS.
_TLS: Final = b"\x16"
#: Connections accepted before the event loop has its turn again.
_AT_ONCE: Final = 64
#: What the system says where descriptors or memory have run out, and how long to wait then.
_SCARCE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE: Final = 0.2
#: One in so many may be shaking hands by TLS.
_OF_TLS: Final = 16
#: Seconds that a stranger has before another may take its place, and after which those that wait are looked at again.
PATIENCE = 0.5
_LOOK: Final = 0.05
_TOO_MANY: Final = "too many connections at a time have proven nothing"


class Rules:
    """How one may speak at a gate.

    Parameters
    ----------
    context
        Gives the context for those that speak TLS, made when the first one comes; None if nobody may.
    plain
        Whether others than processes of this machine may speak without encryption.
    plain_here
        Whether those may.
    """

    __slots__ = ("context", "plain", "plain_here")

    def __init__(
        self, context: Callable[[], ssl.SSLContext] | None = None, plain: bool = False, plain_here: bool = True
    ) -> None:
        self.context, self.plain, self.plain_here = context, plain, plain_here

    def refuses(self, host: str) -> str:
        """Why one at ``host`` (empty: a local socket) may not speak without encryption; empty if it may."""
        if self.plain or not host:
            return ""
        if not self.plain_here:
            return "this side speaks TLS only: write tls://, and give a Security with certificates if it has them"
        if ipaddress.ip_address(host.partition("%")[0]).is_loopback:
            return ""
        return "this side speaks TLS with other machines: write tls://, or start it with --plain"


class _Stranger:
    """A connection that has proven nothing yet."""

    __slots__ = ("bringing", "encrypted", "host", "link", "since", "sock")

    def __init__(self, sock: socket.socket, host: str, since: float) -> None:
        self.sock, self.host, self.since = sock, host, since
        self.bringing: asyncio.Task[Link] | None = None
        self.link: Link | None = None
        self.encrypted = False

    @property
    def silent(self) -> bool:
        """Whether it has said nothing at all."""
        return self.bringing is None and self.link is None


class Gate:
    """Accepts connections at sockets that listen, for one program.

    Parameters
    ----------
    listeners
        Sockets that are bound.
    make
        Makes a link for a connection.
    rules
        How one may speak.
    limit
        Most connections at a time that have proven nothing yet (``shoal.comm.half-open``).
    """

    def __init__(
        self, listeners: list[socket.socket], make: Callable[[], Link], rules: Rules, limit: int | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listeners, self._make, self._rules = listeners, make, rules
        self.limit = _limit() if limit is None else limit
        #: By the number of the connection, the oldest first.
        self._strangers: dict[int, _Stranger] = {}
        self._hosts: Counter[str] = Counter()
        self._waiting: deque[int] = deque()
        self._number = 0
        self._sweeping: asyncio.TimerHandle | None = None
        self._resuming: asyncio.TimerHandle | None = None
        self._closed = self._told = False
        for listener in listeners:
            listener.setblocking(False)
            listener.listen(512)
        self._resume()

    @property
    def half_open(self) -> int:
        """How many connections have proven nothing yet."""
        return len(self._strangers)

    @property
    def port(self) -> int:
        """Where it listens, on a network."""
        return int(self._listeners[0].getsockname()[1])

    def close(self) -> None:
        """Stop listening, and let go of those that have proven nothing; open links stay."""
        self._closed = True
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners = []
        for timer in (self._sweeping, self._resuming):
            if timer is not None:
                timer.cancel()
        for number in tuple(self._strangers):
            self._drop(number)

    def _resume(self) -> None:
        self._resuming = None
        for listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            if len(self._strangers) >= self.limit and not self._make_room():
                self._pause(_LOOK)
                return
            try:
                sock, where = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _SCARCE:
                    raise
                self._wait_for_room(error)
                return
            self._take(sock, where[0] if isinstance(where, tuple) else "")

    def _wait_for_room(self, error: OSError) -> None:
        """There are no descriptors left: let go of a stranger, or else let those that come wait."""
        if self._strangers:
            self._drop(self._least())
            return
        if not self._told:
            self._told = True
            logger.warning("no more connections can be accepted for now: %s", error.strerror)
        self._pause(_PAUSE)

    def _pause(self, seconds: float) -> None:
        """Let those that come wait."""
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
        if self._resuming is None:
            self._resuming = self._loop.call_later(seconds, self._resume)

    def _take(self, sock: socket.socket, host: str) -> None:
        sock.setblocking(False)
        if host:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._number = number = self._number + 1
        now = self._loop.time()
        self._strangers[number] = _Stranger(sock, host, now)
        self._hosts[host] += 1
        self._loop.add_reader(sock.fileno(), self._hear, number)
        if self._sweeping is None:
            self._sweeping = self._loop.call_at(now + HANDSHAKE_TIMEOUT, self._sweep)

    def _hear(self, number: int) -> None:
        """A stranger has said something, or is gone."""
        stranger = self._strangers.get(number)
        if stranger is None:
            return
        try:
            first = stranger.sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            first = b""
        self._loop.remove_reader(stranger.sock.fileno())
        refused = "" if first == _TLS else self._rules.refuses(stranger.host)
        if not first or refused or (first == _TLS and self._rules.context is None):
            if first and refused:
                logger.warning("refused a connection from %s: %s", stranger.host, refused)
                _say(stranger.sock, refused)
            self._drop(number)
            return
        if first == _TLS:
            encrypted = [number for number, one in self._strangers.items() if one.encrypted]
            full = len(encrypted) >= max(4, self.limit // _OF_TLS)
            if full and not self._make_room(encrypted) and not self._make_way(stranger, encrypted):
                self._waiting.append(number)
                self._loop.call_later(_LOOK, self._hear_next)
                return
            stranger.encrypted = True
        stranger.bringing = task = self._loop.create_task(self._bring_in(stranger))
        task.add_done_callback(lambda task: self._brought(number, stranger, task))

    def _hear_next(self) -> None:
        """There may be room for one that waits."""
        waiting = [number for number in self._waiting if number in self._strangers]
        self._waiting.clear()
        if not waiting:
            return
        busy = Counter(one.host for one in self._strangers.values() if one.encrypted)
        chosen = min(waiting, key=lambda number: busy[self._strangers[number].host])  # of these, who came first
        waiting.remove(chosen)
        self._waiting.extend(waiting)
        self._hear(chosen)

    async def _bring_in(self, stranger: _Stranger) -> Link:
        """Give it a transport and a link; TLS shakes hands first."""
        link = self._make()
        if not stranger.encrypted:
            await self._loop.connect_accepted_socket(lambda: link, stranger.sock)
            return link
        left = max(0.1, stranger.since + HANDSHAKE_TIMEOUT - self._loop.time())
        assert self._rules.context is not None
        await self._loop.connect_accepted_socket(
            lambda: link, stranger.sock, ssl=self._rules.context(), ssl_handshake_timeout=left
        )
        return link

    def _brought(self, number: int, stranger: _Stranger, task: asyncio.Task[Link]) -> None:
        """It has a link now, or none."""
        stranger.bringing = None
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or error is not None:
            self._forget(number)
            stranger.sock.close()
            if isinstance(error, OSError):
                logger.warning("closed the link with a stranger at %s: %s", stranger.host or "a local socket", error)
            elif error is not None:
                logger.error("no link could be made with a stranger at %s", stranger.host, exc_info=error)
            return
        link = task.result()
        if number not in self._strangers:  # it was let go of meanwhile
            link.abort(_TOO_MANY)
            return
        stranger.link = link
        link.ready.add_done_callback(lambda ready: self._forget(number))

    def _forget(self, number: int) -> _Stranger | None:
        stranger = self._strangers.pop(number, None)
        if stranger is not None:
            self._hosts[stranger.host] -= 1
            if not self._hosts[stranger.host]:
                del self._hosts[stranger.host]
            if self._waiting and stranger.encrypted:
                self._loop.call_soon(self._hear_next)
        return stranger

    def _make_room(self, among: Iterable[int] | None = None) -> bool:
        """Let go of one that had its time, if there is one; else the others are to wait."""
        due = self._loop.time() - PATIENCE
        had = [number for number in among or self._strangers if self._strangers[number].since <= due]
        if had:
            self._drop(self._least(had))
        return bool(had)

    def _make_way(self, stranger: _Stranger, encrypted: list[int]) -> bool:
        """Let go of one of a host that has half of all handshakes by TLS, for one of a host that has none of them."""
        hosts = Counter(self._strangers[number].host for number in encrypted)
        most, count = hosts.most_common(1)[0]
        if stranger.host in hosts or 2 * count < len(encrypted):
            return False
        self._drop(next(number for number in encrypted if self._strangers[number].host == most))
        return True

    def _least(self, among: Iterable[int] | None = None) -> int:
        """The one to let go of, if one must be."""
        most = max(self._hosts, key=self._hosts.__getitem__)
        numbers = list(self._strangers if among is None else among)
        of_host = [number for number in numbers if self._strangers[number].host == most] or numbers
        return next((number for number in of_host if self._strangers[number].silent), of_host[0])

    def _drop(self, number: int) -> None:
        stranger = self._forget(number)
        if stranger is None:
            return
        if stranger.bringing is not None:
            stranger.bringing.cancel()
        elif stranger.link is not None:
            stranger.link.abort(_TOO_MANY)
        else:
            self._loop.remove_reader(stranger.sock.fileno())
            stranger.sock.close()

    def _sweep(self) -> None:
        """Let go of those that took too long."""
        self._sweeping = None
        now = self._loop.time()
        while self._strangers:
            number, oldest = next(iter(self._strangers.items()))
            due = oldest.since + HANDSHAKE_TIMEOUT
            if due > now:
                self._sweeping = self._loop.call_at(due, self._sweep)
                return
            if not oldest.silent and due + 1 > now:  # it, or its link, says so itself
                self._sweeping = self._loop.call_at(due + 1, self._sweep)
                return
            logger.info("closed the link with a stranger at %s, which said nothing", oldest.host or "a local socket")
            self._drop(number)


def _say(sock: socket.socket, reason: str) -> None:
    """Tell one that dialled why it is not let in."""
    try:
        sock.send(b"".join(map(bytes, pack_frame(*Codec(Handshake).encode([Refused(reason)])))))
    except OSError:
        pass  # it is gone already


def _limit() -> int:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    configured = config.half_open()
    return configured if allowed == resource.RLIM_INFINITY else max(4, min(configured, allowed // 4))


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets that are bound to all addresses of ``host`` (empty: every one of this machine), at one port.

    Raises
    ------
    OSError
        If there is no such host here, or the port is taken.
    """
    found: list[socket.socket] = []
    failure: OSError | None = None
    known = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, where in dict.fromkeys(known):
        try:
            made = socket.socket(family, kind, protocol)
        except OSError as error:  # this machine has no IPv6
            failure = error
            continue
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind((where[0], port or (found[0].getsockname()[1] if found else 0), *where[2:]))
        except OSError as error:
            made.close()
            failure = error
            if error.errno != errno.EADDRNOTAVAIL:
                break
            continue
        found.append(made)
    if failure is not None and (not found or failure.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)):
        for one in found:
            one.close()
        raise failure
    return found
