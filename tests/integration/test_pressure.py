"""What is owed to a peer that does not read is bounded, and arrives once it reads again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest

from shoal import Client, LocalCluster, get_worker, wait
from shoal.client.packing import BATCH_BYTES
from shoal.errors import ClosedClientError
from shoal.messages import INBOUND, OUTBOUND, Answer, Blob, GetData, Query
from shoal.shell.link import Identity, Link
from shoal.shell.network import dial, dial_lasting, listen, local_address
from tests.integration.helpers import until

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


# ---------------------------------------------------------------------------------------------- processes


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def head_of(client: Client) -> int:
    """The process of the scheduler."""
    return int(client.run_on_scheduler(os.getpid))


class Reader(threading.Thread):
    """Maps over a stream of arguments, and notes how far it came, and how it ended."""

    def __init__(self, client: Client, count: int, size: int) -> None:
        super().__init__()
        self.client, self.count, self.size = client, count, size
        self.taken = 0
        self.lengths: list[int] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        def stream() -> Iterator[bytes]:
            for number in range(self.count):
                self.taken += 1
                yield number.to_bytes(4, "little") * (self.size // 4)

        try:
            self.lengths = self.client.gather(self.client.map(len, stream()))
        except BaseException as error:
            self.error = error

    def stands(self) -> bool:
        """Whether it takes no more."""
        before = self.taken
        time.sleep(0.3)
        return self.taken == before and before > 0


def test_a_map_waits_while_the_scheduler_takes_nothing_and_goes_on_when_it_does(cluster):
    with dask.config.set({"shoal.client.owed-bytes": "8 MiB"}), Client(cluster) as client:
        head = head_of(client)
        reader = Reader(client, 2000, 64 << 10)
        with stopped(head):
            reader.start()
            until(reader.stands)
            # What is owed, one batch more that was packed, and what the kernel took.
            assert reader.taken * reader.size < 8 * MIB + 2 * BATCH_BYTES + 16 * MIB
        reader.join(60)
        assert reader.lengths == [reader.size] * reader.count


def test_closing_a_client_lets_go_of_whoever_waits_for_the_scheduler(cluster):
    with dask.config.set({"shoal.client.owed-bytes": "8 MiB"}):
        client = Client(cluster)
    reader = Reader(client, 2000, 64 << 10)
    with stopped(head_of(client)):
        reader.start()
        until(reader.stands)
        client.close()
        reader.join(20)
    assert isinstance(reader.error, ClosedClientError)


def test_an_interrupt_ends_the_waiting_for_the_scheduler(cluster):
    with dask.config.set({"shoal.client.owed-bytes": "8 MiB"}), Client(cluster) as client:
        future = client.submit(len, b"x")
        assert future.result() == 1
        with stopped(head_of(client)):
            timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                client.map(len, (bytes(64 << 10) + bytes([n]) for n in range(255)), pure=False)
                client.map(len, (bytes(64 << 10) + bytes([n]) for n in range(255)), pure=False)
                client.map(len, (bytes(64 << 10) + bytes([n]) for n in range(255)), pure=False)
            timer.join()
        assert client.submit(len, b"xyz").result(timeout=30) == 3


STOPPED_CLIENT = """
import sys, time, shoal
from tests.integration.functions import inc

def gate(seconds):
    time.sleep(seconds)

def large(gate, number):
    return number.to_bytes(4, "little") * 2000

if __name__ == "__main__":
    with shoal.Client(sys.argv[1]) as client:
        first = client.submit(gate, 2)
        futures = client.map(large, [first] * COUNT, range(COUNT))
        client.scheduler_info()  # which is answered after all that was submitted has been heard
        print("ready", flush=True)
        values = client.gather(futures)
        assert [int.from_bytes(value[:4], "little") for value in values] == list(range(COUNT))
        print("well", flush=True)
"""
COUNT = 10_000


def test_a_stopped_client_costs_the_scheduler_some_megabytes_and_hears_all_of_it_later(cluster, client, tmp_path):
    program = tmp_path / "client.py"
    program.write_text(STOPPED_CLIENT.replace("COUNT", str(COUNT)))
    process = subprocess.Popen(
        [sys.executable, str(program), cluster.scheduler_address],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        scheduler = psutil.Process(head_of(client))
        with stopped(process.pid):
            before = scheduler.memory_info().rss
            until(lambda: sum(group["states"].get("memory", 0) for group in client.run_on_scheduler(_states)) > COUNT)
            grown = scheduler.memory_info().rss - before
            links = client.run_on_scheduler(_owed)
            assert len(links) == 1
            assert max(links.values()) < 16 * MIB
            assert grown < 60 * MIB, f"{grown} bytes for {COUNT * 8000} bytes of results"
        assert process.stdout.readline() == "well\n"
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _states(dask_scheduler: Any) -> list[Any]:
    from shoal.core.scheduler import info

    return list(info.groups(dask_scheduler.core).values())


def _owed(dask_scheduler: Any) -> dict[str, int]:
    return {id: link.owed for id, link in dask_scheduler.links.items() if link.full}


def _pieces(number: int) -> list[bytes]:
    """4 MiB that are copied when they are pickled."""
    return [bytes([number, n % 256]) * 4096 for n in range(512)]


def test_a_peer_that_asks_a_worker_for_values_and_does_not_read_has_little_pickled_for_it(client):
    future = client.submit(_pieces, 1)
    wait(future)
    address = next(iter(client.who_has(future).values()))[0]
    worker = psutil.Process(client.scheduler_info()["workers"][address]["pid"])
    connection = client._connection
    heard: list[Any] = []

    async def ask() -> Link:
        def make() -> Link:
            identity = connection.peers._identity
            return Link(identity, True, lambda _: None, lambda _, messages: heard.extend(messages), lambda *_: None)

        link = await dial([address], make, 5.0, connection.peers._identity)
        link._transport.pause_reading()
        for rid in range(100):
            link.send(GetData(rid, [future._record.key]))
        return link

    before = worker.memory_info().rss
    link = client._thread.sync(ask())
    time.sleep(1.5)
    assert worker.memory_info().rss - before < 64 * MIB, "a hundred answers of 4 MiB"
    connection.loop.call_soon_threadsafe(link._transport.resume_reading)
    until(lambda: len(heard) == 100)
    connection.loop.call_soon_threadsafe(link.close)


@pytest.mark.parametrize("make", [_pieces, lambda number: bytes([number]) * (4 << 20)], ids=["pickled", "bytes"])
def test_a_gather_of_many_values_does_not_hold_them_twice(client, make):
    count = 50
    futures = client.map(make, range(count))
    expected = client.submit(lambda values: sum(map(len, values)), futures)
    assert expected.result() > 0
    me, peak, over = psutil.Process(), 0, threading.Event()
    before = me.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.002):
            peak = max(peak, me.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    values = client.gather(futures)
    over.set()
    watching.join()
    assert len(values) == count
    # 200 MiB, what is received at a time, and half as much for what the allocator does.
    assert peak - before < (count * 4 + 64 + 50) * MIB


def _flood(path: str, count: int, size: int) -> int:
    """Log events as fast as they are taken; the size of the file says how many."""
    worker = get_worker()
    with open(path, "ab", buffering=0) as progress:
        for _ in range(count):
            worker.log_event("flood", "x" * size)
            progress.write(b".")
    return count


def test_a_task_that_logs_events_waits_for_a_scheduler_that_does_not_read(tmp_path: Path) -> None:
    """Neither the worker nor a client holds more of them than a link's bytes and what the kernel takes."""
    count, size, path = 2500, 40_000, tmp_path / "progress"
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        client.submit(sum, [1]).result(30)
        head = head_of(client)
        future = client.submit(_flood, str(path), count, size, pure=False)
        until(path.exists)
        with stopped(head):
            before = -1
            while (now := path.stat().st_size) != before:
                before = now
                time.sleep(1)
            assert now < count, "all of it was said to a scheduler that does not read"
        assert future.result(60) == count
