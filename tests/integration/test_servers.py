"""Schedulers, workers and nannies as objects: what their methods and arguments do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shoal import Client, LocalCluster, Nanny, Scheduler, SchedulerPlugin, Status, Worker, WorkerPlugin, get_worker
from shoal.errors import ConfigurationError, UsageError
from tests.integration.functions import inc


class _Plugin(SchedulerPlugin):
    name = "plugin"

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def start(self, scheduler: Any) -> None:
        self.seen.append("start")

    def add_worker(self, scheduler: Any, worker: str) -> None:
        self.seen.append(worker)

    async def close(self) -> None:
        self.seen.append("close")


class _WorkerPlugin(WorkerPlugin):
    name = "mine"

    def setup(self, worker: Any) -> None:
        worker.mark = "set"

    def teardown(self, worker: Any) -> None:
        worker.mark = "torn down"


class _Broken(WorkerPlugin):
    def setup(self, worker: Any) -> None:
        raise ValueError("no")


def _current() -> Any:
    return get_worker().get_current_task()


async def _scheduler() -> None:
    plugin = _Plugin()
    async with Scheduler(plugins=[plugin], allowed_failures=1, worker_ttl="1 minute", validate=True) as scheduler:
        assert scheduler.status == Status.running
        assert scheduler.program.core.settings.worker_ttl == 60
        async with (
            Worker(scheduler.address, nthreads=1, name="a") as a,
            Worker(scheduler.address, nthreads=2, name="b") as b,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            assert plugin.seen == ["start", a.address, b.address]
            assert scheduler.identity()["n_workers"] == 2
            assert scheduler.workers_list(None) == [a.address, b.address]
            assert scheduler.workers_list(["b"]) == [b.address]
            future = client.submit(inc, 1, workers="a")
            assert await future == 2
            assert not (await scheduler.replicate([future.key], n=2))["failed"]
            assert len((await client.who_has([future]))[future.key]) == 2
            assert not (await scheduler.rebalance())["failed"]
            assert scheduler.get_task_stream(count=1)[0]["key"] == future.key
            assert scheduler.story(future.key)
            assert future.key in (await scheduler.get_cluster_state(exclude=["story"]))["tasks"]
            scheduler.log_event("topic", {"x": 1})
            assert scheduler.get_events("topic")[-1][1] == {"x": 1}
            assert isinstance(scheduler.get_logs(n=1), list)
            assert await scheduler.run_function(None, lambda dask_scheduler: dask_scheduler is scheduler) is True
            assert scheduler.adaptive_target() >= 1
            assert scheduler.workers_to_close(n=1, attribute="name") in (["a"], ["b"])
            assert b.address in (await scheduler.retire_workers(["b"]))["retired"]
            await scheduler.remove_plugin("plugin")
            assert plugin.seen[-1] == "close"
            await scheduler.add_plugin(plugin, name="other")
            await scheduler.register_scheduler_plugin(plugin, name="other", idempotent=True)
            assert plugin.seen.count("start") == 2
            assert "retired" in await scheduler.remove_worker(a.address)
            with pytest.raises(UsageError, match="name the plugin"):
                await scheduler.remove_plugin()


def test_what_a_scheduler_is_asked_for() -> None:
    """In its own process, without a client."""
    asyncio.run(_scheduler())


async def _worker() -> None:
    async with Scheduler() as scheduler, Client(scheduler.address, asynchronous=True) as client:
        metrics = {"answer": lambda worker: 42, "broken": lambda worker: 1 / 0}
        plugin = _WorkerPlugin()
        async with Worker(
            scheduler.address, nthreads=1, plugins=[plugin], metrics=metrics, heartbeat_interval="50 ms"
        ) as worker:
            assert worker.mark == "set"
            future = client.submit(_current)
            assert await future == future.key
            assert (await worker.get_metrics())["answer"] == 42
            assert (await worker.get_metrics())["broken"] is None
            while (await client.scheduler_info())["workers"][worker.address]["metrics"].get("answer") != 42:
                await asyncio.sleep(0.02)
            assert await worker.plugin_remove("mine") == {"status": "OK"}
            assert worker.mark == "torn down"
            assert (await worker.plugin_add(_Broken()))["status"] == "error"
            with pytest.raises(ValueError, match="no"):
                await worker.plugin_add(_Broken(), catch_errors=False)
            worker.log_event("topic", 1)
            worker.trigger_profile()
            with pytest.raises(ValueError, match="no task"):
                worker.get_current_task()
            await worker.close(timeout=1, executor_wait=False, nanny=False)
            assert worker.status == Status.closed


def test_what_a_worker_is_asked_for() -> None:
    """Plugins, metrics, its current task."""
    asyncio.run(_worker())


async def _nanny() -> None:
    async with (
        Scheduler() as scheduler,
        Nanny(scheduler.address, nthreads=1) as nanny,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        assert nanny.is_alive()
        pid, address = nanny.pid, nanny.worker_address
        assert address in (await client.scheduler_info())["workers"]
        assert nanny.worker_dir
        assert await nanny.restart(timeout=20) == "OK"
        assert nanny.pid != pid
        await nanny.kill(timeout=2)
        assert not nanny.is_alive()
        assert await nanny.instantiate() == "running"
        assert await client.submit(inc, 1) == 2
        nanny.log_event("topic", 1)
        await nanny.close_gracefully()


def test_what_a_nanny_is_asked_for() -> None:
    """Its process killed, started, restarted."""
    asyncio.run(_nanny())


class _Special(Worker):
    def answer(self) -> int:
        return 42


def _ask() -> tuple[int, Any]:
    worker = get_worker()
    return worker.answer(), worker._metrics and sorted(worker._metrics)


@pytest.mark.parametrize("processes", [True, False])
def test_a_local_cluster_hands_arguments_on(nothing_is_left, processes: bool) -> None:
    """A class of workers, arguments of workers and of the scheduler; what nobody knows is an error here."""
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=processes,
            worker_class=_Special,
            metrics={"x": _ask},
            scheduler_kwargs={"allowed_failures": 7} if processes else None,
            dashboard_address=None,
            protocol="tcp",
            ip="127.0.0.1",
        ) as cluster,
        Client(cluster) as client,
    ):
        assert client.submit(_ask).result() == (42, ["x"])
        if processes:
            assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.core.settings.allowed_failures) == 7
        with pytest.raises(NotImplementedError, match="scale"):
            cluster.start_worker()
        assert cluster.dashboard_link == client.dashboard_link == ""
        cluster.name = "mine"
        assert "mine" in repr(cluster)


def test_arguments_that_make_no_sense_are_refused_at_once() -> None:
    """Naming the one."""
    for arguments, error in [
        ({"nonsense": 1}, TypeError),
        ({"scheduler_kwargs": {"nonsense": 1}}, TypeError),
        ({"protocol": "carrier pigeon"}, ConfigurationError),
        ({"host": "127.0.0.1", "interface": "lo"}, ConfigurationError),
        ({"worker_class": int}, ConfigurationError),
    ]:
        with pytest.raises(error, match=next(iter(arguments)) if "host" not in arguments else "interface"):
            LocalCluster(n_workers=0, **arguments)
