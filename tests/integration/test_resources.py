"""Tasks that take resources or threads of named pools, on real workers."""

from __future__ import annotations

import dask
import pytest

from shoal import Client, Event, LocalCluster, wait
from shoal.errors import UsageError
from tests.integration.functions import inc, pid
from tests.integration.helpers import until

GPU = {"GPU": 1}


def hold(name: str) -> int:
    """Run until the event of this name is set."""
    Event(name).wait()
    return pid()


def test_short_tasks_pass_a_long_one_and_those_that_wait_go_to_workers_that_join() -> None:
    """a-05: whatever threads are free; and ``why`` tells whose the resource is."""
    options = {"threads_per_worker": 4, "resources": GPU}
    with LocalCluster(n_workers=2, **options) as cluster, Client(cluster) as client:
        first = client.submit(hold, "first", resources=GPU, pure=False)
        until(lambda: "is with worker" in client.why(first.key))
        assert client.gather([client.submit(inc, n, resources=GPU) for n in range(7)]) == list(range(1, 8))
        second = client.submit(hold, "second", resources=GPU, pure=False)
        stuck = client.submit(pid, resources=GPU, pure=False)
        until(lambda: "needs GPU: 1" in client.why(stuck.key))
        assert str(first.key) in client.why(stuck.key)
        cluster.scale(3)
        process = stuck.result(30)
        Event("first").set()
        Event("second").set()
        wait([first, second])
        assert process not in client.gather([first, second])


def test_a_crash_frees_what_its_tasks_held() -> None:
    """They run again, and so do those that waited."""
    with LocalCluster(n_workers=1, threads_per_worker=2, resources=GPU) as cluster, Client(cluster) as client:
        held = client.submit(hold, "go", resources=GPU, pure=False)
        behind = client.submit(inc, 1, resources=GPU)
        until(lambda: "needs GPU: 1" in client.why(behind.key))
        client.restart_workers(list(client.scheduler_info()["workers"]))
        Event("go").set()
        assert behind.result(30) == 2
        assert held.result(30)


def test_threads_of_named_pools_are_given_where_they_are_free() -> None:
    """One that is held up keeps no other from running on the second worker, nor tasks that ask for no pool."""
    with LocalCluster(n_workers=2, threads_per_worker=1, executors={"io": 1}) as cluster, Client(cluster) as client:
        with dask.annotate(executor="io"):
            held = client.submit(hold, "io", pure=False)
            assert client.gather([client.submit(inc, n) for n in range(5)]) == list(range(1, 6))
        assert client.gather([client.submit(inc, n) for n in range(10, 15)]) == list(range(11, 16))
        Event("io").set()
        assert held.result(30)


def test_a_worker_may_be_given_other_resources() -> None:
    """Those that wait for them are placed at once; what makes no sense is refused."""
    with LocalCluster(n_workers=1, threads_per_worker=2) as cluster, Client(cluster) as client:
        stuck = client.submit(inc, 1, resources=GPU)
        until(lambda: "none of 1 workers has" in client.why(stuck.key))
        client.run(lambda dask_worker: dask_worker.set_resources(GPU=2))
        assert stuck.result(30) == 2
        with pytest.raises(UsageError, match="GPU"):
            client.run(lambda dask_worker: dask_worker.set_resources(GPU="two"))
