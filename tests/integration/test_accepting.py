"""Connections of strangers are few, cost little and go away; those of friends come through all the same."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from shoal import Client, LocalCluster, Scheduler, Security
from shoal.core.framing import FrameReader, pack_frame
from shoal.core.session import Session
from shoal.errors import ConfigurationError, HandshakeError, HandshakeTimeoutError
from shoal.messages import INBOUND, ToClient
from shoal.security import Credentials
from shoal.shell import accepting as gates
from shoal.shell import link as links
from shoal.shell.accepting import Gate
from shoal.shell.addresses import contact_host
from shoal.shell.link import Identity, Link
from shoal.shell.network import dial, listen
from shoal.tls import own_dialling
from tests.integration.functions import inc

SECRET = Credentials(b"for those that stand at a gate")


def _client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        own_dialling().wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


def _hello() -> bytes:
    session = Session("client", "c", SECRET, b"1" * 16, True, {"scheduler": ToClient}, FrameReader())
    return b"".join(map(bytes, pack_frame(*session.hello())))


#: What strangers say.
SAID = {"nothing": b"", "half a hello": _hello()[:30], "a hello": _hello(), "TLS": _client_hello()}


def _nothing(*args: Any) -> None:
    pass


async def _gate(
    address: str = "tcp://127.0.0.1:0", limit: int | None = None, accepted: Any = _nothing
) -> tuple[Gate, str]:
    identity = Identity("scheduler", "s", SECRET, INBOUND)

    def make() -> Link:
        link = Link(identity, False, _nothing, _nothing, _nothing)
        accepted(link)
        return link

    found, actual = await listen(address, make, SECRET, "scheduler")
    assert isinstance(found, Gate)
    found.limit = limit or found.limit
    return found, actual


async def _dial(address: str, timeout: float = 20) -> Link:
    identity = Identity("client", "c", SECRET, {"scheduler": ToClient})
    return await dial([address], lambda: Link(identity, True, _nothing, _nothing, _nothing), timeout, identity)


async def _close(link: Link) -> None:
    assert not link.closed
    link.close()
    await asyncio.sleep(0.05)  # both ends hear of it


@contextlib.contextmanager
def _strangers(address: str, said: bytes) -> Iterator[Any]:
    """Gives what makes more of them."""
    host, _, port = address.partition("://")[2].rpartition(":")
    held: list[socket.socket] = []

    async def come(count: int) -> list[socket.socket]:
        for number in range(count):
            sock = socket.create_connection((host, int(port)), 5)
            held.append(sock)
            sock.setblocking(False)
            sock.send(said)
            if number % 20 == 0:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        return held

    yield come
    for sock in held:
        sock.close()


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
@pytest.mark.parametrize("said", SAID)
def test_friends_come_through_between_strangers(monkeypatch, said: str, scheme: str) -> None:
    """However many hold on to connections: the half-open ones are limited, and the oldest go."""

    monkeypatch.setattr(gates, "PATIENCE", 0.02)

    async def work() -> None:
        gate, address = await _gate(limit=32)
        with _strangers(address, SAID[said]) as come:
            for _ in range(3):
                await come(60)
                assert 0 < gate.half_open <= 32
                link = await _dial(address.replace("tcp", scheme))
                await _close(link)
        gate.close()

    asyncio.run(asyncio.wait_for(work(), 60))


@pytest.mark.parametrize("said", SAID)
def test_strangers_do_not_stay(monkeypatch, said: str) -> None:
    """Neither those that are silent, nor those that say a byte now and then."""
    monkeypatch.setattr(gates, "HANDSHAKE_TIMEOUT", 0.3)
    monkeypatch.setattr(links, "HANDSHAKE_TIMEOUT", 0.3)

    async def work() -> None:
        gate, address = await _gate()
        with _strangers(address, SAID[said][:-1]) as come:
            (sock,) = await come(1)
            assert gate.half_open == 1
            while gate.half_open:
                await asyncio.sleep(0.05)
            sock.setblocking(True)
            sock.settimeout(10)
            with contextlib.suppress(ConnectionError):
                while await asyncio.to_thread(sock.recv, 1000):
                    pass
        gate.close()

    asyncio.run(asyncio.wait_for(work(), 60))


def test_one_host_does_not_keep_others_from_tls(monkeypatch) -> None:
    """However long its own handshakes take, and however many of them wait, those of another host come before."""
    monkeypatch.setattr(gates, "PATIENCE", 1000.0)
    monkeypatch.setattr(gates, "HANDSHAKE_TIMEOUT", 1000.0)

    async def check() -> None:
        gate, _ = await _gate("tls://127.0.0.1:0", limit=64)
        strangers = []
        try:
            for _ in range(40):
                stranger = socket.create_connection(("127.0.0.1", gate.port))
                stranger.send(b"\x16")
                strangers.append(stranger)
            await asyncio.sleep(0.2)
            async with asyncio.timeout(20):
                for _ in range(8):
                    _, writer = await asyncio.open_connection(
                        "127.0.0.1", gate.port, local_addr=("127.0.0.2", 0), ssl=own_dialling()
                    )
                    writer.close()
        finally:
            for stranger in strangers:
                stranger.close()
            gate.close()

    asyncio.run(check())


def test_a_handshake_that_took_too_long_is_tried_again(monkeypatch) -> None:
    """Somebody may have stood still for a while."""
    monkeypatch.setattr(links, "HANDSHAKE_TIMEOUT", 0.2)

    async def work() -> None:
        silent = socket.create_server(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        dialling = asyncio.create_task(_dial(f"tcp://127.0.0.1:{port}"))
        await asyncio.sleep(0.5)
        assert not dialling.done()
        silent.close()
        await asyncio.sleep(0.1)
        gate, _ = await _gate(f"tcp://127.0.0.1:{port}")
        await _close(await dialling)
        gate.close()

    asyncio.run(asyncio.wait_for(work(), 60))
    assert issubclass(HandshakeTimeoutError, HandshakeError)


_COST = """
import asyncio, logging, resource, sys
from tests.integration import test_accepting as here

resource.setrlimit(resource.RLIMIT_NOFILE, (2000, 4096))
logging.disable(logging.CRITICAL)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

async def work():
    gate, address = await here._gate()
    with here._strangers(address, here.SAID[sys.argv[1]]) as come:
        await come(20)  # what is loaded on first use is no part of the cost
        before = resident()
        await come(400)
        print((resident() - before) / 256)
    gate.close()

asyncio.run(work())
"""


@pytest.mark.parametrize("said", SAID)
def test_what_a_stranger_costs(said: str) -> None:
    """Less than 16 kB of memory each, of those that may be there at a time."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    run = subprocess.run([sys.executable, "-c", _COST, said], cwd=root, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 16_000


def test_few_descriptors(nothing_is_left) -> None:
    """A limit of the system's is not reached by strangers."""
    code = """
import asyncio, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
from tests.integration import test_accepting as here

async def work():
    gate, address = await here._gate()
    print(gate.limit, address, flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(work())
"""
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        limit, address = process.stdout.readline().split()
        assert int(limit) == 20

        async def work() -> None:
            with _strangers(address, b"") as come:
                await come(100)
                await _close(await _dial(address))

        asyncio.run(asyncio.wait_for(work(), 60))
        process.communicate("")


def _outside() -> str:
    """An address of this machine that others could reach."""
    found = contact_host("0.0.0.0")
    if found.startswith("127."):
        pytest.skip("this machine is on no network")
    return found


def test_machines_talk_by_tls_without_being_told_to(nothing_is_left) -> None:
    """Who listens where others can reach it speaks TLS there; plain TCP is refused in words, at both ends."""
    host = _outside()
    security = Security(secret="for more than one machine")
    with LocalCluster(n_workers=1, threads_per_worker=1, host=host, security=security) as cluster:
        assert cluster.scheduler_address.startswith(f"tls://{host}:")
        bare = cluster.scheduler_address.removeprefix("tls://")
        for address in (cluster.scheduler_address, bare):
            with Client(address, security=security) as client:
                assert client.submit(inc, 1).result() == 2
                assert all(worker.startswith("tls://") for worker in client.scheduler_info()["workers"])
        with pytest.raises(ConfigurationError, match=r"without encryption.*--plain"):
            Client(f"tcp://{bare}", security=security)
        with pytest.raises(HandshakeError, match="this side speaks TLS"):
            Client(f"tcp://{bare}", security=Security(secret="for more than one machine", plain=True))


def test_plain_is_for_those_that_ask_for_it(nothing_is_left, caplog) -> None:
    """And they are warned; frames are sealed all the same."""
    host = _outside()
    security = Security(secret="for more than one machine", plain=True)

    async def work() -> None:
        async with (
            Scheduler(host=host, security=security) as scheduler,
            Client(scheduler.address, security=security, asynchronous=True) as client,
        ):
            assert scheduler.address.startswith(f"tcp://{host}:")
            assert client._connection._link.session.seal is not None
            async with Client(f"tls://{scheduler.address[6:]}", security=security, asynchronous=True) as other:
                assert other._connection._link.session.seal is None

    with caplog.at_level(logging.WARNING):
        asyncio.run(asyncio.wait_for(work(), 60))
    assert any("not encrypted" in record.getMessage() for record in caplog.records)
    assert any("without encryption" in record.getMessage() for record in caplog.records)


def test_encryption_within_this_machine_where_it_is_required(nothing_is_left) -> None:
    """``require_encryption`` needs no certificates."""
    security = Security(require_encryption=True, secret="for one machine, encrypted")
    with LocalCluster(n_workers=1, threads_per_worker=1, security=security) as cluster:
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
        with Client(cluster.scheduler_address, security=security) as client:
            assert client.submit(inc, 1).result() == 2
        with pytest.raises(HandshakeError, match="TLS only"):
            Client(
                cluster.scheduler_address.replace("tls", "tcp"), security=Security(secret="for one machine, encrypted")
            )
