"""Where a worker or a nanny listens, and what others are told, out of the arguments that users give."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from shoal.errors import ConfigurationError
from shoal.shell.link import Link
from shoal.shell.network import NETWORK, Server, contact_host, listen, split_address

#: A range of more ports than this is a mistake.
_MOST_PORTS = 65536


class Listening(NamedTuple):
    """Addresses to try, the first that is free is taken; and what others are told, if that is another."""

    candidates: list[str]
    contact: str = ""


def ports(value: Any, name: str = "port") -> list[int]:
    """The ports that a user means by a number, ``"9000:9100"`` (both included), or a collection; [0]: any.

    Raises
    ------
    ConfigurationError
        If they are none, naming ``name``.
    """
    try:
        if value is None or value == "":
            found = [0]
        elif isinstance(value, str):
            first, colon, last = value.partition(":")
            found = list(range(int(first), int(last) + 1)) if colon else [int(first)]
        elif isinstance(value, int) and not isinstance(value, bool):
            found = [value]
        else:
            found = [int(one) for one in value]
    except (TypeError, ValueError):
        found = []
    if not found or len(found) > _MOST_PORTS or not all(0 <= port <= 65535 for port in found):
        raise ConfigurationError(f"{name} must be a port, '9000:9100' or a collection of ports, got {value!r}")
    return found


def listening(
    scheduler: str,
    host: str | None = None,
    port: Any = None,
    interface: str | None = None,
    protocol: str | None = None,
    listen_address: str | None = None,
    contact_address: str | None = None,
) -> Listening:
    """Where to listen for peers of a cluster whose scheduler is at ``scheduler``.

    Raises
    ------
    ConfigurationError
        If the arguments make no sense, naming the one.
    """
    if protocol not in (None, "tcp", "tls", "tcp://", "tls://"):
        raise ConfigurationError(f"protocol must be 'tcp' or 'tls', got {protocol!r}")
    scheme_here = "tls" if (protocol or "").startswith("tls") else "tcp"
    contact = ""
    if contact_address:
        scheme, its_host, its_port = split_address(contact_address)
        contact = f"{scheme}://{its_host}:{its_port}"
    if listen_address:
        if host or interface or port:
            raise ConfigurationError("give listen_address, or host, interface and port, not both")
        scheme, its_host, its_port = split_address(listen_address)
        return Listening([f"{scheme}://{its_host}:{its_port}"], contact)
    if interface:
        if host:
            raise ConfigurationError("give host or interface, not both")
        host = _address_of(interface)
    where = host or _towards(scheduler)
    return Listening([f"{scheme_here}://{where}:{number}" for number in ports(port)], contact)


def _address_of(interface: str) -> str:
    import psutil

    known = psutil.net_if_addrs()
    if interface not in known:
        raise ConfigurationError(
            f"interface {interface!r} is not on this machine; there are {', '.join(sorted(known))}"
        )
    found = [address.address for address in known[interface] if address.family == socket.AF_INET]
    if not found:
        raise ConfigurationError(f"interface {interface!r} has no IPv4 address")
    return found[0]


def _towards(scheduler: str) -> str:
    """This machine's address, as the machine of the scheduler sees it."""
    scheme, host, port = split_address(scheduler)
    if scheme not in NETWORK:
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if host == "localhost" or (address is not None and address.is_loopback):
        return "127.0.0.1"
    family = socket.AF_INET6 if address is not None and address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, port or 9))  # nothing is sent: it only chooses a route
        except OSError:
            return contact_host("0.0.0.0")
        found: str = probe.getsockname()[0]
        return found


def told(contact: str, actual: str) -> str:
    """``contact``, as others are to write it for what listens at ``actual``."""
    if contact.startswith("tcp://") and actual.startswith("tls://"):
        return f"tls{contact[3:]}"
    return contact


async def listen_at_one(where: Listening, make: Callable[[], Link], secret: bytes) -> tuple[list[Server], list[str]]:
    """Listen at the first candidate that is free; return the server and the address that others are told, in lists.

    Raises
    ------
    ConfigurationError
        If none is free, saying what was tried.
    """
    failure = None
    for candidate in where.candidates:
        try:
            server, actual = await listen(candidate, make, secret)
        except ConfigurationError as error:
            failure = error
            continue
        contact = told(where.contact, actual)
        if contact.endswith(":0"):
            contact = contact[:-1] + actual.rpartition(":")[2]
        return [server], [contact or actual]
    if failure is not None and len(where.candidates) > 1:
        raise ConfigurationError(
            f"none of {len(where.candidates)} addresses from {where.candidates[0]} to {where.candidates[-1]} is free"
        ) from failure
    assert failure is not None
    raise failure
