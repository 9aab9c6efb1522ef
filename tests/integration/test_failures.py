"""Processes that die, ports that are shouted at, options that make no sense."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import dask
import psutil
import pytest

from shoal import Client, KilledWorker, LocalCluster, Nanny, Scheduler, Security, wait
from shoal.core.framing import MAGIC, Codec, pack_frame
from shoal.errors import (
    ClosedClientError,
    ConfigurationError,
    FutureCancelledError,
    HandshakeError,
    SerializationError,
    StartError,
    UsageError,
)
from shoal.messages import Handshake, Hello
from tests.integration.functions import add, inc, leave, slow_inc
from tests.integration.helpers import until


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def test_sigkill_of_the_head_ends_its_workers_and_tells_the_client(
    client: Client, cluster: LocalCluster, tmp_path: Path
) -> None:
    """Also a worker whose task holds the GIL, and never hears of it."""
    assert cluster.scheduler_pid is not None
    workers = children(cluster.scheduler_pid)
    marker = tmp_path / "running"
    stuck = client.submit(hold_the_gil, 60, str(marker))
    until(marker.exists)
    os.kill(cluster.scheduler_pid, signal.SIGKILL)
    with pytest.raises(FutureCancelledError, match="closed"):
        stuck.result(20)
    with pytest.raises(ClosedClientError):
        client.submit(inc, 1)
    until(lambda: gone(workers))


def hold_the_gil(seconds: int, marker: str | None = None) -> None:
    import ctypes

    if marker is not None:
        Path(marker).touch()
    ctypes.PyDLL(None).sleep(seconds)


def test_a_user_program_that_is_killed_leaves_nothing_running(tmp_path: Path) -> None:
    """The head notices that its pipe is closed."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        "from shoal import Client, LocalCluster\n"
        "if __name__ == '__main__':\n"
        "    cluster = LocalCluster(n_workers=2, threads_per_worker=1)\n"
        "    futures = Client(cluster).map(time.sleep, [30, 31])\n"
        "    print('up', flush=True)\n"
        "    time.sleep(60)\n"
    )
    user = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE)
    assert user.stdout is not None
    assert user.stdout.readline() == b"up\n"
    started = children(user.pid)
    assert len(started) == 4  # the head, what forks workers, and two of these
    user.kill()
    user.wait()
    user.stdout.close()
    until(lambda: gone(started))


def test_sigkill_of_a_nanny_ends_its_worker_and_the_work_goes_on(tmp_path: Path) -> None:
    """A nanny by command line; its tasks are computed on another worker."""
    file = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "shoal"]
    started = [subprocess.Popen([*command, "scheduler", "--port", "0", "--scheduler-file", str(file)])]
    try:
        until(file.exists)
        for name in ("one", "two"):
            options = ["--scheduler-file", str(file), "--nthreads", "1", "--name", name]
            started.append(subprocess.Popen([*command, "worker", *options]))
        with Client(scheduler_file=file) as client:
            client.wait_for_workers(2, timeout=30)
            futures = client.map(slow_inc, range(200))
            wait(futures[0], 30)
            workers = children(started[1].pid)
            started[1].kill()
            started[1].wait()
            assert client.submit(add, futures).result(60) == sum(range(1, 201))
            until(lambda: gone(workers))
            assert len(client.nthreads()) == 1
    finally:
        for process in reversed(started):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                assert process.wait(20) == 0


def hello(version: int, role: str = "client") -> bytes:
    body, _ = Codec(Handshake).encode([Hello(version, role, "somebody", b"n" * 16)])
    return b"".join(map(bytes, pack_frame(body, [])))


SHOUTS = {
    "nothing": b"",
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "noise": bytes(range(256)) * 40,
    "a huge body": struct.pack("<HIIII", MAGIC, 0, 0xFFFFFFFF, 0, 0),
    "many buffers": struct.pack("<HIIII", MAGIC, 0xFFFFFF, 10, 0, 0),
    "a pickle": b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n(S'touch /tmp/no'\ntR.",
    "half a header": struct.pack("<HI", MAGIC, 0),
    "another version": hello(999),
    "an unknown role": hello(1, "king"),
}


def test_garbage_on_every_port_closes_that_link_and_harms_nothing(client: Client, cluster: LocalCluster) -> None:
    """Scheduler and workers, while a graph runs."""
    futures = client.map(slow_inc, range(100))
    for address in (cluster.scheduler_address, *client.nthreads()):
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        for data in SHOUTS.values():
            with socket.create_connection((host, int(port)), 5) as stranger:
                stranger.settimeout(15)
                stranger.sendall(data)
                stranger.shutdown(socket.SHUT_WR)
                try:
                    while stranger.recv(4096):
                        pass
                except ConnectionResetError:
                    pass
    assert client.submit(add, futures).result(30) == sum(range(1, 101))
    assert len(client.nthreads()) == 2


def test_a_port_in_use_is_named() -> None:
    """By a cluster, as the typed error of a bad option."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"{port}.*in use"):
            LocalCluster(n_workers=1, scheduler_port=port)
        with pytest.raises(ConfigurationError, match=f"{port}.*in use"):
            LocalCluster(n_workers=1, scheduler_port=port, processes=False)


def test_options_that_make_no_sense_are_named(tmp_path: Path) -> None:
    """At the call, before anything is started."""
    for options, match in [
        ({"n_workers": -1}, "n_workers"),
        ({"threads_per_worker": 0}, "threads_per_worker"),
        ({"scheduler_port": 70_000}, "scheduler_port"),
        ({"host": "0.0.0.0", "security": {"secret": ""}}, "the argument secret is empty"),
        ({"security": "secret"}, "security"),
    ]:
        with pytest.raises(ConfigurationError, match=match):
            LocalCluster(**options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="n_wrokers"):
        Client(n_wrokers=3)
    for address in (42, "here", "tcp://host:port"):
        with pytest.raises(UsageError, match="address"):
            Client(address, timeout=1)
    with pytest.raises(ConfigurationError, match="tls_ca_file"):
        Security(tls_ca_file="ca.pem")
    with pytest.raises(ConfigurationError, match="scheduler_file"):
        Client(scheduler_file=tmp_path / "none.json")
    open_to_all = tmp_path / "open.json"
    open_to_all.write_text('{"address": "tcp://127.0.0.1:1", "secret": "00112233445566778899aabbccddeeff"}')
    open_to_all.chmod(0o644)
    with pytest.raises(ConfigurationError, match="others can read"):
        Client(scheduler_file=open_to_all)


def test_bad_arguments_of_submissions_are_named(client: Client) -> None:
    """And the cluster goes on."""
    for options, match in [
        ({"workers": 5.5}, "workers"),
        ({"retries": -1}, "retries"),
        ({"priority": "high"}, "priority"),
        ({"resources": {"GPU": "two"}}, "resources"),
        ({"allow_other_workers": True}, "allow_other_workers"),
    ]:
        with pytest.raises(UsageError, match=match):
            client.submit(inc, 1, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="callable"):
        client.submit(5)  # type: ignore[arg-type]
    with pytest.raises(SerializationError, match="function"):
        client.submit(lambda: socket.socket().accept.__self__ and lock_holder)
    with pytest.raises(RuntimeError, match="ycle"):
        client.get({"a": (inc, "b"), "b": (inc, "a")}, "a")
    with pytest.raises(UsageError, match="another client"), Client(client.cluster) as other:
        client.gather(other.submit(inc, 1))
    assert client.submit(inc, 1).result(30) == 2


lock_holder = __import__("threading").Lock()


def test_an_unknown_option_of_the_configuration_is_a_warning_with_advice() -> None:
    """It suggests the nearest one."""
    code = (
        "import dask.config; dask.config.set({'shoal.scheduler.baklog': 1}); import shoal.config as c; c.get('shoal')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "did you mean 'shoal.scheduler.backlog'" in done.stderr


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The error of the worker process is the cluster's."""
    for method, module in (("spawn", "worker_main"), ("forkserver", "fork_server")):

        async def work(method: str = method, module: str = module) -> None:
            path = str(_exiting(tmp_path, module))
            with dask.config.set({"distributed.worker.multiprocessing-method": method, "shoal.nanny.crash-limit": 2}):
                async with Scheduler() as scheduler:
                    with pytest.raises(StartError, match="status 3"):
                        await Nanny(scheduler.address, nthreads=1, env={"PYTHONPATH": path})

        asyncio.run(asyncio.wait_for(work(), 30))


def _exiting(directory: Path, module: str) -> Path:
    """A directory whose ``sitecustomize`` ends worker processes at their start."""
    (directory / "sitecustomize.py").write_text(
        f"import os, sys\nif 'shoal.programs.{module}' in ' '.join(sys.orig_argv): os._exit(3)\n"
    )
    return directory


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, monkeypatch) -> None:
    """And one that is not there is made, for its owner alone."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with LocalCluster(n_workers=0):
        path = tmp_path / "shoal" / "secret"
        assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        LocalCluster(n_workers=0)


def test_killed_worker_says_who_when_and_why(client: Client) -> None:
    """Worker, reason and what ran beside it, for each death."""
    with pytest.raises(KilledWorker, match="status 7") as info:
        client.submit(leave, 7).result(60)
    assert "allowed-failures" in str(info.value)
    assert all("tcp://" in death for death in info.value.deaths)


def test_a_scheduler_of_another_secret_is_said_to_be(tmp_path: Path) -> None:
    """In words, and not as somebody who does not answer."""
    with LocalCluster(n_workers=0, security=Security(secret="ours, and nobody else's")) as cluster:
        with pytest.raises(HandshakeError, match="secret"):
            Client(cluster.scheduler_address, timeout=60)
        cluster.get_client().write_scheduler_file(tmp_path / "s.json")
        with Client(scheduler_file=tmp_path / "s.json") as client:
            assert client.nthreads() == {}


def test_callbacks_and_futures_after_close(client: Client) -> None:
    """A closed client says that it is closed; its pending futures are cancelled."""
    future = client.submit(time.sleep, 30)
    client.close()
    assert future.cancelled()
    with pytest.raises(ClosedClientError, match="closed by its user"):
        client.submit(inc, 1)
    with pytest.raises(ClosedClientError):
        client.scheduler_info()
    client.close()


def test_ctrl_c_interrupts_the_wait_and_not_the_cluster() -> None:
    """The processes of the cluster are not in the terminal's group."""
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, warnings.catch_warnings():
        assert cluster.scheduler_pid is not None
        group = os.getpgid(0)
        assert all(
            os.getpgid(p.pid) != group
            for p in [psutil.Process(cluster.scheduler_pid), *children(cluster.scheduler_pid)]
        )


def test_loops_are_not_blocked_by_waiting_on_them(client: Client) -> None:
    """On the client's own loop, calls that wait are awaited."""

    async def waiting() -> tuple[int, bool]:
        info = await client.scheduler_info()
        return info["n_workers"] + await client.submit(len, "abc"), client.asynchronous

    assert asyncio.run_coroutine_threadsafe(waiting(), client.loop).result(10) == (5, True)
    assert client.sync(waiting) == (5, True)
    assert not client.asynchronous
    with pytest.raises(TimeoutError):
        client.sync(asyncio.sleep, 10, callback_timeout=0.05)
