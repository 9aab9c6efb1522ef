"""Futures that travel: into tasks, into graphs, out of pickles; and clients inside of tasks."""

from __future__ import annotations

import pickle
import time
from typing import Any

import pytest

from shoal import Client, Future, LocalCluster, get_client, get_worker
from shoal.errors import FutureCancelledError, UsageError
from tests.integration.functions import add, fail, inc, slow_inc
from tests.integration.helpers import until


class Box:
    """An object of a user's that holds a future."""

    def __init__(self, future: Future) -> None:
        self.future = future


def open_box(box: Box) -> Any:
    return box.future.result(20) + 1


def submit_more(n: int) -> int:
    client = get_client()
    assert get_client() is client
    return client.submit(inc, n).result(20)


def worker_name() -> str:
    return str(get_worker().name)


def test_a_future_inside_of_an_object_is_a_future_inside_of_the_task() -> None:
    """It belongs to the task's own client there, also if the submitter lets go of its own."""
    with LocalCluster(n_workers=2, threads_per_worker=2) as cluster, Client(cluster) as client:
        inner = client.submit(slow_inc, 1)
        outer = client.submit(open_box, Box(inner))
        del inner
        assert outer.result(30) == 3
        assert client.submit(submit_more, 5).result(30) == 6
        assert client.submit(worker_name).result(30) in ("0", "1")
    with pytest.raises(ValueError, match="tasks only"):
        get_worker()


def test_futures_in_containers_are_replaced_by_their_results(client: Client) -> None:
    """Lists, tuples, sets, dicts, nested; keyword arguments too."""
    one, two = client.map(inc, [0, 1])
    assert client.submit(sum, [one, two]).result(30) == 3
    assert client.submit(dict, a=[one, (two, {"x": one})]).result(30) == {"a": [1, (2, {"x": 1})]}


def test_futures_in_dask_graphs_and_persisted_collections(client: Client) -> None:
    """A raw graph on futures, delayed calls on futures, an array that is persisted and used again."""
    import dask

    one = client.submit(inc, 0)
    assert client.get({"x": (inc, one), "y": (add, ["x", one])}, ["x", "y"]) == [2, 3]
    assert client.compute(dask.delayed(inc)(one)).result(30) == 2
    da = pytest.importorskip("dask.array")
    array = client.persist(da.ones(1000, chunks=100) + 1)
    assert float(array.sum().compute()) == 2000
    assert float((array * 2).sum().compute(scheduler=client.get)) == 4000
    pd = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    frame = client.persist(dd.from_pandas(pd.DataFrame({"x": range(100), "g": [0, 1] * 50}), npartitions=5))
    assert int(frame.x.sum().compute()) == 4950
    assert frame.groupby("g").x.sum().compute().to_dict() == {0: 2450, 1: 2500}


def test_dask_computes_here_while_a_client_is_open(client: Client) -> None:
    """The default scheduler is the newest client, and the old one again after it is closed."""
    import dask

    assert dask.delayed(worker_name)().compute() in ("0", "1")
    client.close()
    with pytest.raises(ValueError, match="tasks only"):
        dask.delayed(worker_name)().compute(scheduler="sync")


def test_a_pickled_future_finds_its_client(client: Client) -> None:
    """In the same process it is the same key again; without a client it says so."""
    future = client.submit(inc, 1)
    again = pickle.loads(pickle.dumps(future))
    assert again == future
    assert again.result(30) == 2
    lonely = Future("inc-something")
    with pytest.raises(FutureCancelledError, match="not known"):
        lonely.result(30)
    data = pickle.dumps(future)
    client.close()
    with pytest.raises(UsageError, match="no client"):
        pickle.loads(data).result(1)


def test_cancel_retry_release_and_reprs(client: Client) -> None:
    """What happens to a future shows in its status and its reprs."""
    future = client.submit(time.sleep, 30)
    assert future.status == "pending"
    future.cancel(reason="changed my mind")
    with pytest.raises(FutureCancelledError, match="changed my mind"):
        future.result(10)
    assert future.cancelled()
    again = client.submit(inc, 1)
    assert again.result(10) == 2
    assert "finished" in repr(again)
    assert "int" in again._repr_html_()
    assert "inc" in repr(again)
    failed = client.submit(fail, 3)
    assert isinstance(failed.exception(10), ValueError)
    failed.retry()
    assert isinstance(failed.exception(10), ValueError)
    for thing in (client, client.cluster):
        assert "tcp://" in repr(thing)
        assert "<table>" in thing._repr_html_()


def test_retries_are_counted(client: Client, tmp_path: Any) -> None:
    """A task that fails twice and then succeeds needs two."""
    counter = tmp_path / "count"

    def flaky() -> str:
        with open(counter, "a") as file:
            file.write("x")
        if len(counter.read_text()) < 3:
            raise OSError("not yet")
        return "done"

    assert client.submit(flaky, retries=2).result(20) == "done"
    counter.unlink()
    with pytest.raises(OSError, match="not yet"):
        client.submit(flaky, retries=1, pure=False).result(20)


def test_gather_keeps_the_shape_and_skips_errors(client: Client) -> None:
    """Nested containers; errors raised or left out."""
    good, bad = client.submit(inc, 1), client.submit(fail, 1)
    assert client.gather([good, {"x": (good, 5)}]) == [2, {"x": (2, 5)}]
    assert client.gather([good, bad], errors="skip") == [2]
    with pytest.raises(ValueError, match="no 1"):
        client.gather([good, bad])
    assert client.gather(iter([good])) == [2]


def test_several_clients_of_one_cluster(cluster: LocalCluster) -> None:
    """Each holds its own futures; the same key is computed once and outlives the client that let go."""
    with Client(cluster) as one, Client(cluster, name="two") as two:
        first, second = one.submit(slow_inc, 1), two.submit(slow_inc, 1)
        assert first.key == second.key
        assert first.result(20) == 2
        one.close()
        assert second.result(20) == 2
        with two.as_current() as chosen:
            assert Client.current() is chosen


def test_a_client_without_an_address_starts_and_closes_a_cluster() -> None:
    """With the options of one."""
    with Client(n_workers=1, threads_per_worker=2) as client:
        assert client.submit(inc, 1).result(30) == 2
        assert list(client.nthreads().values()) == [2]
        cluster = client.cluster
    assert cluster.status == "closed"
    with Client(processes=False, n_workers=1, threads_per_worker=1) as client:
        assert client.scheduler_address.startswith("inproc://")
        assert client.submit(inc, 1).result(30) == 2


def nap(value: object, seconds: float) -> str:
    time.sleep(seconds)
    return str(get_worker().name)


def test_an_idle_worker_helps_a_loaded_one(client: Client) -> None:
    """Tasks that were placed where their input is run on both."""
    (first, *_) = client.nthreads()
    data = client.scatter(list(range(1000)), workers=[first], hash=False)
    names = client.gather(client.map(nap, data[:1] * 40, [0.05] * 40, pure=False))
    assert set(names) == {"0", "1"}


def test_why_and_story(client: Client) -> None:
    """In a sentence, and as the transitions of scheduler and workers."""
    slow = client.submit(time.sleep, 1)
    waiting = client.submit(str, slow)
    assert "1 of 1 inputs" in client.why(waiting) or "its inputs first" in client.why(waiting)
    assert "is with worker" in client.why(slow.key)
    assert waiting.result(20) == "None"
    assert "is done" in client.why(waiting)
    story = client.story(waiting)
    assert {row[0] for row in story} >= {"scheduler"}
    assert any(row[0].startswith("tcp://") and row[4] == "executing" for row in story)


def tell_after(seconds: float, what: str) -> str:
    time.sleep(seconds)
    return what


def test_a_key_that_comes_with_another_definition(client: Client, caplog) -> None:
    """Warned of while the first is wanted; the newer counts once the first was let go of, also while it still runs."""
    first = client.submit(tell_after, 0.5, "first", key="x")
    again = client.submit(tell_after, 0.0, "second", key="x")
    assert again.result(20) == "first"
    assert "submitted again with another definition" in caplog.text
    slow = client.submit(tell_after, 0.5, "third", key="y")
    until(lambda: "is with worker" in client.why("y"))
    slow.release()
    newer = client.submit(tell_after, 0.0, "fourth", key="y")
    assert newer.result(20) == "fourth"
    assert client.submit(str.upper, newer).result(20) == "FOURTH"
    assert first.result(20) == "first"
