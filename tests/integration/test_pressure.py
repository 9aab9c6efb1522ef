"""What is owed to a peer that does not read is bounded, and arrives once it reads again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shoal.messages import INBOUND, OUTBOUND, Answer, Blob, Query
from shoal.shell.link import Identity, Link
from shoal.shell.network import dial_lasting, listen, local_address

SECRET = b"s" * 32
MIB = 1 << 20


class Pair:
    """A listening link and one that dialled it, with what they heard."""

    def __init__(self) -> None:
        self.heard: dict[bool, list[Any]] = {True: [], False: []}
        self.room: list[bool] = []
        self.opened: list[Link] = []
        self.closed: list[str] = []

    async def open(self, address: str) -> tuple[Link, Link]:
        here = Identity("scheduler", "s", SECRET, INBOUND)
        there = Identity("client", "c", SECRET, {"scheduler": OUTBOUND["client"]})

        def make() -> Link:
            return Link(
                here,
                False,
                self.opened.append,
                lambda _, messages: self.heard[False].extend(messages),
                lambda _, reason: self.closed.append(reason),
                find=lambda *_: None,
                grace=60.0,
                on_room=lambda _, full: self.room.append(full),
            )

        self.server, actual = await listen(address, make, SECRET)
        far = await dial_lasting(
            [actual], there, lambda _, messages: self.heard[True].extend(messages), lambda *_: None, 5.0
        )
        while not self.opened:
            await asyncio.sleep(0.001)
        return self.opened[0], far

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("where", ["tcp://127.0.0.1:0", local_address()])
def test_a_link_whose_peer_does_not_read_is_full_and_drains_when_it_does(where, monkeypatch):
    monkeypatch.setattr("shoal.shell.backlog.PATIENCE", 0.1)

    async def main() -> None:
        pair = Pair()
        link, far = await pair.open(where)
        far._transport.pause_reading()
        count = 0
        while link._transport.get_write_buffer_size() <= 8 * MIB:
            link.send(Answer(count, Blob([b"", bytes(MIB)])))
            count += 1
            await asyncio.sleep(0)
            assert count < 64, "it is full past the mark and what the kernel takes"
        assert link.full
        assert pair.room == [True]
        for rid in range(50):  # whoever asks and does not read is not read either: nothing is owed for it
            far.send(Query(rid, "identity", {}))
        await asyncio.sleep(0.2)
        assert pair.heard[False] == []
        far._transport.resume_reading()
        await pair.until(lambda: len(pair.heard[True]) == count and len(pair.heard[False]) == 50)
        await pair.until(lambda: pair.room == [True, False])
        assert not link.full
        assert link.owed < 2 * MIB
        link.close()
        far.close()
        pair.server.close()

    asyncio.run(main())


def test_a_peer_that_takes_nothing_for_long_and_is_owed_very_much_is_given_up(monkeypatch):
    monkeypatch.setattr("shoal.shell.backlog.STALLED", 0.2)
    monkeypatch.setattr("shoal.shell.backlog.MOST", 4)

    async def main() -> None:
        pair = Pair()
        link, far = await pair.open(local_address())
        far._transport.pause_reading()
        for count in range(60):
            link.send(Answer(count, Blob([b"", bytes(MIB)])))
            await asyncio.sleep(0.01)
        await pair.until(lambda: pair.closed)
        assert "takes none" in pair.closed[0]
        far.close()
        pair.server.close()

    asyncio.run(main())


def test_what_is_left_of_a_closed_link_is_dropped_if_its_peer_takes_nothing(monkeypatch):
    monkeypatch.setattr("shoal.shell.backlog.LINGER", 0.1)

    async def main() -> None:
        pair = Pair()
        link, far = await pair.open(local_address())
        far._transport.pause_reading()
        link.send(Answer(1, Blob([b"", bytes(4 * MIB)])))
        link.close("enough")
        transport = link._transport
        await pair.until(lambda: transport.get_write_buffer_size() == 0 and pair.closed)
        far.close()
        pair.server.close()

    asyncio.run(main())
