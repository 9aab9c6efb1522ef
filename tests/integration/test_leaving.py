"""Retirement with real processes: nothing is lost, nobody comes back, and everyone hears of it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from shoal import Client, LocalCluster, Nanny, Scheduler, SchedulerPlugin, Worker
from shoal.errors import UsageError
from tests.integration.functions import inc
from tests.integration.helpers import until
from tests.integration.test_nannies import eventually, run

COMMAND = [sys.executable, "-m", "shoal"]


def array(seed: int) -> Any:
    return np.full(20_000, seed)


def counted(path: str, x: int) -> int:
    """Leave a line for each execution."""
    with open(path, "a") as file:
        file.write(f"{x}\n")
    time.sleep(0.05)
    return 10 * x


def names(client: Client) -> list[str]:
    return sorted(info["name"] for info in client.scheduler_info()["workers"].values())


def executions(path: Path) -> list[int]:
    return sorted(int(line) for line in path.read_text().split())


@pytest.mark.parametrize("how", ["address", "name", "id", "host", "names"])
def test_one_leaves_with_all_that_only_it_holds(how: str, client: Client, tmp_path: Path) -> None:
    """Scattered data and results are elsewhere, nothing is computed again, and its processes are gone."""
    log = tmp_path / "log"
    info = client.scheduler_info()["workers"]
    address, known = next(iter(info.items()))
    data = client.scatter([np.arange(50_000) + n for n in range(6)], broadcast=False)
    results = client.map(counted, [str(log)] * 20, range(20))
    assert client.gather(results) == [10 * n for n in range(20)]
    if how == "names":
        told = client.retire_workers(names=[known["name"]])
    elif how == "host":
        with pytest.raises(UsageError, match="not both"):
            client.retire_workers(["x"], n=1)
        told = client.retire_workers([known["host"]])  # all are there: one has to stay
    else:
        told = client.retire_workers({"address": address, "name": known["name"], "id": known["server_id"]}[how])
    assert len(told) == 1
    (left,) = told.values()
    assert left["keys_moved"] > 0
    assert left["bytes_moved"] > 50_000
    assert len(client.scheduler_info()["workers"]) == 1
    assert [int(client.submit(np.sum, one, pure=False).result()) for one in data] == [
        int((np.arange(50_000) + n).sum()) for n in range(6)
    ]
    assert client.gather(results) == [10 * n for n in range(20)]
    assert executions(log) == list(range(20))
    until(lambda: not psutil.pid_exists(left["pid"]))


def test_criteria() -> None:
    """How many go, how many stay, and which go together."""
    with LocalCluster(n_workers=4, threads_per_worker=1) as cluster, Client(cluster) as client:
        data = client.scatter(np.arange(1000), workers=["3"])
        assert len(client.retire_workers(n=1)) == 1
        assert "3" in names(client), "the one that holds data is needed most"
        told = client.retire_workers(target=2, key="name")
        assert len(told) == 1
        assert len(client.retire_workers(n=1, key=lambda worker: worker.name == "3")) == 1
        assert names(client) == ["3"]
        assert client.retire_workers(n=1) == {}
        with pytest.raises(UsageError, match="n must be"):
            client.retire_workers(n=-1)
        with pytest.raises(UsageError, match="'color'"):
            client.retire_workers(color="red")
        with pytest.raises(UsageError, match="workers must be"):
            client.retire_workers([1.5])
        assert int(data.result().sum()) == 499500


def test_the_last_holder_stays_and_says_why(client: Client, caplog: Any) -> None:
    data = client.scatter({"x": 1})["x"]
    with caplog.at_level(logging.WARNING, "shoal.client"):
        told = client.retire_workers(list(client.scheduler_info()["workers"]))
    assert len(told) == 1
    assert "it holds the only copy of 'x'" in caplog.text
    assert client.submit(inc, data).result() == 2
    told = client.retire_workers(list(client.scheduler_info()["workers"]), force=True)
    assert next(iter(told.values()))["lost"]


def test_a_running_task_is_let_finish_or_runs_elsewhere(client: Client, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    slow = client.submit(lambda: begun.touch() or time.sleep(1.0))
    until(begun.exists)  # until then it is given back, and runs elsewhere
    (busy,) = [address for address, keys in client.processing().items() if keys]
    assert list(client.retire_workers(busy)) == [busy]
    assert slow.done()
    assert slow.result() is None


def test_patience(client: Client) -> None:
    slow = client.submit(time.sleep, 5.0)
    until(lambda: any(client.processing().values()))
    (busy,) = [address for address, keys in client.processing().items() if keys]
    began = time.monotonic()
    assert list(client.retire_workers(busy, timeout="0.2 s")) == [busy]
    assert time.monotonic() - began < 5
    assert slow.status == "pending"


def test_without_closing_it_stays_idle_and_cannot_come_back(tmp_path: Path) -> None:
    """The story of the specification, with machines that end seconds later."""

    async def work() -> None:
        log = tmp_path / "log"
        async with Scheduler() as scheduler, Client(scheduler.address, asynchronous=True) as client:
            nannies = [await Nanny(scheduler.address, nthreads=1, name=f"n{n}") for n in range(5)]
            data = [await client.scatter(np.arange(1000) + n, workers=[f"n{n}"]) for n in range(5)]
            results = client.map(counted, [str(log)] * 60, range(60))
            await asyncio.sleep(0.3)
            leaving = [nanny.name for nanny in nannies[1:]]
            told = await client.retire_workers(leaving, close_workers=False)
            assert len(told) == 4
            for nanny in nannies[1:]:
                assert nanny.is_alive(), "it is ended by whoever asked"
            assert [w.name for w in scheduler.core.state.workers.values()] == ["n0"]
            # A worker that dies now is not started again; and one that were would be refused.
            os.kill(nannies[1].pid, signal.SIGKILL)
            await eventually(lambda: nannies[1].status == "closed")
            await asyncio.sleep(1.5)  # heartbeats come, and are answered
            assert len(scheduler.core.state.workers) == 1
            for nanny in nannies[2:]:
                assert nanny.is_alive()
                await nanny.close()
            assert await client.gather(results) == [10 * n for n in range(60)]
            for n, one in enumerate(data):
                assert int((await one)[0]) == n
            await nannies[0].close()
        assert executions(log) == list(range(60)), "something was computed twice"

    run(work())


def test_events_and_plugins_hear_in_order(client: Client) -> None:
    class Heard(SchedulerPlugin):
        name = "heard"

        def __init__(self) -> None:
            self.said: list[Any] = []

        def retire(self, scheduler: Any, worker: str, reason: str) -> None:
            self.said.append(("retire", worker, reason))

        def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
            self.said.append(("remove_worker", worker, kwargs["safe"], kwargs["expected"], kwargs["reason"]))

    client.register_plugin(Heard())
    client.scatter([1, 2, 3])
    address = next(iter(client.scheduler_info()["workers"]))
    client.retire_workers(address, reason="it rains")
    said = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.plugins["heard"].said)
    assert [tuple(one) for one in said] == [
        ("retire", address, "it rains"),
        ("remove_worker", address, True, True, "it rains"),
    ]
    (event,) = [msg for _, msg in client.get_events("all") if msg["action"] == "retired"]
    assert event["reason"] == "it rains"
    assert event["worker"] == address
    assert {"keys_moved", "bytes_moved", "seconds"} <= event.keys()


def test_plugins_may_keep_workers(client: Client) -> None:
    """``valid_workers_downscaling`` says which may go where it is not said which are to."""

    class Keep(SchedulerPlugin):
        def valid_workers_downscaling(self, scheduler: Any, workers: list[Any]) -> list[Any]:
            return [worker for worker in workers if worker.name != "0"]

    client.register_plugin(Keep(), name="keep")
    assert [info["name"] for info in client.retire_workers(n=2).values()] == ["1"]


def test_lifetime(tmp_path: Path) -> None:
    """A worker goes when its time is over; its nanny starts another, and scattered data survives it."""

    async def work() -> None:
        async with Scheduler() as scheduler, Client(scheduler.address, asynchronous=True) as client:
            keeper = await Nanny(scheduler.address, nthreads=1, name="keeper")
            mortal = await Nanny(
                scheduler.address, nthreads=1, name="mortal", lifetime="1 s", lifetime_stagger="100 ms",
                lifetime_restart=True,
            )  # fmt: skip
            data = await client.scatter(np.arange(1000), workers=["mortal"])
            first = mortal.pid
            await eventually(lambda: mortal.is_alive() and mortal.pid not in (None, first))
            assert int((await data).sum()) == 499500
            assert (await client.submit(inc, 1, workers=["mortal"])) == 2
            short = await Worker(scheduler.address, nthreads=1, name="short", lifetime="0.3 s")
            more = await client.scatter(np.arange(10), workers=["short"])
            await eventually(lambda: short.status == "closed")
            assert int((await more).sum()) == 45
            await mortal.close()
            await keeper.close()

    run(work())


def test_a_worker_closes_gracefully() -> None:
    async def work() -> None:
        async with (
            Scheduler() as scheduler,
            Client(scheduler.address, asynchronous=True) as client,
            Worker(scheduler.address, nthreads=1, name="a") as worker,
            Worker(scheduler.address, nthreads=1, name="b"),
        ):
            data = await client.scatter(np.arange(100), workers=["a"])
            await worker.close_gracefully()
            assert worker.status == "closed"
            assert int((await data).sum()) == 4950
            nanny = await Nanny(scheduler.address, nthreads=1, name="c")
            more = await client.scatter(np.arange(10), workers=["c"])
            await nanny.retire()
            assert nanny.status == "closed"
            assert int((await more).sum()) == 45

    run(work())


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_sigterm_to_a_worker_command(nanny: str, tmp_path: Path) -> None:
    """What only it holds is elsewhere before it ends; a Slurm step signals all of its processes."""
    file = tmp_path / "scheduler.json"
    scheduler = subprocess.Popen([*COMMAND, "scheduler", "--port", "0", "--scheduler-file", str(file)])
    until(file.exists)
    workers = [
        subprocess.Popen([*COMMAND, "worker", "--scheduler-file", str(file), "--nthreads", "1", "--name", name, nanny])
        for name in ("a", "b")
    ]
    try:
        with Client(json.loads(file.read_text())["address"]) as client:
            client.wait_for_workers(2, timeout=30)
            data = client.scatter(np.arange(100_000), workers=["a"])
            for process in [*psutil.Process(workers[0].pid).children(recursive=True), workers[0]]:
                process.send_signal(signal.SIGTERM)
            assert workers[0].wait(20) == 0
            assert names(client) == ["b"]
            assert int(data.result().sum()) == int(np.arange(100_000).sum())
            events = [msg["reason"] for _, msg in client.get_events("all") if msg["action"] == "retired"]
            assert "SIGTERM" in events[0]
    finally:
        for process in (*workers, scheduler):
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


def test_one_of_several_workers_of_a_command_leaves(tmp_path: Path) -> None:
    """The others go on."""
    file = tmp_path / "scheduler.json"
    scheduler = subprocess.Popen([*COMMAND, "scheduler", "--port", "0", "--scheduler-file", str(file)])
    until(file.exists)
    options = ["--scheduler-file", str(file), "--nthreads", "1", "--nworkers", "2", "--name", "w"]
    workers = subprocess.Popen([*COMMAND, "worker", *options])
    try:
        with Client(json.loads(file.read_text())["address"]) as client:
            client.wait_for_workers(2, timeout=30)
            data = client.scatter(np.arange(1000), workers=["w-0"])
            assert len(client.retire_workers("w-0")) == 1
            time.sleep(0.5)
            assert workers.poll() is None
            assert names(client) == ["w-1"]
            assert int(data.result().sum()) == 499500
            client.retire_workers("w-1", force=True)
            assert workers.wait(20) == 0
    finally:
        for process in (workers, scheduler):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


def test_sigterm_to_a_worker_process_alone(client: Client) -> None:
    """It retires, and its nanny starts another."""
    address, info = next(iter(client.scheduler_info()["workers"].items()))
    data = client.scatter(np.arange(1000), workers=[address])
    os.kill(info["pid"], signal.SIGTERM)
    until(lambda: info["pid"] not in [one["pid"] for one in client.scheduler_info()["workers"].values()])
    assert int(data.result().sum()) == 499500
    client.wait_for_workers(2, timeout=20)


def test_an_idle_cluster_closes(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    command = [*COMMAND, "scheduler", "--port", "0", "--scheduler-file", str(file), "--idle-timeout", "1 s"]
    scheduler = subprocess.Popen(command)
    until(file.exists)
    worker = subprocess.Popen([*COMMAND, "worker", "--scheduler-file", str(file), "--nthreads", "1"])
    try:
        with Client(json.loads(file.read_text())["address"]) as client:
            client.wait_for_workers(1, timeout=30)
            assert client.submit(time.sleep, 1.5).result() is None  # work is not idle
            assert scheduler.poll() is None
            assert scheduler.wait(20) == 0
            assert worker.wait(20) == 0
    finally:
        for process in (worker, scheduler):
            if process.poll() is None:
                process.kill()
                process.wait()


def test_replicate(client: Client) -> None:
    one = client.scatter(np.arange(100))
    two = client.submit(inc, 1)
    client.replicate([one, two])
    assert {key: len(holders) for key, holders in client.who_has().items()} == {one.key: 2, two.key: 2}
    client.amm.run_once()
    time.sleep(0.3)
    assert all(len(holders) == 2 for holders in client.who_has().values()), "what was asked for is dropped"
    three = client.submit(inc, 2)
    client.replicate(three, n=1)
    with pytest.raises(UsageError, match="n must be"):
        client.replicate(one, n=0)
    with pytest.raises(UsageError, match="nobody"):
        client.replicate(three, workers=["nobody"])


def test_rebalance() -> None:
    with LocalCluster(n_workers=3, threads_per_worker=1, memory_limit=0) as cluster, Client(cluster) as client:
        data = client.scatter([np.arange(10_000) + n for n in range(30)], workers=["0"])
        client.rebalance()
        held = sorted(len(keys) for keys in client.has_what().values())
        assert held[0] >= 8
        assert sum(held) == 30
        assert [int(one.result()[0]) for one in data] == list(range(30))


def test_memory_manager(client: Client) -> None:
    """Copies that were left from fetching inputs go; policies of users run."""
    assert client.amm.running()
    client.amm.stop()
    assert not client.amm.running()
    one, two = list(client.scheduler_info()["workers"])
    data = client.submit(array, 1, workers=[one])
    ends = [client.submit(np.sum, data, workers=[address], pure=False) for address in (one, two)]
    client.gather(ends)
    until(lambda: len(client.who_has()[data.key]) == 2)
    client.amm.run_once()
    until(lambda: len(client.who_has()[data.key]) == 1)
    client.amm.start()
    assert client.amm.running()


class EverywherePolicy:
    """Have everything everywhere, once."""

    manager: Any

    def __init__(self) -> None:
        self.chosen: list[Any] = []

    def run(self) -> Any:
        for task in list(self.manager.state.tasks.values()):
            self.chosen.append((yield "replicate", task, None))


class BrokenPolicy:
    def run(self) -> Any:
        raise ValueError("no")


def test_policies_of_users(client: Client) -> None:
    future = client.submit(inc, 1)
    future.result()

    def add(dask_scheduler: Any) -> None:
        amm = dask_scheduler.extensions["amm"]
        amm.add_policy(BrokenPolicy())
        amm.add_policy(EverywherePolicy())
        amm.stop()

    client.run_on_scheduler(add)
    client.amm.run_once()
    until(lambda: len(client.who_has()[future.key]) == 2)
    chosen = client.run_on_scheduler(
        lambda dask_scheduler: [w is not None for w in list(dask_scheduler.extensions["amm"].policies)[-1].chosen]
    )
    assert chosen == [True]
    assert client.submit(inc, 2).result() == 3


def test_scatter_while_workers_leave() -> None:
    """What is put on a worker that is told to go is put on another."""
    with LocalCluster(n_workers=3, threads_per_worker=1) as cluster, Client(cluster) as client:
        done: list[Any] = []
        addresses = list(client.scheduler_info()["workers"])

        def retire() -> None:
            with Client(cluster, set_as_default=False) as other:
                done.extend(other.retire_workers(address) for address in addresses[:2])

        thread = threading.Thread(target=retire)
        thread.start()
        futures = [client.scatter(n, hash=False) for n in range(200)]
        thread.join()
        assert client.gather(futures) == list(range(200))
        assert [len(told) for told in done] == [1, 1]


async def _shrink(dask_scheduler: Any) -> Any:
    told = await dask_scheduler.retire_workers(n=1)
    with pytest.raises(UsageError, match="n must be"):
        await dask_scheduler.retire_workers(n=-1)
    return told, dask_scheduler.adaptive_target(), dask_scheduler.workers_to_close(target=1, attribute="name")


def test_a_program_in_the_scheduler_retires_workers(client: Client) -> None:
    """As plugins of managers do."""
    told, target, idle = client.run_on_scheduler(_shrink)
    assert len(told["retired"]) == 1
    assert told["kept"] == told["lost"] == {}
    assert target == 0
    assert idle == []
    assert len(names(client)) == 1
