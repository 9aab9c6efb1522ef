"""Values on disk: when, which, what it costs, and what happens when the disk does not take them."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

from shoal import Client, LocalCluster
from shoal.errors import LostDataError
from tests.integration.functions import inc
from tests.integration.helpers import until

#: Bytes of each value here.
SIZE = 8_000_000


def block(seed: int) -> Any:
    return np.full(SIZE // 8, float(seed))


def first(array: Any) -> float:
    return float(array[0])


def total(arrays: list[Any]) -> float:
    return sum(float(array[0]) for array in arrays)


def memory(client: Client) -> dict[str, Any]:
    """What the (only) worker's memory is used for."""
    (found,) = client.run(lambda dask_worker: dask_worker.program.memory_manager.metrics()).values()
    return dict(found)


def on_disk(client: Client) -> set[str]:
    (found,) = client.run(lambda dask_worker: sorted(dask_worker.program.store._slow)).values()
    return set(found)


def files(client: Client) -> int:
    (found,) = client.run(_count_files).values()
    return int(found)


def _count_files(dask_worker: Any) -> int:
    directory = Path(dask_worker.local_directory) / "spilled"
    return len(list(directory.iterdir())) if directory.exists() else 0


def small_cluster(limit: str = "300 MB", n_workers: int = 1) -> LocalCluster:
    return LocalCluster(n_workers=n_workers, threads_per_worker=1, memory_limit=limit)


def test_what_was_used_least_recently_is_spilled_and_comes_back() -> None:
    """Managed memory stays under the target; every value is right; files go with their values."""
    with small_cluster() as cluster, Client(cluster) as client:
        old = client.map(block, range(15), key=[f"old-{n}" for n in range(15)])
        assert client.gather(client.map(first, old)) == [float(n) for n in range(15)]
        assert client.submit(first, old[0], pure=False).result(20) == 0.0  # used again: the others go first
        more = client.map(block, range(100, 125), key=[f"more-{n}" for n in range(25)])
        assert client.gather(client.map(first, more)) == [float(n) for n in range(100, 125)]
        until(lambda: memory(client)["managed"] <= 0.6 * 300e6)
        spilled = on_disk(client)
        assert len(spilled) >= 12
        assert sum(key.startswith("old") for key in spilled) >= 8
        until(lambda: memory(client)["spilled"] == len(on_disk(client)) * SIZE)  # spilling may still go on
        found = memory(client)
        assert found["process"] == found["managed"] + found["unmanaged"]
        assert client.gather(client.map(first, old, pure=False)) == [float(n) for n in range(15)]
        assert float(old[3].result(20)[-1]) == 3.0
        assert client.submit(total, [*old[:10], *more[:10]]).result(20) == 45.0 + 1045.0
        until(lambda: next(iter(client.scheduler_info()["workers"].values()))["metrics"]["memory"]["spills"] >= 12)
        del old, more
        until(lambda: files(client) == 0)
        assert memory(client)["disk"] == 0
        assert client.submit(inc, 1).result(20) == 2


def test_spilled_values_go_to_other_workers_and_to_the_client() -> None:
    """From their files; also many at once."""
    with small_cluster("500 MB", n_workers=2) as cluster, Client(cluster) as client:
        here, there = client.nthreads()
        blocks = client.map(block, range(50), workers=[here])
        assert client.gather(client.map(first, blocks, workers=[here])) == [float(n) for n in range(50)]
        until(lambda: client.run(lambda dask_worker: len(dask_worker.program.store._slow))[here] >= 5, 20)
        assert client.gather(client.map(first, blocks, workers=[there], pure=False)) == [float(n) for n in range(50)]
        assert [float(array[0]) for array in client.gather(blocks)] == [float(n) for n in range(50)]


def limit_files(nbytes: int) -> None:
    """Let this process write no file larger than that, as a full disk would not."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, resource.RLIM_INFINITY if nbytes < 0 else nbytes * 1000))


def unlimit_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def block_directory(dask_worker: Any) -> None:
    (Path(dask_worker.local_directory) / "spilled").write_text("in the way")


@pytest.mark.parametrize("how", ["full", "unusable"])
def test_n8_a_disk_that_takes_nothing_is_named_and_the_values_stay(how: str) -> None:
    """The worker pauses when there is too much; it goes on when there is room again."""
    with (
        dask.config.set({"distributed.worker.memory.target": 0.3}),
        small_cluster() as cluster,
        Client(cluster) as client,
    ):
        if how == "full":
            client.run(limit_files, 1_000_000)
        else:
            client.run(block_directory)
        blocks = client.map(block, range(15))
        assert client.gather(client.map(first, blocks)) == [float(n) for n in range(15)]
        until(lambda: memory(client)["failure"])
        failure = memory(client)["failure"]
        assert "spilled" in failure
        assert ("File too large" in failure) == (how == "full")
        assert [float(array[0]) for array in client.gather(blocks)] == [float(n) for n in range(15)]
        told = " ".join(text for lines in client.get_worker_logs().values() for _, text in lines)
        assert "the values stay in memory" in told
        assert memory(client)["managed"] >= 15 * SIZE
        if how == "full":
            more = client.map(block, range(50, 65))  # more than may be: it pauses, and says why
            until(lambda: "paused" in str(client.scheduler_info()["workers"]))
            until(lambda: client.get_events("all") and "nothing can be spilled" in str(client.get_events("all")))
            client.run(unlimit_files)
            assert client.gather(client.map(first, more)) == [float(n) for n in range(50, 65)]
            until(lambda: memory(client)["spilled"])


def spoil(dask_worker: Any) -> int:
    """Cut all files of spilled values short, as a broken disk would."""
    files = list((Path(dask_worker.local_directory) / "spilled").iterdir())
    for file in files:
        os.truncate(file, 100)
    return len(files)


def test_values_whose_files_are_broken_are_computed_again() -> None:
    """For tasks and for the client; what cannot be computed is said to be lost."""
    with small_cluster() as cluster, Client(cluster) as client:
        scattered = client.scatter(block(77))
        blocks = client.map(block, range(30))
        assert client.gather(client.map(first, blocks)) == [float(n) for n in range(30)]
        until(lambda: len(on_disk(client)) >= 5)
        assert sum(client.run(spoil).values()) >= 5
        assert client.gather(client.map(first, blocks, pure=False)) == [float(n) for n in range(30)]
        until(lambda: len(on_disk(client)) >= 5)
        client.run(spoil)
        assert [float(array[0]) for array in client.gather(blocks)] == [float(n) for n in range(30)]
        with pytest.raises(LostDataError):
            client.submit(first, scattered, pure=False).result(20)


def test_no_more_than_the_limit_of_the_disk() -> None:
    """``max-spill`` holds; the rest stays in memory."""
    with (
        dask.config.set({"distributed.worker.memory.max-spill": "40 MB", "distributed.worker.memory.pause": False}),
        small_cluster() as cluster,
        Client(cluster) as client,
    ):
        blocks = client.map(block, range(28))
        assert client.gather(client.map(first, blocks)) == [float(n) for n in range(28)]
        until(lambda: memory(client)["disk"] > 30e6)
        assert memory(client)["disk"] <= 40e6
        assert client.gather(client.map(first, blocks, pure=False)) == [float(n) for n in range(28)]


class Stubborn:
    """Cannot be pickled, and looks large."""

    def __reduce__(self) -> Any:
        raise TypeError("no")

    def __sizeof__(self) -> int:
        return 50_000_000


def test_values_that_cannot_be_pickled_stay() -> None:
    """Others are spilled in their place."""
    with small_cluster() as cluster, Client(cluster) as client:
        stuck = client.map(lambda n: Stubborn(), range(3), pure=False)
        blocks = client.map(block, range(20))
        assert client.gather(client.map(first, blocks)) == [float(n) for n in range(20)]
        until(lambda: len(on_disk(client)) >= 15)
        assert client.submit(lambda thing: type(thing).__name__, stuck[0]).result(20) == "Stubborn"


def test_unmanaged_memory_is_spilled_against_too() -> None:
    """What the process uses beside results pushes them to disk."""
    with small_cluster() as cluster, Client(cluster) as client:
        blocks = client.map(block, range(12))  # 96 MB: far from the target
        client.gather(client.map(first, blocks))
        assert not on_disk(client)
        client.run(hoard, 100_000_000)
        until(lambda: len(on_disk(client)) >= 3)
        assert client.gather(client.map(first, blocks, pure=False)) == [float(n) for n in range(12)]


_HELD: list[bytes] = []


def hoard(nbytes: int) -> None:
    _HELD.append(os.urandom(1000) * (nbytes // 1000))


def test_nothing_is_spilled_without_a_limit() -> None:
    """Nor with the thresholds off."""
    for limit, settings in (("0", {}), ("300 MB", {"target": False, "spill": False, "pause": False})):
        with (
            dask.config.set({f"distributed.worker.memory.{name}": value for name, value in settings.items()}),
            small_cluster(limit) as cluster,
            Client(cluster) as client,
        ):
            blocks = client.map(block, range(25))
            client.gather(client.map(first, blocks))
            assert files(client) == 0
            assert memory(client)["managed"] >= 25 * SIZE


def test_n7_a_burst_of_memory_is_caught_while_values_are_spilled() -> None:
    """The nanny looks more often the less is left; the worker's loop has no part in it (C10)."""
    with small_cluster() as cluster, Client(cluster) as client:
        blocks = client.map(block, range(30))
        bomb = client.submit(burst, key="bomb", retries=0)
        with pytest.raises(Exception, match="memory limit"):
            bomb.result(60)
        assert client.gather(client.map(first, blocks)) == [float(n) for n in range(30)]


def burst() -> int:
    """Take memory as fast as it can be had."""
    return len([b"x" * 10_000_000 for _ in range(100)])


def test_workers_of_one_process_answer_for_their_results_alone() -> None:
    """Not for what the process uses beside: that would stop them all."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, memory_limit="120 MB") as cluster,
        Client(cluster) as client,
    ):
        held = [np.zeros(25_000_000) for _ in range(2)]  # this process is beyond the limit of each
        blocks = client.map(block, range(30))
        assert client.gather(client.map(first, blocks)) == [float(n) for n in range(30)]
        found = [worker.memory_manager.metrics() for worker in (one.program for one in cluster.workers.values())]
        assert sum(one["spills"] for one in found) >= 8
        assert all(one["managed"] <= 0.8 * 120e6 for one in found)
        assert {worker["status"] for worker in client.scheduler_info()["workers"].values()} == {"running"}
        assert held
