"""Tasks with a process of their own: ended when they take too long or are cancelled; their worker outlives them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest

from shoal import Client, Future, LocalCluster, Reschedule, get_client, get_worker
from shoal.errors import TaskProcessDied, TaskTimeoutError, UsageError
from tests.integration.functions import inc
from tests.integration.helpers import until


def _sleep(seconds: float, mark: str = "") -> int:
    if mark:
        Path(mark).write_text(str(os.getpid()))
    time.sleep(seconds)
    return os.getpid()


def _hold(seconds: float) -> None:
    """Holds the interpreter's lock."""
    import ctypes

    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def _start_child(mark: str) -> None:
    child = subprocess.Popen(["sleep", "600"])
    Path(mark).write_text(str(child.pid))
    time.sleep(600)


def test_a_task_that_takes_too_long_is_ended(client: Client) -> None:
    """Also one that holds the interpreter's lock; others of the same worker go on, and so do retries."""
    worker = client.submit(os.getpid).result()
    with pytest.raises(TaskTimeoutError, match=r"timeout of 0\.3 s"):
        client.submit(_sleep, 60, task_timeout="300 ms").result(timeout=20)
    assert isinstance(client.submit(_hold, 60, task_timeout=0.3).exception(timeout=20), TimeoutError)
    assert client.submit(_sleep, 0.01, task_timeout=20).result() != worker
    assert sorted(client.gather(client.map(inc, range(10)))) == list(range(1, 11))
    for bad in (0, -1, "soon"):
        with pytest.raises(ValueError, match="task_timeout"):
            client.submit(inc, 1, task_timeout=bad)
    with pytest.raises(UsageError, match="actors"):
        client.submit(_Counter, actor=True, killable=True)


class _Counter:
    pass


def test_a_cancelled_task_is_ended(client: Client, tmp_path: Path) -> None:
    """When nobody wants it any more, by force if others do, and what it has started ends with it."""
    mark = tmp_path / "pid"
    future = client.submit(_sleep, 600, str(mark), killable=True)
    until(mark.exists)
    until(mark.read_text)
    pid = int(mark.read_text())
    with Client(client.cluster, set_as_default=False) as other:
        wanted = Future(future.key, other)
        future.cancel()
        time.sleep(0.3)
        assert psutil.pid_exists(pid), "the other client wants it still"
        other.cancel(wanted, force=True)
        until(lambda: not psutil.pid_exists(pid))
    child = tmp_path / "child"
    third = client.submit(_start_child, str(child), killable=True)
    until(child.exists)
    until(child.read_text)
    del third
    until(lambda: not psutil.pid_exists(int(child.read_text())))
    assert client.submit(inc, 1).result() == 2
    assert all(info["status"] == "running" for info in client.scheduler_info()["workers"].values())


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _exit() -> None:
    os._exit(3)


def _raise() -> None:
    raise ZeroDivisionError("over there")


_tries = 0


def _third_time() -> int:
    global _tries
    _tries += 1
    if _tries < 3:
        raise Reschedule
    return _tries


def test_whatever_a_task_does_its_worker_goes_on(client: Client) -> None:
    """A crash, an exit, an error, a wish to be tried again."""
    pids = {info["pid"] for info in client.scheduler_info()["workers"].values()}
    with pytest.raises(TaskProcessDied, match="SIGSEGV"):
        client.submit(_crash, killable=True).result()
    with pytest.raises(TaskProcessDied, match="status 3"):
        client.submit(_exit, killable=True).result()
    future = client.submit(_raise, killable=True)
    with pytest.raises(ZeroDivisionError, match="over there") as caught:
        future.result()
    assert "_raise" in [entry.name for entry in caught.traceback]
    assert client.submit(_third_time, killable=True, pure=False).result(timeout=20) >= 3
    assert {info["pid"] for info in client.scheduler_info()["workers"].values()} == pids
    with pytest.raises(TypeError, match="cannot be pickled"):
        client.submit(threading.Lock, killable=True).result()


def _look() -> tuple[str, str, int]:
    worker = get_worker()
    with pytest.raises(AttributeError, match="process of its own"):
        worker.core
    return worker.name, worker.address, get_client().submit(inc, 1).result()


async def _later() -> int:
    return 5


def test_what_such_tasks_can_do(nothing_is_left) -> None:
    """Inputs and results of any size, clients of their own, coroutines, graphs, the process used again."""
    with LocalCluster(n_workers=1, threads_per_worker=2) as cluster, Client(cluster) as client:
        array = client.submit(np.arange, 1_000_000)
        doubled = client.submit(lambda x: x * 2, array, killable=True)
        assert client.submit(np.sum, doubled).result() == 999_999_000_000
        name, address, found = client.submit(_look, killable=True).result()
        assert (name, found) == ("0", 2)
        assert address in client.scheduler_info()["workers"]
        assert client.submit(_later, killable=True).result() == 5
        with dask.annotate(killable=True):
            lazy = [dask.delayed(_sleep, pure=False)(0.01) for _ in range(6)]
        pids = dask.compute(*lazy, optimize_graph=False)
        assert len(set(pids)) <= 2
        assert not set(pids) & {info["pid"] for info in client.scheduler_info()["workers"].values()}
        with dask.annotate(timeout="200 ms"):
            late = dask.delayed(_sleep, pure=False)(60)
        with pytest.raises(TaskTimeoutError):
            client.compute(late, optimize_graph=False, sync=True)
        with client.get_executor(task_timeout=0.2) as executor:
            assert isinstance(executor.submit(_sleep, 60).exception(timeout=20), TimeoutError)


def _take(nbytes: int) -> int:
    data = bytearray(nbytes)
    time.sleep(0.3)
    return len(data)


def test_a_process_that_ends_while_it_is_idle_is_no_tasks_fault(nothing_is_left) -> None:
    """The next task gets another one."""
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        pid = client.submit(os.getpid, killable=True).result()
        os.kill(pid, signal.SIGKILL)
        until(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE if psutil.pid_exists(pid) else True)
        assert client.submit(os.getpid, killable=True, pure=False).result() != pid


def test_how_much_memory_tasks_take(client: Client) -> None:
    """On the future, and in the task stream: exact with a process of its own, sampled without."""
    for killable in (True, False):
        future = client.submit(_take, 200_000_000 + killable, killable=killable)
        future.result()
        assert future.peak_memory is not None
        assert 190e6 < future.peak_memory < 260e6
    peaks = [row["peak_memory"] for row in client.get_task_stream()]
    assert max(peaks) > 190e6
    short = client.submit(inc, 1)
    short.result()
    assert short.peak_memory is None


def test_a_worker_that_leaves_ends_its_tasks_processes(nothing_is_left, tmp_path: Path) -> None:
    """By being killed, or closed, in the middle of one."""
    mark = tmp_path / "pid"
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        future = client.submit(_sleep, 600, str(mark), killable=True, retries=3)
        until(mark.exists)
        until(mark.read_text)
        first = int(mark.read_text())
        os.kill(next(iter(client.scheduler_info()["workers"].values()))["pid"], signal.SIGKILL)
        until(lambda: not psutil.pid_exists(first))
        until(lambda: int(mark.read_text() or first) != first)
        second = int(mark.read_text())
        del future
    until(lambda: not psutil.pid_exists(second))
