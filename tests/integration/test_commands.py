"""Clusters whose parts are started by commands: as subprocesses, and by SSH to a server that this test runs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shoal import Client, Security, SSHCluster, SubprocessCluster
from shoal.errors import StartError, UsageError
from tests.integration.functions import inc
from tests.integration.helpers import until


def test_a_cluster_of_subprocesses(nothing_is_left) -> None:
    """It scales, replaces what dies, has a secret that no command line shows, and leaves nothing."""
    security = Security(secret="only for this one")
    with (
        SubprocessCluster(n_workers=1, threads_per_worker=1, security=security) as cluster,
        Client(cluster, security=security) as client,
    ):
        assert client.gather(client.map(inc, range(5))) == [1, 2, 3, 4, 5]
        cluster.scale(2)
        client.wait_for_workers(2, timeout=30)
        lines = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
        assert not any("only for this one" in line or b"only for this one".hex() in line for line in lines)
        before = {info["pid"] for info in client.scheduler_info()["workers"].values()}
        os.kill(min(before), signal.SIGKILL)
        until(lambda: len({i["pid"] for i in client.scheduler_info()["workers"].values()} - before) == 1, 30)
        assert client.submit(inc, 10).result(timeout=30) == 11
    with pytest.raises(StartError, match="no-such-option"):
        SubprocessCluster(n_workers=0, scheduler_kwargs={"no_such_option": 1})


asyncssh = pytest.importorskip("asyncssh")


class _Server(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False


@pytest.fixture
def ssh_port(nothing_is_left) -> Iterator[int]:
    """The port of an SSH server on this machine that lets anybody on it run commands."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def run(process: Any) -> None:
        child = subprocess.Popen(  # noqa: ASYNC220
            process.command, shell=True, stdin=-1, stdout=-1, stderr=-1, start_new_session=True
        )
        await process.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr)
        process.exit(await asyncio.to_thread(child.wait))

    async def listen() -> Any:
        key = asyncssh.generate_private_key("ssh-ed25519")
        return await asyncssh.create_server(
            _Server, "127.0.0.1", 0, server_host_keys=[key], process_factory=run, encoding=None
        )

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    yield server.sockets[0].getsockname()[1]

    async def close() -> None:
        server.close()
        await server.wait_closed()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await loop.shutdown_default_executor()

    asyncio.run_coroutine_threadsafe(close(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_cluster_by_ssh(ssh_port: int, tmp_path: Path) -> None:
    """Scheduler and workers are started there; they end with their connections."""
    options = {"port": ssh_port, "known_hosts": None, "username": "anybody", "config": None}
    with (
        SSHCluster(["127.0.0.1"] * 3, connect_options=options, worker_options={"nthreads": 1}) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2, timeout=30)
        assert client.gather(client.map(inc, range(5))) == [1, 2, 3, 4, 5]
        assert set(client.nthreads().values()) == {1}
        assert "SSHCluster" in repr(cluster)
    with pytest.raises(StartError, match="cannot be reached by SSH"):
        SSHCluster(["127.0.0.1"] * 2, connect_options={**options, "port": 1})
    with pytest.raises(UsageError, match="hosts"):
        SSHCluster(["alone"])
    with pytest.raises(UsageError, match="connect_options"):
        SSHCluster(["a", "b"], connect_options=[{}])
