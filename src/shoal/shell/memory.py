"""Links within one process: ``inproc://name``. Bytes take the same way as on a socket, without the socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

from shoal.shell.link import Link

_listeners: dict[str, MemoryServer] = {}
_names = count(1)


class MemoryServer:
    """What listens at a name; has the interface of ``asyncio.Server`` as far as it is used."""

    def __init__(self, name: str, make: Callable[[], Link]) -> None:
        self.name, self.make = name, make
        self.loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Stop listening; open links stay."""
        if _listeners.get(self.name) is self:
            del _listeners[self.name]


def fresh_name() -> str:
    return f"link-{next(_names)}"


def listen(name: str, make: Callable[[], Link]) -> MemoryServer:
    """Listen at ``name``.

    Raises
    ------
    OSError
        If somebody does already.
    """
    if name in _listeners:
        raise OSError(f"inproc://{name} is taken")
    server = _listeners[name] = MemoryServer(name, make)
    return server


def dial(name: str, make: Callable[[], Link]) -> Link:
    """Open a link to whoever listens at ``name``.

    Raises
    ------
    OSError
        If nobody does, or on another event loop.
    """
    server = _listeners.get(name)
    if server is None:
        raise OSError(f"nobody listens at inproc://{name} in this process")
    loop = asyncio.get_running_loop()
    if server.loop is not loop:
        raise OSError(f"inproc://{name} runs on another event loop of this process")
    here, there = make(), server.make()
    mine, theirs = MemoryTransport(loop, here), MemoryTransport(loop, there)
    mine.peer, theirs.peer = theirs, mine
    there.connection_made(theirs)
    here.connection_made(mine)
    return here


class MemoryTransport:
    """One end of a pair: what is written here is received there, in a later turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: Any) -> None:
        self.peer: MemoryTransport | None = None
        self._loop, self._protocol = loop, protocol
        self._inbox: list[memoryview] = []
        self._scheduled = self._closing = self._lost = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        """Nothing waits here: the other end takes it in the next turn of the loop."""
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is nothing to limit."""

    def write(self, data: Any) -> None:
        if not self._closing and self.peer is not None:
            self.peer._arrive(memoryview(data).cast("B"))

    def _arrive(self, data: memoryview) -> None:
        self._inbox.append(data)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        inbox, self._inbox = self._inbox, []
        for data in inbox:
            at = 0
            while at < len(data) and not self._lost:
                room = self._protocol.get_buffer(-1)
                size = min(len(room), len(data) - at)
                room[:size] = data[at : at + size]
                at += size
                self._protocol.buffer_updated(size)

    def close(self) -> None:
        """Close both ends, after what was written has arrived."""
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._lose)
            if self.peer is not None:
                self._loop.call_soon(self.peer.close)

    def _lose(self) -> None:
        self._deliver()
        if not self._lost:
            self._lost = True
            self._protocol.connection_lost(None)
            self.peer = None
