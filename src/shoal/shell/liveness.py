"""One timer for all links of an event loop: it has beats said, and finds out which peers are gone.

The hot path knows nothing of it but two flags of a link, which are set where bytes come and go.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from time import monotonic
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from shoal import config
from shoal.core.liveness import LOOKS, FairClock, Pulse, Verdict

#: ``tcpi_last_data_recv`` and ``tcpi_last_ack_recv`` of ``struct tcp_info``, in milliseconds.
_HEARD = struct.Struct("=52xII")


class Watched(Protocol):
    """What a judge needs of a link."""

    heard: bool
    said: bool

    @property
    def transport(self) -> Any: ...

    def beat(self) -> None: ...

    def fell_silent(self, seconds: float, gone: bool) -> None: ...


def machine_silence(transport: Any) -> float | None:
    """Seconds for which the kernel heard nothing from the machine at the other end; None where it cannot say."""
    found = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_INFO", None)
    if found is None or option is None:
        return None
    try:
        data, acknowledgement = _HEARD.unpack(found.getsockopt(socket.IPPROTO_TCP, option, _HEARD.size))
    except (OSError, struct.error):
        return None
    if not data and not acknowledgement:
        return None  # a kernel that does not count (as that of some sandboxes)
    return float(min(data, acknowledgement)) / 1000.0


class Judge:
    """Looks at all links of one loop.

    Parameters
    ----------
    loop
        Where the timer runs, while there is any link.
    timeout
        Seconds of silence that are borne (``distributed.comm.timeouts.tcp``).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout: float) -> None:
        self.timeout = timeout
        self._loop = loop
        self._clock = FairClock(timeout / LOOKS)
        self._links: dict[Watched, tuple[Pulse, bool]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, link: Watched, far: bool) -> None:
        """Look at ``link``, which is open, from now on; one that is not ``far`` breaks when the process there ends."""
        self._links[link] = Pulse(self.timeout, self._clock.look(monotonic())), far
        if self._timer is None:
            self._timer = self._loop.call_later(self._clock.period, self._look)

    def forget(self, link: Watched) -> None:
        """Look at ``link`` no longer."""
        self._links.pop(link, None)
        if not self._links and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = self._loop.call_later(self._clock.period, self._look)
        now = self._clock.look(monotonic())
        for link, (pulse, far) in tuple(self._links.items()):
            heard, said = link.heard, link.said
            link.heard = link.said = False
            verdict = pulse.look(now, heard, said)
            if verdict is Verdict.BEAT:
                link.beat()
            elif verdict is Verdict.SILENT:
                gone = far and pulse.judge(now, machine_silence(link.transport))
                if not gone:
                    link.beat()  # whose acknowledgement tells of the machine
                link.fell_silent(pulse.silence(now), gone)


_judges: WeakKeyDictionary[asyncio.AbstractEventLoop, Judge] = WeakKeyDictionary()


def judge_of(loop: asyncio.AbstractEventLoop) -> Judge:
    """The judge of all links of ``loop``."""
    found = _judges.get(loop)
    if found is None:
        found = _judges[loop] = Judge(loop, config.silence_timeout())
    return found
