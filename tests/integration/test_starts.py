"""Workers that cannot be started, and ends that would not come: each is told in words, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest

from shoal import Client, LocalCluster, Nanny, Scheduler
from shoal.errors import StartError
from tests.integration.helpers import until


def _die() -> None:
    os._exit(4)


def test_a_scratch_directory_that_is_removed_is_made_again(tmp_path: Path) -> None:
    """A cleaner took it, then the worker died: the nanny starts another, also a second time, and closes."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, local_directory=tmp_path) as cluster,
        Client(cluster) as client,
    ):
        pids = {client.submit(os.getpid, pure=False).result(10)}
        for count in (2, 3):
            for path in tmp_path.iterdir():
                shutil.rmtree(path)
            os.kill(client.submit(os.getpid, pure=False).result(10), signal.SIGKILL)
            pids.add(client.submit(os.getpid, pure=False).result(20))
            until(lambda count=count: len(pids | {client.submit(os.getpid, pure=False).result(10)}) == count)
            pids.add(client.submit(os.getpid, pure=False).result(10))


def _fork_server(client: Client) -> psutil.Process:
    return psutil.Process(client.submit(os.getppid, pure=False).result(10))


def test_a_process_that_forks_workers_is_replaced_when_it_is_killed() -> None:
    """Its workers end with it, and are started again by another."""
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        server = _fork_server(client)
        server.kill()
        assert client.submit(abs, -5).result(20) == 5
        until(lambda: len(client.scheduler_info()["workers"]) == 2)
        assert _fork_server(client).pid != server.pid


def test_a_process_that_forks_workers_and_hangs_is_replaced() -> None:
    """It is stopped: the death of a worker is noticed all the same, and another process forks the next."""
    with dask.config.set({"shoal.nanny.start-timeout": "3s"}):
        with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
            server = _fork_server(client)
            worker = psutil.Process(client.submit(os.getpid).result(10))
            server.suspend()
            worker.kill()
            assert client.submit(abs, -5).result(30) == 5
        assert not server.is_running()


@pytest.fixture
def few_descriptors() -> Iterator[Any]:
    """Sets how many descriptors this process may have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda count: resource.setrlimit(resource.RLIMIT_NOFILE, (count, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("method", "env", "words"),
    [
        ("forkserver", {"A": "\ud800"}, "could not be started"),
        ("forkserver", {"A": "a\0b"}, "could not be started"),
        ("spawn", {"A": "\ud800"}, "could not be started"),
        ("spawn", "no executable", "No such file"),
        ("forkserver", "no executable", "No such file"),
        ("forkserver", "descriptors", "descriptors|open files"),
        ("spawn", "descriptors", "descriptors|open files"),
    ],
)
def test_every_error_at_a_start_is_a_start_that_failed(
    method: str, env: Any, words: str, monkeypatch: pytest.MonkeyPatch, few_descriptors: Any
) -> None:
    """It is tried again, given up with its words, and whatever it was, the nanny closes and leaves nothing."""

    async def main() -> None:
        async with Scheduler() as scheduler:
            nanny = Nanny(scheduler.address, nthreads=1, env=env if isinstance(env, dict) else {"N": method})
            if env == "no executable":
                monkeypatch.setattr(sys, "executable", "/there/is/no/such/file")
            try:
                starting = asyncio.ensure_future(nanny.start())
                if env == "descriptors":
                    while nanny.program is None or nanny.program.core.incarnation == 0:
                        await asyncio.sleep(0)
                    # Low enough that the next descriptors cannot be had; those that there are stay.
                    few_descriptors(len(os.listdir("/proc/self/fd")) + 3)
                with pytest.raises(StartError, match=words):
                    await starting
            finally:
                await nanny.close()

    settings = {"distributed.worker.multiprocessing-method": method, "shoal.nanny.crash-limit": 2}
    with dask.config.set(settings):
        asyncio.run(asyncio.wait_for(main(), 30))


OWNER = """
import os, sys, time
import dask
from shoal import Client, LocalCluster

def wedge(dask_scheduler, how):
    if how == "loop":
        time.sleep(1000)
    elif how == "nanny":
        from shoal.programs.nanny import NannyProgram
        async def close(self, *args, **kwargs):
            import asyncio
            await asyncio.sleep(1000)
        NannyProgram.close = close

if __name__ == "__main__":
    dask.config.set({"shoal.deploy.closing-timeout": "1s"})
    how = sys.argv[1]
    if how == "starting":
        print(os.getpid(), flush=True)
    cluster = LocalCluster(n_workers=2, threads_per_worker=1)
    client = Client(cluster)
    if how != "nanny":
        client.run_on_scheduler(wedge, how=how) if how != "loop" else None
    else:
        client.run_on_scheduler(wedge, how=how)
    print(cluster.scheduler_pid, flush=True)
    if how == "loop":
        client.run_on_scheduler(wedge, how=how)
    time.sleep(1000)
"""


@pytest.mark.parametrize("how", ["starting", "loop", "nanny"])
def test_a_head_whose_owner_is_gone_ends(how: str, tmp_path: Path) -> None:
    """The owner is killed while it starts, while the scheduler's loop stands still, while no nanny ends."""
    script = tmp_path / "owner.py"
    script.write_text(textwrap.dedent(OWNER))
    with subprocess.Popen([sys.executable, str(script), how], stdout=subprocess.PIPE, cwd=tmp_path) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        until(lambda: psutil.Process(owner.pid).children(recursive=True))
        below = psutil.Process(owner.pid).children(recursive=True)
        owner.kill()
    until(lambda: not [process for process in below if process.is_running() and process.status() != "zombie"])


def _never(dask_scheduler: Any) -> None:
    import time

    time.sleep(1000)


def test_a_local_cluster_that_does_not_end_is_killed() -> None:
    """Its scheduler stands still: ``close`` returns all the same, with nothing left."""
    with dask.config.set({"shoal.deploy.closing-timeout": "0.5s"}):
        with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
            client = Client(cluster, asynchronous=False)
            assert cluster.scheduler_pid is not None
            head = psutil.Process(cluster.scheduler_pid)
            below = [head, *head.children(recursive=True)]
            head.suspend()
        assert not [process for process in below if process.is_running() and process.status() != "zombie"]
        client.close()
