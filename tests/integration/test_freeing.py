"""Links that are closed are freed at once, without the garbage collector."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from shoal.messages import INBOUND, ToClient
from shoal.security import Credentials
from shoal.shell.accepting import Gate
from shoal.shell.link import Identity, Link
from shoal.shell.loops import new_event_loop
from shoal.shell.network import dial, listen, local_address
from tests.integration.test_cuts import Proxy

SECRET = Credentials(b"for those that come and go")


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Ends:
    """Makes the links of both ends, and knows when they are gone."""

    def __init__(self) -> None:
        self.known: list[weakref.ref[Any]] = []
        self.accepted: dict[tuple[str, str, bytes], Link] = {}

    def _note(self, link: Link) -> Link:
        self.known += [weakref.ref(one) for one in (link, link.reader)]
        return link

    def _find(self, role: str, id: str, token: bytes) -> Link | None:
        found = self.accepted.get((role, id, token))
        return found

    def _opened(self, link: Link) -> None:
        if link.channel is not None:
            self.accepted[link.peer_role, link.peer_id, link.channel.token] = link

    def _closed(self, link: Link, reason: str) -> None:
        self.accepted.clear()

    def accept(self) -> Link:
        identity = Identity("scheduler", "s", SECRET, INBOUND)
        return self._note(Link(identity, False, self._opened, _nothing, self._closed, find=self._find, grace=20.0))

    async def dial(self, address: str, lasting: bool = False) -> Link:
        identity = Identity("client", "c", SECRET, {"scheduler": ToClient})

        async def redial(link: Link) -> Link:
            return await dial([address], lambda: link, 20, identity)

        def make() -> Link:
            again: Any = {"redial": redial, "grace": 20.0} if lasting else {}
            return self._note(Link(identity, True, _nothing, _nothing, _nothing, **again))

        return await dial([address], make, 20, identity)

    async def are_gone(self) -> None:
        for _ in range(100):
            if not any(one() for one in self.known):
                return
            await asyncio.sleep(0.02)
        left = [one() for one in self.known if one() is not None]
        pytest.fail(f"left: {left}, held by {[type(one) for one in gc.get_referrers(left[0])]}")


def _nothing(*args: Any) -> None:
    pass


@pytest.mark.parametrize("loop", ["auto", "asyncio"])
@pytest.mark.parametrize("who", ["dialler", "listener"])
@pytest.mark.parametrize("carrier", ["unix", "tcp", "tls", "resumed"])
def test_closed_links(carrier: str, who: str, loop: str) -> None:
    """On each carrier, whichever end closes."""

    async def work() -> None:
        ends = _Ends()
        address = local_address() if carrier == "unix" else "tcp://127.0.0.1:0"
        gate, actual = await listen(address, ends.accept, SECRET, "scheduler")
        assert isinstance(gate, Gate)
        async with contextlib.AsyncExitStack() as stack:
            if carrier == "resumed":
                proxy = await stack.enter_async_context(Proxy(actual))
                actual = proxy.address
            link = await ends.dial(actual.replace("tcp", "tls") if carrier == "tls" else actual, carrier == "resumed")
            await asyncio.sleep(0.05)
            if carrier == "resumed":
                proxy.cut()
                while proxy.connections < 2 or link.cut:
                    await asyncio.sleep(0.02)
                await asyncio.sleep(0.05)
            if who == "dialler":
                link.close()
                del link
            else:
                del link
                other = next(one() for one in ends.known if isinstance(one(), Link) and not one()._dialling)
                if ends.accepted:
                    (other,) = ends.accepted.values()
                other.close()
                del other
            await ends.are_gone()
        gate.close()

    with (
        _no_collector(),
        asyncio.Runner(loop_factory=asyncio.new_event_loop if loop == "asyncio" else new_event_loop) as runner,
    ):
        runner.run(asyncio.wait_for(work(), 60))


@pytest.mark.parametrize("loop", ["auto", "asyncio"])
@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_links_that_were_never_open(scheme: str, loop: str) -> None:
    """Of strangers, at both ends."""

    async def work() -> None:
        ends = _Ends()
        gate, actual = await listen("tcp://127.0.0.1:0", ends.accept, SECRET, "scheduler")
        identity = Identity("client", "c", b"another secret than theirs", {"scheduler": ToClient})

        def make() -> Link:
            return ends._note(Link(identity, True, _nothing, _nothing, _nothing))

        try:
            await dial([actual.replace("tcp", scheme)], make, 20, identity)
        except OSError:
            pass
        await ends.are_gone()
        gate.close()

    with (
        _no_collector(),
        asyncio.Runner(loop_factory=asyncio.new_event_loop if loop == "asyncio" else new_event_loop) as runner,
    ):
        runner.run(asyncio.wait_for(work(), 60))
