"""Worker processes end in every way there is; what users are told of it, and what is left."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest

from shoal import Client, KilledWorker, LocalCluster
from shoal.programs.processes import METHODS
from shoal.shell.scratch import space
from tests.integration.functions import inc, pid
from tests.integration.helpers import until


def segfault() -> None:
    ctypes.string_at(0)


def exits(status: int) -> None:
    sys.stderr.write("my last words\n")
    sys.stderr.flush()
    os._exit(status)


def kill_myself(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def grab_at_once(nbytes: int) -> int:
    """As fast as memory can be had, and then nothing."""
    held = bytearray(nbytes)
    time.sleep(60)
    return len(held)


def wait_for(path: str) -> None:
    until(lambda: os.path.exists(path), 60)


DEATHS: dict[str, tuple[Any, tuple[Any, ...], str, str]] = {
    "status": (exits, (3,), r"exited with status 3.*my last words", "exit"),
    "segfault": (segfault, (), r"signal 11 \(SIGSEGV\).*native code.*Segmentation fault", "signal"),
    "sigkill": (
        kill_myself,
        (signal.SIGKILL,),
        r"signal 9 \(SIGKILL\), and not by its nanny.*peaked at \d+ MB",
        "signal",
    ),
    "memory": (grab_at_once, (400_000_000,), r"used \d+ MB, over 95% of its memory limit of 300 MB", "memory"),
}


ADVICE = {
    "status": "ends the process",
    "segfault": "A library that it calls crashed",
    "sigkill": "lower memory_limit",
    "memory": "raise memory_limit",
}


@pytest.mark.parametrize("how", DEATHS)
def test_the_error_says_how_the_workers_died_and_what_ran_beside(how: str, tmp_path: Path) -> None:
    """After as many deaths as are allowed; the scheduler, the events and the nanny's log say the same (C11, C19)."""
    function, args, text, cause = DEATHS[how]
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(n_workers=1, threads_per_worker=2, memory_limit="300 MB") as cluster,
        Client(cluster) as client,
    ):
        beside = client.submit(wait_for, str(tmp_path / "go"), key="innocent")
        until(lambda: "innocent" in str(client.processing()))
        bad = client.submit(function, *args, key="culprit")
        with pytest.raises(KilledWorker, match=rf"(?s)'culprit' was running on 2 workers.*{text}") as caught:
            bad.result(60)
        assert "beside it ran innocent" in str(caught.value)
        assert ADVICE[how] in str(caught.value)
        assert len(caught.value.deaths) == 2
        (tmp_path / "go").touch()
        with pytest.raises(KilledWorker, match="'innocent'"):  # it was in a thread of both, like the other
            beside.result(20)
        assert client.submit(inc, 1).result(20) == 2
        died = [msg for _, msg in client.get_events("all") if msg["action"] == "worker-died"]
        assert [msg["cause"] for msg in died] == [cause, cause]
        assert set(died[0]["running"]) == {"culprit", "innocent"}
        found = client.scheduler_info()
        assert found["deaths"] == {cause: 2}
        (nanny,) = found["nannies"].values()
        assert (nanny["restarts"], len(nanny["recoveries"])) == (2, 2)
        assert all(0 < seconds < 20 for seconds in nanny["recoveries"])
        told = " ".join(line for lines in client.get_nanny_logs().values() for _, line in lines)
        if how == "status":
            assert "my last words" in told


def random_numbers() -> tuple[float, float]:
    import random

    import numpy as np

    return random.random(), float(np.random.random())


def is_imported(name: str) -> bool:
    return name in sys.modules


def variable(name: str) -> str | None:
    return os.environ.get(name)


def at_exec(name: str) -> str | None:
    """A variable as it was when this process (or what it was forked from) was executed."""
    content = Path("/proc/self/environ").read_bytes().split(b"\0")
    found = dict(entry.decode().split("=", 1) for entry in content if b"=" in entry)
    return found.get(name)


@pytest.mark.parametrize("method", METHODS)
def test_each_way_to_start_a_process(method: str) -> None:
    """It works, comes back after a death, has its environment, its title and its own random numbers."""
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": method}),
        dask.config.set({"shoal.nanny.fork-imports": ["wave"]}),
        LocalCluster(n_workers=2, threads_per_worker=1, env={"SHOAL_TEST": 1}) as cluster,
        Client(cluster) as client,
    ):
        assert set(client.run(is_imported, "wave").values()) == {method == "forkserver"}
        if method != "fork":
            assert set(client.run(at_exec, "OMP_NUM_THREADS").values()) == {"1"}
            assert set(client.run(at_exec, "SHOAL_TEST").values()) == {"1"}
        assert set(client.run(variable, "SHOAL_TEST").values()) == {"1"}
        assert set(client.run(variable, "PYTHONHASHSEED").values()) == {"6640"}
        assert len(set(client.run(hash, "text").values())) == 1
        first, second = client.run(random_numbers).values()
        assert first[0] != second[0]
        assert first[1] != second[1]
        workers = client.run(os.getpid)
        for number in workers.values():
            assert psutil.Process(number).cmdline()[0].startswith("shoal worker ")
        victim = next(iter(workers.values()))
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(client.nthreads()) == 2 and victim not in client.run(os.getpid, on_error="ignore").values())
        assert client.gather(client.map(inc, range(20))) == list(range(1, 21))


def start_a_child(path: str) -> int:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    Path(path).write_text(str(child.pid))
    return child.pid


def test_what_a_task_started_ends_with_its_worker(tmp_path: Path) -> None:
    """Also when the worker is killed."""
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        child = client.submit(start_a_child, str(tmp_path / "pid")).result(20)
        assert psutil.pid_exists(child)
        os.kill(client.submit(pid, pure=False).result(20), signal.SIGKILL)
        until(lambda: not psutil.pid_exists(child))


def test_what_a_task_started_lives_on_where_that_is_wished(tmp_path: Path) -> None:
    """``distributed.worker.daemon: false``."""
    with (
        dask.config.set({"distributed.worker.daemon": False}),
        LocalCluster(n_workers=1, threads_per_worker=1) as cluster,
        Client(cluster) as client,
    ):
        child = client.submit(start_a_child, str(tmp_path / "pid")).result(20)
        number = client.submit(pid, pure=False).result(20)
        os.kill(number, signal.SIGKILL)
        assert client.submit(pid, pure=False).result(20) != number
    try:
        assert psutil.pid_exists(child)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("wedge", ["stopped", "gil"])
def test_a_wedged_worker_is_restarted_when_asked(wedge: str, tmp_path: Path) -> None:
    """One that does not run, and one that is in a C call which never returns."""
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        number = client.submit(pid, pure=False).result(20)
        if wedge == "stopped":
            os.kill(number, signal.SIGSTOP)
        else:
            stuck = client.submit(hold_the_gil, str(tmp_path / "in"))
            until((tmp_path / "in").exists)
            del stuck
        client.restart(timeout=30)
        assert client.submit(pid, pure=False).result(20) != number


def hold_the_gil(marker: str) -> None:
    Path(marker).touch()
    ctypes.PyDLL(None).sleep(600)


@pytest.mark.parametrize("wedge", ["stopped", "gil"])
def test_n4_a_wedged_worker_is_noticed_and_replaced(wedge: str, tmp_path: Path) -> None:
    """After ``worker-ttl``; its task is tried elsewhere and given up in the end, with the reason (C9)."""
    settings = {"distributed.scheduler.worker-ttl": "1.5s", "distributed.scheduler.allowed-failures": 0}
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=1, threads_per_worker=1) as cluster,
        Client(cluster) as client,
    ):
        number = client.submit(pid, pure=False).result(20)
        if wedge == "stopped":
            os.kill(number, signal.SIGSTOP)
            after = client.submit(pid, pure=False)
        else:
            with pytest.raises(KilledWorker, match=r"not heard of for \d+ s \(worker-ttl is 1\.5 s\)"):
                client.submit(hold_the_gil, str(tmp_path / "in")).result(60)
            after = client.submit(pid, pure=False)
        assert after.result(60) != number
        assert client.scheduler_info()["deaths"] == {"silent": 1}


def test_what_a_crash_leaves_is_removed_by_whoever_starts_next() -> None:
    """Scratch directories of a cluster whose processes were all killed."""
    cluster = LocalCluster(n_workers=1, threads_per_worker=1)
    with Client(cluster) as client:
        assert client.submit(inc, 1).result(20) == 2
        assert cluster.scheduler_pid is not None
        os.kill(cluster.scheduler_pid, signal.SIGKILL)
    cluster.close()
    assert list(space().glob("nanny-*/worker-*"))
    with (
        LocalCluster(n_workers=0),
        LocalCluster(n_workers=1, threads_per_worker=1) as cluster,
        Client(cluster) as client,
    ):
        assert len(list(space().glob("nanny-*.lock"))) == 1
        assert client.run(lambda dask_worker: os.path.isdir(dask_worker.local_directory))
    assert not list(space().iterdir())


def test_c2_a_worker_that_says_why_it_cannot_start_and_ends_at_once_is_quoted(tmp_path: Path) -> None:
    """N3, C1, C6, C14: once, with its cause, after starts that are further and further apart; nothing is left of it."""
    from shoal.errors import StartError

    with (
        dask.config.set({"distributed.worker.preload": ["no_such_module_at_all"], "shoal.nanny.crash-limit": 2}),
        pytest.raises(StartError, match=r"failed to start 2 times in a row.*no_such_module_at_all"),
    ):
        LocalCluster(n_workers=1)


def test_c20_a_cluster_is_closed_while_its_workers_break() -> None:
    """Nothing hangs, nothing is left."""
    for _ in range(3):
        cluster = LocalCluster(n_workers=3, threads_per_worker=1)
        with Client(cluster) as client:
            workers = list(client.run(os.getpid).values())
            futures = client.map(inc, range(50))
            for number in workers:
                os.kill(number, signal.SIGKILL)
            cluster.close()
        assert not any(psutil.pid_exists(number) for number in workers)
        del futures


def test_n9_a_machine_that_was_suspended() -> None:
    """All of its processes stop for longer than ``worker-ttl`` and go on: nobody is taken for dead."""
    with (
        dask.config.set({"distributed.scheduler.worker-ttl": "1s"}),
        LocalCluster(n_workers=2, threads_per_worker=1) as cluster,
        Client(cluster) as client,
    ):
        assert cluster.scheduler_pid is not None
        before = client.run(os.getpid)
        futures = client.map(inc, range(10))
        head = psutil.Process(cluster.scheduler_pid)
        processes = [head, *head.children(recursive=True)]
        for process in processes:
            process.suspend()
        time.sleep(2.5)
        for process in reversed(processes):
            process.resume()
        assert client.gather(futures) == list(range(1, 11))
        time.sleep(1.5)
        assert client.run(os.getpid) == before


def test_c7_a_worker_that_does_not_end_when_it_is_told_is_killed(tmp_path: Path) -> None:
    """And there is never a second one beside it."""
    cluster = LocalCluster(n_workers=1, threads_per_worker=1)
    with Client(cluster) as client:
        number = client.submit(pid, pure=False).result(20)
        stuck = client.submit(hold_the_gil, str(tmp_path / "in"))
        until((tmp_path / "in").exists)
        cluster.close()
        del stuck
    assert not psutil.pid_exists(number)


def test_a_worker_that_is_told_to_end_from_outside_blames_nobody(tmp_path: Path) -> None:
    """It says goodbye; what it ran is run again, however often that happens."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0, "shoal.worker.retire-timeout": "2s"}),
        LocalCluster(n_workers=1, threads_per_worker=1) as cluster,
        Client(cluster) as client,
    ):
        waiting = client.submit(wait_for, str(tmp_path / "go"), key="waiting")
        for _ in range(3):
            until(lambda: "waiting" in str(client.call_stack()))
            (number,) = client.run(os.getpid).values()
            os.kill(number, signal.SIGTERM)
            until(lambda number=number: number not in client.run(os.getpid, on_error="ignore").values())
        (tmp_path / "go").touch()
        assert waiting.result(20) is None
