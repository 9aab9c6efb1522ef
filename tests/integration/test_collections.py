"""dask's collections on a cluster: optimized, ordered, annotated, persisted, inside of tasks, with futures inside."""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

from shoal import Client, Future, LocalCluster, futures_of, get_worker
from tests.integration.functions import inc


def test_arrays_frames_bags_and_delayed(client: Client) -> None:
    """Computed by themselves, together, by the client, to futures."""
    array = da.arange(100, chunks=10)
    frame = dd.from_pandas(pd.DataFrame({"x": range(40), "y": [0, 1] * 20}), npartitions=4)
    bag = db.from_sequence(range(10), npartitions=2)
    lazy = dask.delayed(inc)(1)
    assert array.sum().compute() == 4950
    assert frame.groupby("y").x.sum().compute().to_dict() == {0: 380, 1: 400}
    assert bag.map(inc).filter(lambda x: x % 2).compute() == [1, 3, 5, 7, 9]
    total, names, value = dask.compute(array.max(), [frame.x.max()], {"a": lazy})
    assert (total, names, value) == (99, [39], {"a": 2})
    futures = client.compute([array.min(), lazy, 5])
    assert [type(one) for one in futures] == [Future, Future, int]
    assert client.gather(futures) == [0, 2, 5]
    assert client.compute(lazy, sync=True) == 2
    assert client.compute({"a": lazy}, sync=True) == {"a": 2}
    assert frame.merge(frame, on="x").compute().shape == (40, 3)
    assert frame.set_index("y").compute().index.is_monotonic_increasing


def test_persisted_parts_are_computed_once(client: Client) -> None:
    """What is made of a persisted collection starts from its futures; several persist together share their parts."""
    array = da.ones((100, 100), chunks=25)
    one, two = client.persist([array + 1, (array + 1) * 2])
    assert len(futures_of([one, two])) == 32
    assert (one.sum().compute(), two.sum().compute()) == (20_000, 40_000)
    frame = dd.from_pandas(pd.DataFrame({"x": range(40)}), npartitions=4).persist()
    assert len(futures_of(frame)) == 4
    assert frame.x.sum().compute() == 780
    (again,) = dask.persist(frame)
    assert again.x.max().compute() == 39
    assert db.from_sequence([1, 2]).persist().compute() == [1, 2]
    lazy = dask.delayed(inc)(1).persist()
    assert dask.delayed(inc)(lazy).compute() == 3


def test_graphs_on_futures(client: Client) -> None:
    """Futures as arguments of delayed calls, in from_delayed, in frames; scattered data, too."""
    future, data = client.submit(inc, 1), client.scatter(np.arange(10))
    assert dask.delayed(inc)(future).compute() == 3
    assert dask.delayed(sum)([future, future]).compute() == 4
    array = da.from_delayed(dask.delayed(data), shape=(10,), dtype=int)
    assert array.sum().compute() == 45
    parts = client.map(lambda n: pd.DataFrame({"x": [n]}), range(3))
    frame = dd.from_delayed(parts, meta=pd.DataFrame({"x": [0]}))
    assert frame.x.sum().compute() == 3
    assert client.submit(lambda x: x.sum(), client.compute(array)).result() == 45
    assert client.normalize_collection(array.persist()).sum().compute() == 45


def _worker_name(*args: Any) -> str:
    return str(get_worker().name)


def test_annotations_are_for_the_tasks_that_carry_them(client: Client) -> None:
    """Workers, priority, retries, resources of layers; what compute is given has the last word."""
    names = sorted(info["name"] for info in client.scheduler_info()["workers"].values())
    with dask.annotate(workers=[names[0]], allow_other_workers=False):
        first = [dask.delayed(_worker_name, pure=False)() for _ in range(4)]
    with dask.annotate(workers=names[1]):
        second = [dask.delayed(_worker_name, pure=False)(one) for one in first]
    found = dask.compute(first, second, optimize_graph=False)
    assert found == ([names[0]] * 4, [names[1]] * 4)
    with dask.annotate(workers=[names[0]]):
        other = [dask.delayed(_worker_name, pure=False)() for _ in range(4)]
    assert client.compute(other, workers=names[1], sync=True) == [names[1]] * 4
    with dask.annotate(resources={"none": 1}):
        lazy = dask.delayed(_worker_name, pure=False)()
    future = client.compute(lazy, optimize_graph=False)
    assert "none of 2 workers has" in client.why(future)
    future.cancel()
    assert client.compute(dask.delayed(inc)(3), allow_other_workers=True, sync=True) == 4
    assert client.get({"x": (inc, 4)}, "x", allow_other_workers=True) == 5
    with dask.annotate(retries=-1), pytest.raises(ValueError, match="retries"):
        client.compute(dask.delayed(inc)(1))


def _nested(n: int) -> int:
    return int(da.ones(n, chunks=2).sum().compute())


def test_tasks_that_compute_collections(nothing_is_left) -> None:
    """On the cluster, however few threads there are: they leave the pool while they wait."""
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        assert client.gather(client.map(_nested, range(4, 8))) == [4, 5, 6, 7]
        stream = {row["key"][0] if isinstance(row["key"], tuple) else row["key"] for row in client.get_task_stream()}
        assert any("sum" in name for name in stream)


def test_large_graphs(client: Client) -> None:
    """Twenty thousand tasks at once; the answer is right."""
    array = da.ones((10_000,), chunks=1) + 1
    assert array.sum(split_every=16).compute() == 20_000


def test_xarray_when_it_is_there(client: Client) -> None:
    """Computed and persisted."""
    xarray = pytest.importorskip("xarray")
    data = xarray.Dataset({"a": (("x", "y"), da.ones((20, 20), chunks=5))})
    assert float(data.a.sum().compute()) == 400
    persisted = (data + 1).persist()
    assert len(futures_of(persisted)) == 16
    assert float(persisted.a.mean()) == 2
