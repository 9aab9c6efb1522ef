"""Listening and dialling: ``tcp://host:port``, ``tls://host:port``, ``unix:///path`` or ``unix://@name``, ``inproc://name``.

What goes between machines is encrypted: who listens at an address that others can reach speaks TLS there, with
certificates that were given, or with one that it made for itself. Within this machine ``tcp://`` is not encrypted.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import socket
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol
from uuid import uuid4

from shoal import config, private
from shoal.core.framing import FramingError
from shoal.errors import ConfigurationError, ConnectError, HandshakeError, HandshakeTimeoutError, LinkClosedError
from shoal.shell import memory
from shoal.shell.accepting import Gate, Rules, bind
from shoal.shell.link import HANDSHAKE_TIMEOUT, Identity, Link
from shoal.tls import own_dialling, own_listening

logger = logging.getLogger("shoal.link")

_NEARNESS = {"inproc": 0, "unix": 1}
#: Schemes of addresses on a network.
NETWORK = ("tcp", "tls")


def split_address(address: str) -> tuple[str, str, int]:
    """Return scheme, host or path, and port.

    Raises
    ------
    ConfigurationError
        If the address is of no known form.
    """
    scheme, sep, rest = address.partition("://")
    if not sep:
        scheme, rest = "tcp", address
    if scheme in ("unix", "inproc"):
        return scheme, rest, 0
    host, colon, port = rest.rpartition(":")
    if scheme not in NETWORK or not colon or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"{address!r} is no address; write tcp://host:port, unix:///path or inproc://name")
    return scheme, host.strip("[]"), int(port)


def local_address() -> str:
    """A fresh address on this machine: a socket without a file, so that nothing is left of it after a crash."""
    return f"unix://@shoal-{uuid4().hex}"


def _local_socket(path: str, listening: bool = False) -> socket.socket:
    """A local socket that is bound to ``path``, or connected to who is; its file is for this user alone.

    Raises
    ------
    OSError
        If that cannot be.
    """
    found = socket.socket(socket.AF_UNIX)
    name = "\0" + path[1:] if path.startswith("@") else path
    try:
        if listening:
            os.fchmod(found.fileno(), private.FILE_MODE)  # the file gets the mode that the socket has when it is bound
            _bind(found, name)
        else:
            found.setblocking(False)
            found.connect(name)
    except OSError:
        found.close()
        raise
    return found


def _bind(found: socket.socket, name: str) -> None:
    try:
        found.bind(name)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or name.startswith("\0") or _answers(name):
            raise
        private.remove_socket(name)  # what listened there is gone
        found.bind(name)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            pass  # it may
        return True


class _LocalServer:
    """A server whose socket has a file."""

    def __init__(self, server: Server, path: str) -> None:
        self._server, self._path = server, path

    def close(self) -> None:
        self._server.close()
        private.remove_socket(self._path)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def contact_host(host: str) -> str:
    """The host at which others reach what listens at ``host``, which may stand for all interfaces."""
    if host not in ("", "0.0.0.0", "::"):
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # nothing is sent: it only chooses a route
            found: str = probe.getsockname()[0]
            return found
        except OSError:
            return "127.0.0.1"


async def dial_lasting(
    addresses: list[str],
    identity: Identity,
    on_messages: Callable[[Link, list[Any]], None],
    on_closed: Callable[[Link, str], None],
    timeout: float,
) -> Link:
    """As :func:`dial`, with a link that outlives a connection over the network which breaks.

    Raises
    ------
    ConnectError, HandshakeError
        As :func:`dial`.
    """
    grace = config.resume_timeout()
    far = [address for address in addresses if split_address(address)[0] in NETWORK]

    async def redial(link: Link) -> Link:
        return await dial(far, lambda: link, grace, identity)

    def make() -> Link:
        again = redial if far else None
        return Link(identity, True, lambda link: None, on_messages, on_closed, redial=again, grace=grace)

    return await dial(addresses, make, timeout, identity)


async def is_refused(addresses: list[str]) -> bool:
    """Whether nobody listens any more at any of ``addresses``, on a machine that answers."""
    for address in addresses:
        scheme, host, port = split_address(address)
        if scheme not in NETWORK:
            continue
        try:
            async with asyncio.timeout(5):
                _, writer = await asyncio.open_connection(host, port)
        except ConnectionRefusedError:
            continue
        except (OSError, TimeoutError):
            return False
        writer.close()
        return False
    return any(split_address(address)[0] in NETWORK for address in addresses)


class Server(Protocol):
    """What listens."""

    def close(self) -> None: ...


async def listen(address: str, make: Callable[[], Link], secret: bytes, role: str = "worker") -> tuple[Server, str]:
    """Listen at ``address``; return the server and the address with its port (or name) filled in.

    ``role`` is whose certificate is shown, where there are certificates.

    Raises
    ------
    ConfigurationError
        If the address is taken, or would let strangers in.
    """
    scheme, host, port = split_address(address)
    if scheme == "inproc":
        name = host or memory.fresh_name()
        return memory.listen(name, make), f"inproc://{name}"
    if scheme == "unix":
        try:
            gate = Gate([_local_socket(host, listening=True)], make, Rules())
        except OSError as error:
            raise ConfigurationError(f"cannot listen at {address}: {error.strerror or error}") from error
        return (gate if host.startswith("@") else _LocalServer(gate, host)), address
    tls = getattr(secret, "tls", None)
    only_tls = tls is not None or scheme == "tls" or getattr(secret, "require", False)
    plain = is_plain(secret) and not only_tls
    encrypted = only_tls or not (plain or is_loopback(host))
    if tls is not None:
        tls.context(role, server=True)  # complain now
    elif encrypted:
        own_listening()
    rules = Rules(own_listening if tls is None else lambda: tls.context(role, server=True), plain, not only_tls)
    try:
        gate = Gate(bind(host, port), make, rules)
    except OSError as error:
        raise ConfigurationError(f"cannot listen at {address}: {error.strerror or error}") from error
    actual = f"{'tls' if encrypted else 'tcp'}://{contact_host(host)}:{gate.port}"
    if not encrypted and not is_loopback(host):
        logger.warning("%s is not encrypted (plain): who sees this network can read all that goes by", actual)
    return gate, actual


def is_plain(secret: bytes) -> bool:
    """Whether machines may talk to each other without encryption, as the credentials or the configuration say."""
    return bool(getattr(secret, "plain", False)) or config.plain()


def _full(address: str, secret: bytes) -> str:
    """``address`` with the scheme that is meant where none is written."""
    if "://" in address:
        return address
    _, host, _ = split_address(address)
    if getattr(secret, "tls", None) is not None or getattr(secret, "require", False):
        return f"tls://{address}"
    return f"tcp://{address}" if is_loopback(host) or is_plain(secret) else f"tls://{address}"


def _context(scheme: str, host: str, address: str, identity: Identity) -> Any:
    """What is needed to dial by TLS; None where that is not asked for."""
    secret = identity.secret
    tls = getattr(secret, "tls", None)
    if scheme == "tls":
        return own_dialling() if tls is None else tls.context(identity.role, server=False)
    if getattr(secret, "require", False):
        raise ConfigurationError(f"{address} would be spoken to without encryption, which is required")
    if not is_loopback(host):
        if not is_plain(secret):
            raise ConfigurationError(
                f"{address} would be spoken to without encryption: write tls://{address.partition('://')[2]}, or allow "
                "it with --plain, Security(plain=True) or shoal.security.plain"
            )
        logger.warning("%s is spoken to without encryption (plain)", address)
    return None


async def dial(addresses: list[str], make: Callable[[], Link], timeout: float, identity: Identity) -> Link:
    """Open a link to the first of ``addresses`` that answers, trying again until ``timeout`` seconds are over.

    The nearest way is tried first: within this process, by a local socket (which exists on the peer's host only), by
    the network.

    Raises
    ------
    ConnectError
        If nobody answered, naming what was tried, for how long, and the last reason.
    HandshakeError
        If somebody answered and refused; trying again would be useless.
    """
    started = monotonic()
    loop = asyncio.get_running_loop()
    pause, last = 0.01, "no address was given"
    full = [_full(address, identity.secret) for address in addresses]
    nearest = sorted(full, key=lambda one: _NEARNESS.get(one.partition("://")[0], 2))
    while True:
        for address in nearest:
            scheme, host, port = split_address(address)
            left = max(0.05, timeout - (monotonic() - started))
            context = None if scheme not in NETWORK else _context(scheme, host, address, identity)
            link: Link | None = None
            try:
                async with asyncio.timeout(left):
                    if scheme == "inproc":
                        link = memory.dial(host, make)
                    elif scheme == "unix":
                        _, link = await loop.create_unix_connection(make, sock=_local_socket(host))
                    elif context is None:
                        _, link = await loop.create_connection(make, host, port)
                    else:
                        _, link = await loop.create_connection(
                            make, host, port, ssl=context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT
                        )
                    await asyncio.shield(link.ready)
                    return link
            except HandshakeTimeoutError as error:
                last = str(error)
            except HandshakeError:
                if link is not None:
                    link.tell_outcome_no_more()
                    link = None  # nor does the error refer to it
                raise
            except FramingError as error:
                if link is not None:
                    link.tell_outcome_no_more()
                    link = None
                raise HandshakeError(f"{address} does not speak shoal's protocol: {error}") from error
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                last = "the other side ended the encryption"
            except ssl.SSLError as error:
                raise HandshakeError(f"{address} cannot be spoken to by TLS: {error}") from error
            except LinkClosedError as error:
                last = str(error)
                if context is not None and context is own_dialling():
                    last += "; if it asks for a certificate, give a Security that has one"
            except (OSError, TimeoutError) as error:
                last = str(error) or type(error).__name__
            except asyncio.CancelledError:
                if link is not None:
                    link.abort("nobody waits for it any more")
                raise
            if link is not None:
                link.abort(last)
                link.tell_outcome_no_more()
        if monotonic() - started + pause >= timeout:
            tried = ", ".join(addresses)
            raise ConnectError(f"nobody could be reached at {tried} within {timeout:g} s (last reason: {last})")
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.5)
