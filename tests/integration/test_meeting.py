"""Locks, semaphores, events, queues, variables, datasets and metadata, between real processes."""

from __future__ import annotations

import asyncio
import pickle
import signal
import subprocess
import sys
import threading
import time

import dask.config
import pytest

from shoal import (
    Client,
    Event,
    LocalCluster,
    Lock,
    MultiLock,
    Queue,
    Scheduler,
    Semaphore,
    Variable,
    Worker,
)
from shoal.errors import UsageError
from tests.integration.functions import inc
from tests.integration.helpers import until


def _add_under_lock(path: str, name: str) -> None:
    with Lock(name):
        with open(path) as file:
            count = int(file.read())
        time.sleep(0.005)
        with open(path, "w") as file:
            file.write(str(count + 1))


def test_a_lock_keeps_tasks_apart(client: Client, tmp_path) -> None:
    """Twenty tasks on two workers add one to a number in a file: none is lost."""
    path = tmp_path / "count"
    path.write_text("0")
    client.gather(client.map(_add_under_lock, [str(path)] * 20, ["file"] * 20, pure=False))
    assert path.read_text() == "20"
    assert not Lock("file").locked()


def test_a_lock_as_users_know_it(client: Client) -> None:
    """Blocking or not, with a time, as a context, by name, pickled."""
    lock, other = Lock("it"), Lock("it")
    assert lock.acquire()
    assert other.locked()
    assert not other.acquire(blocking=False)
    began = time.monotonic()
    assert not other.acquire(timeout="100 ms")
    assert time.monotonic() - began >= 0.1
    with pytest.raises(RuntimeError, match="not held"):
        other.release()
    assert lock.release()
    with pickle.loads(pickle.dumps(other)) as third:
        assert third.name == "it"
        assert lock.locked()
    assert not lock.locked()
    with pytest.raises(UsageError, match="without blocking"):
        lock.acquire(blocking=False, timeout=1)


def _most_at_once(name: str, leases: int) -> int:
    semaphore = Semaphore(leases, name)
    with semaphore:
        found = semaphore.get_value()
        time.sleep(0.02)
    return found


def test_a_semaphore_counts(nothing_is_left) -> None:
    """Of eight threads, three are in at a time."""
    with LocalCluster(n_workers=2, threads_per_worker=4) as cluster, Client(cluster) as client:
        found = client.gather(client.map(_most_at_once, ["s"] * 24, [3] * 24, pure=False))
        assert max(found) <= 3
        assert max(found) >= 2
        with pytest.raises(UsageError, match="max_leases=3"):
            Semaphore(4, "s").acquire()
        waiting = Semaphore(1, "closed")
        waiting.acquire()
        result: list[BaseException] = []

        def wait() -> None:
            try:
                Semaphore(1, "closed", client=client).acquire()
            except UsageError as error:
                result.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)
        waiting.close()
        thread.join()
        assert "closed" in str(result[0])


_HOLDER = """
import sys, time
from shoal import Client, Lock, Security
client = Client(sys.argv[1])
assert Lock("held", client=client).acquire()
print("held", flush=True)
time.sleep(600)
"""


def _hold(address: str) -> subprocess.Popen[str]:
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, address], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_lock_whose_holder_is_killed_is_free(cluster: LocalCluster, client: Client) -> None:
    """Its connection breaks with it; no time has to pass."""
    holder = _hold(cluster._addresses[-1])
    try:
        assert not Lock("held").acquire(timeout=0.2)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert Lock("held").acquire(timeout=20)


def test_a_lease_of_one_who_is_silent_expires(nothing_is_left) -> None:
    """A holder that is stopped says nothing; after the time of its lease another gets the lock."""
    settings = {"lease-timeout": "600 ms", "lease-validation-interval": "200 ms"}
    with (
        dask.config.set({f"distributed.scheduler.locks.{name}": value for name, value in settings.items()}),
        LocalCluster(n_workers=0) as cluster,
        Client(cluster) as client,
    ):
        holder = _hold(cluster.scheduler_address)
        try:
            time.sleep(1.5)
            assert not Lock("held").acquire(blocking=False), "it lives, so its lease does"
            holder.send_signal(signal.SIGSTOP)
            assert Lock("held").acquire(timeout=20)
            assert any(event["action"] == "lease-expired" for _, event in client.get_events("all"))
        finally:
            holder.kill()
            holder.wait()
            holder.stdout.close()


def test_who_is_interrupted_gets_no_lock(client: Client) -> None:
    """A lock that is granted to somebody who does not wait any more is free for others."""
    lock = Lock("one", client=client)
    lock.acquire()
    waiting = client._thread.loop
    future = asyncio.run_coroutine_threadsafe(
        Lock("one", client=client)._ask("semaphore-acquire", None, most=1), waiting
    )
    time.sleep(0.1)
    future.cancel()
    time.sleep(0.1)
    lock.release()
    assert Lock("one").acquire(timeout=5)


def test_locks_of_several_names(client: Client) -> None:
    """Together or not at all, or so many of them."""
    first, second, third = MultiLock(["a", "b"]), MultiLock(["b", "c"]), MultiLock(["a", "b", "c"])
    assert first.acquire()
    assert not second.acquire(blocking=False)
    assert not third.acquire(timeout=0.1, num_locks=2)
    assert third.acquire(num_locks=1)
    assert first.locked()
    first.release()
    assert not second.acquire(timeout=0.1), "c is held"
    third.release()
    with second:
        assert not MultiLock(["c"]).acquire(blocking=False)
    with pytest.raises(UsageError, match="num_locks"):
        third.acquire(num_locks=4)


def _wait_for(name: str) -> bool:
    return Event(name).wait(timeout=20)


def test_an_event_lets_all_go_on(client: Client) -> None:
    """Those that wait on workers, and those that come later."""
    event = Event("go")
    assert not event.is_set()
    assert event.wait(timeout=0.05) is False
    futures = client.map(_wait_for, ["go"] * 2, pure=False)
    time.sleep(0.1)
    assert not any(future.done() for future in futures)
    event.set()
    assert client.gather(futures) == [True, True]
    assert event.is_set()
    event.clear()
    assert not Event("go").is_set()


def test_a_queue_of_values_and_futures(cluster: LocalCluster, client: Client) -> None:
    """First in first out, in batches, with limits, whatever can be pickled."""
    queue = Queue("q")
    queue.put((1, {"x": {2}}))
    queue.put(client.submit(inc, 1))
    assert queue.qsize() == 2
    assert queue.get() == (1, {"x": {2}})
    time.sleep(0.2)  # the only future is in the queue
    with Client(cluster, set_as_default=False) as other:
        future = Queue("q", client=other).get()
        assert future.client is other
        assert future.result() == 2
    with pytest.raises(TimeoutError):
        queue.get(timeout=0.05)
    for number in range(5):
        queue.put(number)
    assert queue.get(batch=2) == [0, 1]
    assert queue.get(batch=True) == [2, 3, 4]
    assert queue.get(batch=True) == []
    small = Queue("small", maxsize=1)
    small.put(1)
    with pytest.raises(TimeoutError, match="no room"):
        small.put(2, timeout=0.05)
    thread = threading.Thread(target=small.put, args=(3,))
    thread.start()
    time.sleep(0.05)
    assert small.get() == 1
    thread.join()
    assert small.get(timeout=5) == 3
    with pytest.raises(UsageError, match="maxsize=1"):
        Queue("small", maxsize=2).put(1)


def test_a_batch_larger_than_the_queue(client: Client) -> None:
    """Who waits for more than there may be lets more in."""
    queue = Queue("narrow", maxsize=2)
    found: list[list[int]] = []
    thread = threading.Thread(target=lambda: found.append(queue.get(batch=5)))
    thread.start()
    for number in range(5):
        queue.put(number, timeout=10)
    thread.join()
    assert found == [[0, 1, 2, 3, 4]]


def test_what_is_left_for_others_outlives_its_maker(cluster: LocalCluster, client: Client) -> None:
    """A client that leaves futures in a queue, a variable and a dataset may go."""
    with Client(cluster, set_as_default=False) as other:
        Queue("q", client=other).put(other.submit(inc, 1))
        Variable("v", client=other).set([other.submit(inc, 2), "text"])
        other.publish_dataset(numbers=other.map(inc, range(3)))
        other.publish_dataset({"x": 1}, name=("a", 1))
    time.sleep(0.1)
    assert Queue("q").get().result() == 2
    future, text = Variable("v").get()
    assert (future.result(), text) == (3, "text")
    assert client.gather(client.get_dataset("numbers")) == [1, 2, 3]
    assert set(client.list_datasets()) == {"numbers", ("a", 1)}
    with pytest.raises(KeyError, match="already"):
        client.publish_dataset(numbers=1)
    client.publish_dataset(numbers=1, override=True)
    assert client.get_dataset("numbers") == 1
    assert client.datasets[("a", 1)] == {"x": 1}
    assert "numbers" in client.datasets
    del client.datasets["numbers"]
    client.unpublish_dataset(("a", 1))
    assert client.list_datasets() == ()
    with pytest.raises(KeyError):
        client.get_dataset("numbers")
    assert client.get_dataset("numbers", default=None) is None
    with pytest.raises(KeyError):
        client.unpublish_dataset("numbers")
    Variable("v").delete()
    del future
    until(lambda: not any(client.who_has().values()))


def test_a_variable_is_waited_for(client: Client) -> None:
    """Set later, read by many; a cancelled future cannot be put."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(Variable("x", client=client).get(timeout=10)))
    thread.start()
    time.sleep(0.05)
    Variable("x").set(1)
    thread.join()
    assert found == [1]
    assert Variable("x").get() == 1
    with pytest.raises(TimeoutError):
        Variable("y").get(timeout=0.05)
    future = client.submit(inc, 1)
    future.cancel()
    until(future.cancelled)
    with pytest.raises(UsageError, match="not known"):
        Variable("x").set(future)
    assert Variable("x").get() == 1, "what was there stays"


def test_metadata_is_nested(client: Client) -> None:
    """By name, or by a way of names."""
    client.set_metadata("x", 1)
    client.set_metadata(["a", "b"], {"c": [1, 2]})
    assert client.get_metadata("x") == 1
    assert client.get_metadata(["a", "b", "c"]) == [1, 2]
    assert client.get_metadata(["a", "z"], default=None) is None
    with pytest.raises(KeyError):
        client.get_metadata(["a", "b", "z"])
    with pytest.raises(TypeError, match="plain values"):
        client.set_metadata("x", object())


def test_collections_are_published(client: Client) -> None:
    """A persisted collection, computed on by another client."""
    import dask.array

    array = dask.array.ones((100, 100), chunks=(50, 50)).persist()
    client.publish_dataset(ones=array)
    del array
    time.sleep(0.1)
    assert client.get_dataset("ones").sum().compute() == 10_000


async def _meet() -> None:
    async with (
        Scheduler() as scheduler,
        Worker(scheduler.address, nthreads=2),
        Client(scheduler.address, asynchronous=True) as client,
    ):
        async with Lock("x"):
            assert await Lock("x").locked()
        async with Semaphore(2, "s") as semaphore:
            assert await semaphore.get_value() == 1
        queue = Queue("q")
        await queue.put(client.submit(inc, 1))
        assert await (await queue.get()) == 2
        await Variable("v").set(5)
        assert await Variable("v").get() == 5
        await Event("e").set()
        assert await Event("e").wait()
        await client.publish_dataset(x=1)
        assert [name async for name in client.datasets] == ["x"]
        assert await client.get_dataset("x") == 1
        await client.set_metadata("k", 1)
        assert await client.get_metadata("k") == 1
        async with MultiLock(["a"]):
            pass


async def _take_and_give_back() -> list[str]:
    settings = {"lease-timeout": "250 ms", "lease-validation-interval": "50 ms"}
    with dask.config.set({f"distributed.scheduler.locks.{name}": value for name, value in settings.items()}):
        async with Scheduler() as scheduler, Client(scheduler.address, asynchronous=True) as client:
            for _ in range(5):
                async with Lock("x"):
                    pass
            async with Lock("x"):
                await asyncio.sleep(0.5)
                assert await Lock("x").locked(), "it is said that it is held"
            return list(client._connection.leases.held)


def test_what_was_given_back_is_not_said_to_be_held() -> None:
    """However quickly that was."""
    assert asyncio.run(_take_and_give_back()) == []


def test_all_of_it_is_awaited() -> None:
    """With an asynchronous client."""
    asyncio.run(_meet())


def test_the_program_ends_while_it_waits(cluster: LocalCluster) -> None:
    """A process that ends in the middle of waiting for a lock leaves nothing."""
    client = Client(cluster, set_as_default=False)
    lock = Lock("l", client=client)
    lock.acquire()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            Lock("l", client=client).acquire()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    assert "close" in str(errors[0])
    with Client(cluster) as other:
        assert Lock("l", client=other).acquire(timeout=5)
