"""Somebody without the secret sits between two ends of a link: it can break the connection, and nothing else."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal import Client, LocalCluster, Security
from shoal.errors import HandshakeError
from tests.integration.functions import inc

_SECURITY = Security(secret="for those that are between")
_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", security=_SECURITY) as cluster:
        yield cluster


@contextlib.contextmanager
def _relay(mode: str, address: str) -> Iterator[str]:
    """Where a relay listens that treats the first connection as ``mode`` says."""
    host, port = address.partition("://")[2].rsplit(":", 1)
    command = [sys.executable, "-m", "tests.integration.relay", mode, host, port]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as process:
        try:
            assert process.stdout is not None
            yield f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


@pytest.mark.parametrize("mode", ["speak", "behind"])
@pytest.mark.parametrize("sequence", [0, 1])
def test_who_passed_the_handshake_on_may_not_speak(
    shared: LocalCluster, tmp_path: Path, mode: str, sequence: int
) -> None:
    """Nothing of what it says is unpickled, and the victim gets to its scheduler all the same."""
    mark = tmp_path / "ran"
    with (
        _relay(f"{mode}:{sequence}{mark}", shared.scheduler_address) as address,
        Client(f"tcp://{address}", security=_SECURITY, timeout=20) as client,
    ):
        assert client.submit(inc, sequence).result() == sequence + 1
    assert not mark.exists()


@pytest.mark.parametrize("end", ["listener", "dialler"])
@pytest.mark.parametrize("change", ["flip", "repeat", "drop", "replay", "cut", "insert"])
def test_who_meddles_loses_the_connection_and_nobody_a_message(shared: LocalCluster, change: str, end: str) -> None:
    """The conversation goes on on another connection, with all that was said, once."""
    with (
        _relay(f"{change}:{end}", shared.scheduler_address) as address,
        Client(f"tcp://{address}", security=_SECURITY, timeout=20) as client,
    ):
        futures = []
        for number in range(10):
            futures.append(client.submit(inc, number, key=f"{change}-{end}-{number}"))
            time.sleep(0.02)
        assert client.gather(futures) == list(range(1, 11))


def test_what_one_said_does_not_come_back(shared: LocalCluster) -> None:
    """A frame that is sent back to who made it is not taken for the other's."""
    with (
        _relay("reflect", shared.scheduler_address) as address,
        Client(f"tcp://{address}", security=_SECURITY, timeout=20) as client,
    ):
        assert client.submit(inc, 5).result() == 6


def test_who_ends_the_encryption_in_between_is_noticed(shared: LocalCluster) -> None:
    """It has a certificate, and not that of the scheduler; in words, and at once."""
    with (
        _relay("tls", shared.scheduler_address) as address,
        pytest.raises(HandshakeError, match="between"),
    ):
        Client(f"tls://{address}", security=_SECURITY, timeout=60)


def test_who_passes_encrypted_bytes_on_can_do_no_more(shared: LocalCluster) -> None:
    """It may be in between, as a router is."""
    with (
        _relay("", shared.scheduler_address) as address,
        Client(f"tls://{address}", security=_SECURITY) as client,
    ):
        assert client.submit(inc, 7).result() == 8
