"""The engines under comparison, each behind the same few calls. Every one has two single-threaded workers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

ARRAY_BYTES = 128 * 2**20


def inc(x: int) -> int:
    return x + 1


def add(x: int, y: int) -> int:
    return x + y


def make_array(seed: int) -> Any:
    import numpy as np

    return np.full(ARRAY_BYTES // 8, seed, dtype="f8")


def last_of(array: Any) -> float:
    return float(array[-1])


class Engine:
    """What a dask-like client does; engines that differ override it."""

    #: Whether futures may be arguments.
    graphs = True
    #: Whether a task can be bound to a worker.
    pins = True

    def __init__(self, client: Any, close: Callable[[], None]) -> None:
        self.client, self.close = client, close

    def submit(self, function: Any, *args: Any, **options: Any) -> Any:
        return self.client.submit(function, *args, **options)

    def result(self, future: Any) -> Any:
        return future.result()

    def map(self, function: Any, values: Iterable[Any]) -> list[Any]:
        return self.client.gather(self.client.map(function, values))

    def workers(self) -> list[str]:
        return list(self.client.scheduler_info()["workers"])

    def finish(self, future: Any) -> None:
        """Wait until it is done, without bringing the value here."""
        while future.status != "finished":
            time.sleep(0.001)


class Pool(Engine):
    """``concurrent.futures``: the submit-and-result loop."""

    graphs = pins = False

    def map(self, function: Any, values: Iterable[Any]) -> list[Any]:
        return [future.result() for future in [self.client.submit(function, value) for value in values]]

    def finish(self, future: Any) -> None:
        """Its results come back by themselves, so nothing can be told apart."""


class Ray(Engine):
    """Ray, whose functions are wrapped first."""

    pins = False

    def __init__(self, client: Any, close: Callable[[], None]) -> None:
        super().__init__(client, close)
        self._remote: dict[Any, Any] = {}

    def submit(self, function: Any, *args: Any, **options: Any) -> Any:
        if function not in self._remote:
            self._remote[function] = self.client.remote(function)
        return self._remote[function].remote(*args)

    def result(self, future: Any) -> Any:
        return self.client.get(future)

    def map(self, function: Any, values: Iterable[Any]) -> list[Any]:
        return self.client.get([self.submit(function, value) for value in values])

    def finish(self, future: Any) -> None:
        self.client.wait([future], fetch_local=False)


class Frisky(Engine):
    """Frisky, which neither binds tasks to workers nor names them."""

    pins = False

    def finish(self, future: Any) -> None:
        while not future.done:
            time.sleep(0.001)


def _dask_like(module: Any, **options: Any) -> Engine:
    cluster = module.LocalCluster(n_workers=2, threads_per_worker=1, **options)
    client = module.Client(cluster)

    def close() -> None:
        client.close()
        cluster.close()

    return Engine(client, close)


def _shoal() -> Engine:
    import shoal

    return _dask_like(shoal)


def _distributed() -> Engine:
    import distributed

    return _dask_like(distributed, dashboard_address=":0")


def _frisky() -> Engine:
    import frisky

    cluster = frisky.LocalCluster(n_workers=2, threads_per_worker=1, processes=True)
    client = cluster.get_client()

    def close() -> None:
        client.close()
        cluster.close()

    return Frisky(client, close)


def _ray() -> Engine:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    return Ray(ray, ray.shutdown)


def _processpool() -> Engine:
    pool = ProcessPoolExecutor(2)
    return Pool(pool, pool.shutdown)


def _loky() -> Engine:
    from loky import get_reusable_executor

    pool = get_reusable_executor(2)
    return Pool(pool, pool.shutdown)


ENGINES: dict[str, Callable[[], Engine]] = {
    "shoal": _shoal,
    "distributed": _distributed,
    "frisky": _frisky,
    "ray": _ray,
    "processpool": _processpool,
    "loky": _loky,
}


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def scheduler_memory(name: str, count: int) -> float | None:
    """Bytes that the scheduler's own process grows by for each task of a map that waits for a worker."""
    if name == "shoal":
        import shoal

        with shoal.LocalCluster(n_workers=0) as cluster, shoal.Client(cluster) as client:
            return _growth(client, cluster.scheduler_pid, count)
    if name == "distributed":
        from distributed import Client

        with tempfile.TemporaryDirectory() as directory:
            command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"]
            scheduler = subprocess.Popen(
                [*command, "--scheduler-file", f"{directory}/s.json"], stderr=subprocess.DEVNULL
            )
            try:
                with Client(scheduler_file=f"{directory}/s.json") as client:
                    return _growth(client, scheduler.pid, count)
            finally:
                scheduler.terminate()
                scheduler.wait()
    return None


def _growth(client: Any, pid: int, count: int) -> float:
    warm = client.map(inc, range(-2000, 0))
    client.scheduler_info()
    time.sleep(1)
    before = resident(pid)
    futures = client.map(inc, range(count))
    client.scheduler_info()
    time.sleep(1)
    grown = resident(pid) - before
    del futures, warm
    return grown / count
