"""Workers whose memory runs short, and tasks that nobody may run."""

from __future__ import annotations

import dask
import pytest

from shoal import Client, LocalCluster
from shoal.errors import NoValidWorkerError
from tests.integration.functions import grab, inc, let_go, pid, slow_inc
from tests.integration.helpers import until


def states(client: Client) -> list[str]:
    return sorted(worker["status"] for worker in client.scheduler_info()["workers"].values())


def test_a_worker_that_is_short_of_memory_takes_no_tasks_until_there_is_some_again() -> None:
    """What it had in line goes elsewhere; what it holds can be had; nothing is lost."""
    with LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="600 MB") as cluster, Client(cluster) as client:
        first, second = client.scheduler_info()["workers"]
        here = client.submit(inc, 1, workers=[first], pure=False)
        assert here.result(20) == 2
        full = client.submit(grab, 500_000_000, workers=[first], pure=False)
        behind = [client.submit(slow_inc, n, workers=[first], allow_other_workers=True) for n in range(20)]
        process = full.result(20)
        until(lambda: states(client) == ["paused", "running"])
        assert client.gather(behind) == list(range(1, 21))
        assert process not in client.gather([client.submit(pid, pure=False) for _ in range(10)])
        assert client.submit(inc, here, workers=[second]).result(20) == 3
        only_there = client.submit(pid, workers=[first], pure=False)
        until(lambda: "paused" in client.why(only_there.key))
        client.run(let_go, workers=[first])
        until(lambda: states(client) == ["running", "running"])
        assert only_there.result(20) == process


def test_a_task_that_no_worker_may_run_fails_in_time_when_that_is_wished() -> None:
    """And says what it needs."""
    with (
        dask.config.set({"distributed.scheduler.no-workers-timeout": "200ms"}),
        LocalCluster(n_workers=1, threads_per_worker=1) as cluster,
        Client(cluster) as client,
    ):
        stuck = client.submit(inc, 1, resources={"GPU": 1})
        after = client.submit(inc, stuck)
        with pytest.raises(NoValidWorkerError, match="GPU"):
            after.result(20)
        assert client.submit(inc, 5).result(20) == 6
