"""Links by TLS: certificates of one cluster, of files, of strangers."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import pytest

from shoal import Client, LocalCluster, Nanny, Scheduler, Security, SubprocessCluster, Worker
from shoal.errors import ConfigurationError, ConnectError, HandshakeError
from tests.integration.functions import inc


def _files(directory: Path) -> dict[str, str]:
    """Arguments of Security for certificates that are in files."""
    security = Security.temporary()
    cert, key = directory / "cert.pem", directory / "key.pem"
    cert.write_text(security.tls_ca_file)
    key.write_text(security.tls_client_key)
    named = {"tls_ca_file": str(cert)}
    for role in ("scheduler", "worker", "client"):
        named |= {f"tls_{role}_cert": str(cert), f"tls_{role}_key": str(key)}
    return named


class _Tap(threading.Thread):
    """Passes a connection on, and keeps what went by."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._target, self.seen = target, bytearray()
        self._open: list[socket.socket] = []
        self.start()

    def run(self) -> None:
        while True:
            try:
                one, _ = self._listener.accept()
            except OSError:
                return
            other = socket.create_connection(self._target)
            self._open += [one, other]
            for source, sink in ((one, other), (other, one)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self.seen += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._open:
            try:
                one.shutdown(socket.SHUT_RDWR)  # wakes who reads from it
            except OSError:
                pass
            one.close()
        self.join(5)


def test_a_cluster_with_certificates_of_its_own(nothing_is_left) -> None:
    """Clients come by TLS; what goes by on the network cannot be read; strangers and plain speakers are turned away."""
    security = Security.temporary()
    with LocalCluster(n_workers=2, threads_per_worker=1, security=security) as cluster:
        assert cluster.scheduler_address.startswith("tls://")
        host, _, port = cluster.scheduler_address[len("tls://") :].rpartition(":")
        tap = _Tap((host, int(port)))
        with Client(f"tls://127.0.0.1:{tap.port}", security=security) as client:
            assert client.submit(str.upper, "a very secret text").result() == "A VERY SECRET TEXT"
            array = client.scatter(np.arange(500_000))
            assert client.submit(np.sum, array).result() == 124_999_750_000
            assert all(address.startswith("tls://") for address in client.scheduler_info()["workers"])
        tap.close()
        assert len(tap.seen) > 1000
        assert b"secret text" not in tap.seen
        assert b"SECRET TEXT" not in tap.seen
        with Client(cluster) as client:
            assert client.gather(client.map(inc, range(10))) == list(range(1, 11))
        for other in (Security.temporary(), Security.temporary(secret="another one than theirs")):
            with pytest.raises((HandshakeError, ConnectError)):
                Client(cluster.scheduler_address, security=other, timeout=2)
        with pytest.raises(ConnectError, match="certificate"):
            Client(cluster.scheduler_address, timeout=2)
        with pytest.raises(ConfigurationError, match="without encryption"):
            Client(f"tcp://{host}:{port}", security=security, timeout=2)
        with pytest.raises((HandshakeError, ConnectError)):
            Client(f"tcp://{host}:{port}", timeout=2)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection((host, int(port))) as plain, pytest.raises(ssl.SSLError):  # noqa: SIM117
            with context.wrap_socket(plain) as bare:
                bare.sendall(b"hello")
                assert bare.recv(100) == b"", "who shows no certificate hears nothing"
                raise ssl.SSLError("closed")
        with Client(cluster) as client:
            assert client.submit(inc, 1).result() == 2


def test_certificates_made_by_the_way(nothing_is_left) -> None:
    """``security=True``: of the cluster, or of the one that a client starts; others get them from it."""
    with LocalCluster(n_workers=1, threads_per_worker=1, security=True) as cluster:
        with Client(cluster.scheduler_address, security=cluster.security) as client:
            assert client.submit(inc, 1).result() == 2
        with pytest.raises((HandshakeError, ConnectError)):
            Client(cluster.scheduler_address, security=True, timeout=2)
    with Client(n_workers=1, threads_per_worker=1, security=True) as client:
        assert client.scheduler_address.startswith("tls://")
        with Client(client.scheduler_address, security=client.cluster.security, set_as_default=False) as other:
            assert other.submit(inc, 1).result() == 2


async def _by_tls_alone(security: Security) -> None:
    async with (
        Scheduler(security=security, protocol="tls") as scheduler,
        Worker(scheduler.address, nthreads=1, name="a", security=security) as one,
        Nanny(scheduler.address, nthreads=1, name="b", security=security),
        Client(scheduler.address, security=security, asynchronous=True) as client,
    ):
        assert scheduler.address.startswith("tls://")
        assert one.address.startswith("tls://")
        array = client.submit(np.arange, 300_000, workers="a")
        assert await client.submit(np.sum, array, workers="b") == 44_999_850_000
        assert (await array)[-1] == 299_999


def test_each_part_by_tls(tmp_path: Path) -> None:
    """Scheduler, worker and nanny as objects, with certificates from files, or from the configuration."""
    named = _files(tmp_path)
    asyncio.run(_by_tls_alone(Security(**named, require_encryption=True)))
    tree: dict[str, Any] = {"distributed.comm.tls.ca-file": named["tls_ca_file"]}
    for role in ("scheduler", "worker", "client"):
        tree[f"distributed.comm.tls.{role}.cert"] = named[f"tls_{role}_cert"]
        tree[f"distributed.comm.tls.{role}.key"] = named[f"tls_{role}_key"]
    with dask.config.set(tree):
        asyncio.run(_by_tls_alone(Security()))


def test_commands_by_tls(nothing_is_left) -> None:
    """Processes get the certificates by stdin, as they get the secret."""
    with (
        SubprocessCluster(n_workers=1, threads_per_worker=1, security=Security.temporary()) as cluster,
        Client(cluster) as client,
    ):
        assert cluster.scheduler_address.startswith("tls://")
        assert client.submit(inc, 1).result() == 2


def test_certificates_that_make_no_sense(tmp_path: Path) -> None:
    """Each is named."""
    named = _files(tmp_path)
    with pytest.raises(ConfigurationError, match=r"tls_ca_file: there is no file"):
        Security(tls_ca_file="/nowhere.pem")
    with pytest.raises(ConfigurationError, match="plain"):
        Security(require_encryption=True, plain=True)
    with pytest.raises(ConfigurationError, match="plain"):
        Security(**named, plain=True)
    with pytest.raises(ConfigurationError, match="tls_nonsense is no argument"):
        Security(tls_nonsense=1)
    with pytest.raises(ConfigurationError, match=r"1\.2 or 1\.3"):
        Security(**named, tls_min_version=1.1)
    security = Security(tls_ca_file=named["tls_ca_file"])
    with pytest.raises(ConfigurationError, match="tls_scheduler_cert is not given"):
        security.get_listen_args("scheduler")
    (tmp_path / "broken.pem").write_text("nothing")
    broken = Security(**{**named, "tls_worker_key": str(tmp_path / "broken.pem")})
    with pytest.raises(ConfigurationError, match=r"broken\.pem"):
        broken.get_connection_args("worker")
    assert Security(**named).get_connection_args("client")["ssl_context"].verify_mode is ssl.CERT_REQUIRED
    assert Security(**named).get_tls_config_for_role("worker")["key"] == named["tls_worker_key"]
    assert "certificates" in repr(Security(**named))
    with pytest.raises(ConfigurationError, match="role"):
        security.get_tls_config_for_role("nobody")
