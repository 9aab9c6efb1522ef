"""Clusters that grow and shrink: by hand, by themselves, and with managers of machines of any kind."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any, ClassVar

import dask
import numpy as np
import pytest

from shoal import Adaptive, Client, LocalCluster, Nanny, ProcessInterface, Scheduler, SpecCluster, Worker
from shoal.errors import StartError, UsageError
from tests.integration.functions import inc
from tests.integration.helpers import until
from tests.integration.test_leaving import counted, executions, names
from tests.integration.test_nannies import eventually, run


def nap(x: int, seconds: float = 0.05) -> int:
    time.sleep(seconds)
    return x


@pytest.mark.parametrize("processes", [True, False])
def test_up_and_down_under_load_with_scattered_data(processes: bool, tmp_path: Path) -> None:
    """1 → 4 → 1, twice: every task runs once, and nothing that was put there is lost."""
    log = tmp_path / "log"
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=processes, memory_limit=0) as cluster,
        Client(cluster) as client,
    ):
        data = client.scatter([np.arange(1000) + n for n in range(4)], hash=False)
        futures = client.map(counted, [str(log)] * 120, range(120))
        for _ in range(2):
            cluster.scale(4)
            cluster.wait_for_workers(4, timeout=30)
            data += client.scatter([np.arange(1000) + n for n in range(len(data), len(data) + 4)], hash=False)
            time.sleep(0.3)
            cluster.scale(1)
            until(lambda: len(cluster.plan) == 1 and len(names(client)) == 1)
        assert client.gather(futures) == [10 * n for n in range(120)]
        assert [int(one.result()[0]) for one in data] == list(range(12))
        assert len(cluster.workers) == 1
        logs = cluster.get_logs()
        assert logs["Cluster"].count("retired: the cluster is scaled to 1 workers") == 6
        assert "is to leave" in logs["Scheduler"] or not processes
        assert len(logs) == 3
        assert "<details>" in logs._repr_html_()
        assert set(cluster.logs(scheduler=False, workers=False)) == {"Cluster"}
    assert executions(log) == list(range(120))


def test_scale_to_nothing_and_back() -> None:
    """Tasks wait for workers; what clients hold keeps a worker."""
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        cluster.scale(0)
        until(lambda: not names(client))
        future = client.submit(inc, 1)
        time.sleep(0.2)
        assert future.status == "pending"
        cluster.scale(2)
        assert future.result(30) == 2
        cluster.scale(0)
        until(lambda: len(names(client)) == 1)
        until(lambda: "could not retire" in cluster.get_logs(workers=False)["Cluster"])
        assert future.result() == 2
        assert len(cluster.plan) == len(cluster.workers) == 1


def test_scale_by_cores_and_memory() -> None:
    with LocalCluster(n_workers=0, threads_per_worker=2, memory_limit="1 GiB") as cluster:
        cluster.scale(cores=5)
        assert len(cluster.plan) in (0, 3)
        cluster.wait_for_workers(3, timeout=30)
        cluster.scale(memory="4 GiB")
        cluster.wait_for_workers(4, timeout=30)
        assert "workers=4, threads=8, memory=4.00 GiB" in repr(cluster)
        for bad in ({"n": -1}, {"n": 1.5}, {"cores": -1}, {"memory": "much"}):
            with pytest.raises((UsageError, ValueError)):
                cluster.scale(**bad)


def test_contradictory_scales_end_with_the_last() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        for n in (4, 0, 3, 1, 2):
            cluster.scale(n)
        until(lambda: len(names(client)) == 2 and len(cluster.plan) == 2 and len(cluster.workers) == 2)
        time.sleep(0.5)
        assert len(names(client)) == 2


def _end_soon(dask_worker: Any) -> None:
    asyncio.get_running_loop().call_later(0.1, dask_worker.end, "enough")


def test_a_worker_that_gives_up_is_replaced() -> None:
    """Its nanny has closed: another takes its place. One that a client retired is not to come back."""
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        before = {info["pid"] for info in client.scheduler_info()["workers"].values()}
        client.run(_end_soon, nanny=True)
        until(lambda: len(names(client)) == 2 and not before & {
            info["pid"] for info in client.scheduler_info()["workers"].values()
        })  # fmt: skip
        assert "is replaced" in cluster.get_logs(workers=False)["Cluster"]
        client.retire_workers(n=1)
        until(lambda: len(cluster.plan) == 1)
        time.sleep(0.3)
        assert len(names(client)) == 1


def test_specifications() -> None:
    """Workers of several kinds, in one process and in others; more of one kind; names; contexts."""

    async def work() -> None:
        workers = {
            "plain": {"cls": Worker, "options": {"nthreads": 1}},
            7: {"cls": Nanny, "options": {"nthreads": 2}},
        }
        async with SpecCluster(
            workers,
            scheduler={"cls": Scheduler, "options": {}},
            worker={"cls": Worker, "options": {"nthreads": 3, "resources": {"R": 1}}},
            asynchronous=True,
            name="mixed",
        ) as cluster:
            assert cluster.status == "running"
            await cluster.wait_for_workers(2)
            assert cluster.plan == cluster.requested == cluster.observed == {"plain", 7}
            assert cluster.called_from_running_loop
            async with Client(cluster, asynchronous=True) as client:
                assert await client.submit(inc, 1) == 2
                await cluster.scale(3)
                await client.wait_for_workers(3, timeout=20)
                assert sum((await client.nthreads()).values()) == 6
                assert await client.submit(inc, 3, resources={"R": 1}) == 4
                await cluster.scale_down([7])
                assert cluster.plan == {"plain", 0}
                assert 7 not in cluster.workers
                assert "mixed" in repr(cluster)
                assert "<table>" in cluster._repr_html_()
                assert (await cluster.get_logs())["Cluster"].count("retired") == 1
        assert cluster.status == "closed"
        await cluster.close()

    run(work())


class Machine(ProcessInterface):
    """A machine that takes a while to come, runs a nanny, and ends a while after it was told to."""

    made: ClassVar[list[Machine]] = []

    def __init__(self, scheduler: str, name: Any, delay: float = 0.2, broken: int = 0, **options: Any) -> None:
        super().__init__(scheduler, name)
        self.delay, self.options = delay, options
        self.broken = len([one for one in self.made if one.name == name]) < broken
        self.nanny: Nanny | None = None
        self._booting: asyncio.Task[None] | None = None
        self.made.append(self)

    async def start(self) -> None:
        if self.broken:
            raise OSError("no such machine type")
        self._booting = asyncio.create_task(self._boot())
        await super().start()

    async def _boot(self) -> None:
        await asyncio.sleep(self.delay)
        self.nanny = await Nanny(self.scheduler, name=self.name, nthreads=1, **self.options)

    async def close(self) -> None:
        if self._booting is not None:
            await self._booting
        await asyncio.sleep(2 * self.delay)  # the machine ends late
        if self.nanny is not None:
            await self.nanny.close()
        await super().close()


def test_the_race_with_machines_that_end_late(tmp_path: Path) -> None:
    """A manager that scales from six to one, whose machines end seconds after they were told to."""
    Machine.made.clear()
    log = tmp_path / "log"

    async def work() -> None:
        spec = {"cls": Machine, "options": {"delay": 0.5}}
        async with (
            SpecCluster(dict.fromkeys(range(6), spec), worker=spec, asynchronous=True) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            await cluster.wait_for_workers(6, timeout=30)
            data = await client.scatter([np.arange(1000) + n for n in range(12)])
            futures = client.map(counted, [str(log)] * 100, range(100))
            await asyncio.sleep(0.3)
            await cluster.scale(1)
            await eventually(lambda: len(cluster.workers) == 1 and len(cluster._workers) == 1)
            await asyncio.sleep(1.5)
            assert len(cluster._workers) == 1, "somebody came back"
            assert await client.gather(futures) == [10 * n for n in range(100)]
            assert [int(one[0]) for one in await client.gather(data)] == list(range(12))

    run(work())
    assert executions(log) == list(range(100))
    assert len(Machine.made) == 6


def test_machines_that_fail_to_start_are_tried_again() -> None:
    Machine.made.clear()

    async def work() -> None:
        spec = {"cls": Machine, "options": {"delay": 0.01, "broken": 2}}
        async with SpecCluster({}, worker=spec, asynchronous=True) as cluster:
            await cluster.scale(1)
            await cluster.wait_for_workers(1, timeout=20)
            assert len(Machine.made) == 3
            assert "no such machine type" in (await cluster.get_logs(workers=False))["Cluster"]
        with pytest.raises(StartError, match="no such machine type"):
            await SpecCluster({"a": {"cls": Machine, "options": {"broken": 9}}}, asynchronous=True)
        with pytest.raises(UsageError, match="under 'cls'"):
            SpecCluster({"a": {"options": {}}}, asynchronous=True)
        async with SpecCluster({}, asynchronous=True) as bare:
            with pytest.raises(UsageError, match="worker="):
                bare.scale(1)

    run(work())


def test_a_worker_that_does_not_come_back_is_replaced() -> None:
    """Its machine is there, and it is not."""
    Machine.made.clear()

    async def work() -> None:
        spec = {"cls": Machine, "options": {"delay": 0.01, "reconnect": False}}
        with dask.config.set({"distributed.deploy.lost-worker-timeout": "300 ms"}):
            async with SpecCluster({"a": spec}, asynchronous=True) as cluster:
                await cluster.wait_for_workers(1, timeout=20)
                first = cluster.workers["a"]
                os.kill(first.nanny.pid, signal.SIGKILL)
                await eventually(lambda: cluster.workers.get("a") not in (None, first))
                await cluster.wait_for_workers(1, timeout=20)

    run(work())


class Pair(ProcessInterface):
    """A job with two workers."""

    async def start(self) -> None:
        self.pair = [await Worker(self.scheduler, name=f"{self.name}-{n}", nthreads=1) for n in range(2)]
        await super().start()

    async def close(self) -> None:
        for worker in self.pair:
            await worker.close()
        await super().close()


def test_jobs_with_several_workers() -> None:
    async def work() -> None:
        spec = {"cls": Pair, "options": {}, "group": ["-0", "-1"]}
        async with (
            SpecCluster({"a": spec}, worker=spec, asynchronous=True) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            await cluster.scale(3)
            await cluster.wait_for_workers(6, timeout=20)
            assert cluster.observed == {"a", 0, 1}
            await client.scatter(list(range(12)))
            await cluster.scale(1)
            await eventually(lambda: len(cluster._workers) == 2 and len(cluster.plan) == 1)

    run(work())


# ---------------------------------------------------------------------------------------------- adaptive


def test_adapts_to_bursts_from_and_to_nothing(tmp_path: Path) -> None:
    """It comes up for work, goes down to nothing without it, and computes everything once."""
    log = tmp_path / "log"
    with LocalCluster(n_workers=0, threads_per_worker=1) as cluster, Client(cluster) as client:
        adaptive = cluster.adapt(
            minimum=0, maximum=4, interval="50 ms", wait_count=2, target_duration="500 ms"
        )  # fmt: skip
        assert isinstance(adaptive, Adaptive)
        for burst in range(2):
            futures = client.map(counted, [str(log)] * 60, range(60 * burst, 60 * burst + 60))
            assert client.gather(futures) == [10 * n for n in range(60 * burst, 60 * burst + 60)]
            most = max(told["target"] for _, told in adaptive.log if told["status"] == "up")
            assert 2 <= most <= 4
            del futures
            until(lambda: not names(client) and not cluster.plan)
        assert [told["status"] for _, told in adaptive.log][:2] != []
        assert "adaptive" in repr(cluster)
        assert "<table>" in adaptive._repr_html_()
    assert executions(log) == list(range(120))


def test_results_that_are_held_keep_workers() -> None:
    """Adapting to nothing loses nothing."""
    with LocalCluster(n_workers=0, threads_per_worker=1) as cluster, Client(cluster) as client:
        cluster.adapt(minimum=0, maximum=3, interval="50 ms", wait_count=2, target_duration="300 ms")
        futures = client.map(nap, range(40))
        assert client.gather(futures) == list(range(40))
        until(lambda: len(names(client)) == 1)
        time.sleep(0.5)
        assert client.submit(sum, futures).result() == sum(range(40))


def test_no_flapping_on_a_steady_load() -> None:
    """Two and a half workers' worth of work, for a while: the number of workers settles."""
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        adaptive = cluster.adapt(minimum=1, maximum=6, interval="50 ms", target_duration="500 ms")
        began = time.monotonic()
        futures = []
        settled = None
        while time.monotonic() - began < 6:
            futures.append(client.submit(nap, len(futures), 0.1, pure=False))
            time.sleep(0.04)
            if settled is None and time.monotonic() - began > 3:
                settled = len(adaptive.log)
        client.gather(futures)
        assert len(adaptive.log) - (settled or 0) <= 2, list(adaptive.log)


def test_new_limits_take_the_place_of_the_old() -> None:
    with LocalCluster(n_workers=0, threads_per_worker=1) as cluster, Client(cluster) as client:
        first = cluster.adapt(minimum=1, maximum=1, interval="50 ms")
        cluster.wait_for_workers(1, timeout=20)
        second = cluster.adapt(minimum=2, maximum=3, interval="50 ms")
        assert first.stopped
        cluster.wait_for_workers(2, timeout=20)
        cluster.scale(1)
        assert "scale" in second.stopped
        until(lambda: len(names(client)) == 1)
        for bad in ({"minimum": -1}, {"minimum": 3, "maximum": 2}, {"wait_count": 0}, {"colour": 1}):
            with pytest.raises(UsageError):
                cluster.adapt(**bad)
        cores = cluster.adapt(minimum_cores=2, maximum_cores=3)
        assert (cores.minimum, cores.maximum) == (2, 3)


def test_a_cluster_in_a_notebook() -> None:
    widgets = pytest.importorskip("ipywidgets")
    from shoal.deploy.widget import make

    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        panel = make(cluster)
        assert isinstance(panel, widgets.VBox)
        status, by_hand, by_itself, said = panel.children
        assert "LocalCluster" in status.value
        by_hand.children[0].value = 2
        by_hand.children[1].click()
        cluster.wait_for_workers(2, timeout=20)
        by_hand.children[0].value = -1
        by_hand.children[1].click()
        assert "n must be" in said.value
        by_itself.children[1].value = 2
        by_itself.children[2].click()
        assert cluster._adaptive is not None


@pytest.mark.parametrize("processes", [True, False])
def test_a_client_shuts_it_down(processes: bool) -> None:
    """The cluster says that it has failed, starts nothing anew, and can be closed."""
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=processes) as cluster:
        Client(cluster).shutdown()
        until(lambda: cluster.status == "failed")
        assert "the scheduler has ended" in "\n".join(text for _, text in cluster._lines)
        time.sleep(0.2)
    assert cluster.status == "closed"
