"""Small helpers that programs take from ``distributed.utils`` and its like, over what shoal and dask have."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import ipaddress
import logging
import socket
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import dask
import psutil
from dask.utils import (
    format_bytes,
    format_time,
    funcname,
    has_keyword,
    key_split,
    parse_bytes,
    parse_timedelta,
    typename,
)

from shoal.client.loop import get_loop_thread
from shoal.shell.current import home
from shoal.shell.executor import current_key
from shoal.shell.serialize import dumps, loads, sizeof

__all__ = [
    "TOTAL_MEMORY",
    "VERSION",
    "CancelledError",
    "LoopRunner",
    "deserialize",
    "format_bytes",
    "format_time",
    "funcname",
    "get_address_host",
    "get_address_host_port",
    "get_ip",
    "get_ip_interface",
    "has_keyword",
    "import_term",
    "is_coroutine_function",
    "iscoroutinefunction",
    "key_split",
    "log_errors",
    "nbytes",
    "normalize_address",
    "open_port",
    "parse_address",
    "parse_bytes",
    "parse_host_port",
    "parse_timedelta",
    "resolve_address",
    "serialize",
    "thread_state",
    "tmpfile",
    "to_serialize",
    "typename",
    "unparse_address",
    "unparse_host_port",
    "wait_for",
]

logger = logging.getLogger("shoal.compat")
T = TypeVar("T")

#: The release of dask whose interface this is.
VERSION: Final = str(dask.__version__)
TOTAL_MEMORY: Final = psutil.virtual_memory().total


class _ThreadState:
    """What code asks to learn whether it runs inside of a task: its attributes are there in tasks only."""

    def __getattr__(self, name: str) -> Any:
        here = home()
        found: dict[str, Any] = {"asynchronous": False}
        if here is not None:
            found |= {"execution_state": {"worker": here.program}, "key": current_key(), "on_event_loop_thread": False}
        if name not in found:
            raise AttributeError(name)
        return found[name]


thread_state: Final = _ThreadState()


class LoopRunner:
    """The event loop on which clients and clusters of this process run."""

    def __init__(self, loop: Any = None, asynchronous: bool = False) -> None:
        self.loop = asyncio.get_running_loop() if asynchronous else get_loop_thread().loop

    def start(self) -> None:
        """It runs already."""

    def stop(self, timeout: float = 10) -> None:
        """It goes on running, for others."""

    def is_started(self) -> bool:
        """Whether it runs: always."""
        return True

    def run_sync(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a coroutine function there, and wait for it."""
        return get_loop_thread().sync(func(*args, **kwargs))


iscoroutinefunction = is_coroutine_function = inspect.iscoroutinefunction


async def wait_for(fut: Coroutine[Any, Any, T], timeout: float | None) -> T:
    """As :func:`asyncio.wait_for`."""
    return await asyncio.wait_for(fut, timeout)


@contextmanager
def _logged() -> Iterator[None]:
    try:
        yield
    except Exception:
        logger.exception("an error in what was to be logged")
        raise


def log_errors(pdb: Any = False, unroll_stack: int = 1) -> Any:
    """Log what is raised in a block, or in a function that this decorates, and let it go on."""
    return _logged()(pdb) if callable(pdb) else _logged()


def import_term(name: str) -> Any:
    """The object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute) if module else importlib.import_module(attribute)


def nbytes(frame: Any) -> int:
    """How many bytes a buffer, or any object, takes."""
    return int(sizeof(frame))


def open_port(host: str = "") -> int:
    """A port that nobody listens at now."""
    with socket.socket() as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


def get_ip(host: str = "8.8.8.8", port: int = 80) -> str:
    """The address of this machine by which ``host`` would be reached; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        try:
            found.connect((host, port))
        except OSError:
            return "127.0.0.1"
        return str(found.getsockname()[0])


def get_ip_interface(ifname: str) -> str:
    """The address of a network interface.

    Raises
    ------
    ValueError
        If there is none of that name, naming those that there are.
    """
    known = psutil.net_if_addrs()
    for address in known.get(ifname, ()):
        if address.family == socket.AF_INET:
            return str(address.address)
    raise ValueError(f"{ifname!r} is no network interface with an IPv4 address; there are {sorted(known)}")


@contextmanager
def tmpfile(extension: str = "") -> Iterator[str]:
    """The name of a file that does not exist, and is removed afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        yield str(Path(directory) / f"file.{extension.lstrip('.')}".rstrip("."))


# ------------------------------------------------------------------------------------------------------ addresses


def parse_address(addr: str, strict: bool = False) -> tuple[str, str]:
    """Scheme and location: ``("tcp", "127.0.0.1:8786")``.

    Raises
    ------
    ValueError
        If there is no scheme, and ``strict``.
    """
    if not isinstance(addr, str):
        raise TypeError(f"addr must be text, got {type(addr).__name__}")
    scheme, found, location = addr.rpartition("://")
    if strict and not found:
        raise ValueError(f"the address {addr!r} has no scheme, as in 'tcp://{addr}'")
    return scheme or "tcp", location


def unparse_address(scheme: str, loc: str) -> str:
    """The two joined."""
    return f"{scheme}://{loc}"


def normalize_address(addr: str) -> str:
    """An address with its scheme."""
    return unparse_address(*parse_address(addr))


def parse_host_port(address: str, default_port: int | None = None) -> tuple[str, int]:
    """Host and port of ``host:port``, where the host may be in brackets.

    Raises
    ------
    ValueError
        If there is no port, nor a default.
    """
    if address.startswith("["):
        host, _, rest = address[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        host, _, port = address.partition(":")
    if not port and default_port is None:
        raise ValueError(f"the address {address!r} has no port")
    return host, int(port) if port else int(default_port or 0)


def unparse_host_port(host: str, port: int | None = None) -> str:
    """The two joined, the host in brackets where it needs them."""
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"{host}:{port}" if port is not None else host


def get_address_host_port(addr: str, strict: bool = False) -> tuple[str, int]:
    """Host and port of an address."""
    return parse_host_port(parse_address(addr, strict)[1])


def get_address_host(addr: str) -> str:
    """The host of an address."""
    return parse_host_port(parse_address(addr)[1], 0)[0]


def resolve_address(addr: str) -> str:
    """An address with a number in place of the name of its host."""
    scheme, location = parse_address(addr)
    host, port = parse_host_port(location)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        host = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    return unparse_address(scheme, unparse_host_port(host, port))


# ------------------------------------------------------------------------------------------------------ serialization


def serialize(x: Any, **kwargs: Any) -> tuple[dict[str, Any], list[Any]]:
    """A header, and frames: how shoal would send a value."""
    payload = dumps(x)
    return {"serializer": "pickle"}, [payload] if isinstance(payload, bytes) else list(payload.frames)


def deserialize(header: dict[str, Any], frames: list[Any], **kwargs: Any) -> Any:
    """What :func:`serialize` was given."""
    from shoal.messages import Blob

    return loads(Blob(frames))


def to_serialize(data: Any) -> Any:
    """As it is: shoal serializes where it sends."""
    return data
