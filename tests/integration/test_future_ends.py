"""Whatever is done with futures, in whatever order: each ends, with a value or an error that says what happened."""

from __future__ import annotations

import gc
import pickle
import random
import threading
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import dask
import pytest

from shoal import Client, Future, LocalCluster, Queue, Variable, as_completed, fire_and_forget, wait
from shoal.errors import (
    ClosedClientError,
    FutureCancelledError,
    LostDataError,
    UsageError,
)
from tests.integration.functions import fail, inc
from tests.integration.helpers import until

#: Seconds in which whatever is asked of a future must be answered here; none of the tasks takes a tenth of it.
SOON = 10


@pytest.fixture
def shared(nothing_is_left: None) -> Iterator[Client]:
    """A cluster within this process."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def nap(x: Any, seconds: float = 0.2) -> Any:
    time.sleep(seconds)
    return x


def ask(future: Future) -> dict[str, Any]:
    """Ask a future everything that waits; say how each ended."""

    def result_of(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            return error

    called: list[str] = []
    future.add_done_callback(lambda done: called.append(done.status))
    client = future.client
    found = {
        "result": result_of(lambda: future.result(SOON)),
        "exception": result_of(lambda: future.exception(SOON)),
        "traceback": result_of(lambda: future.traceback(SOON)),
        "gather": result_of(lambda: client._thread.sync(client.gather([future], asynchronous=True), SOON)),
        "skipped": result_of(lambda: client._thread.sync(client.gather([future], "skip", asynchronous=True), SOON)),
        "wait": result_of(lambda: wait(future, timeout=SOON).done),
        "as_completed": result_of(lambda: list(as_completed([future], timeout=SOON))),
        "done": future.done(),
        "status": future.status,
    }
    until(lambda: called)
    found["called"] = called
    late = [name for name, value in found.items() if isinstance(value, TimeoutError)]
    assert not late, f"{late} did not end: {future!r}"
    return found


def cancelled(future: Future, why: str) -> None:
    """Everything that is asked of it says that it was cancelled, and why."""
    assert future.cancelled()
    found = ask(future)
    for name in ("result", "exception", "gather", "wait"):
        assert isinstance(found[name], FutureCancelledError), (name, found[name])
        assert why in str(found[name])
    assert (found["status"], found["done"], found["called"]) == ("cancelled", True, ["cancelled"])
    assert (found["traceback"], found["skipped"]) == (None, [])
    assert found["as_completed"] == [future]


@pytest.mark.parametrize("after", ["at once", "when it is done", "when it failed"])
def test_a_released_future_is_cancelled(shared: Client, after: str) -> None:
    """Before it was done and after, whether somebody waits for it or not; its status says so at once."""
    future = shared.submit(fail, 1, pure=False) if after == "when it failed" else shared.submit(nap, 1, pure=False)
    ended: list[Any] = []
    if after == "at once":
        waiting = threading.Thread(target=lambda: ended.append(future.exception(SOON)))
        waiting.start()
    else:
        wait(future)
    future.release()
    assert future.status == "cancelled"
    cancelled(future, "it was released")
    if after == "at once":
        waiting.join(SOON)
        assert isinstance(ended[0], FutureCancelledError)
    future.release()
    future.retry()
    future.cancel()
    assert future.status == "cancelled"


def test_one_of_several_futures_of_a_key_is_released(shared: Client) -> None:
    """It shows what the others show, until the last is let go of."""
    first, second = (shared.submit(nap, 1, key="of-two") for _ in range(2))
    first.release()
    assert first.result(SOON) == second.result(SOON) == 1
    second.release()
    cancelled(first, "it was released")
    cancelled(second, "it was released")
    again = shared.submit(nap, 2, key="of-two")
    assert again.result(SOON) == 2
    assert first.cancelled()


def test_a_cancelled_future_says_so_at_once(shared: Client) -> None:
    """With the reason that was given; what is made of it ends as well."""
    future = shared.submit(nap, 1, pure=False)
    child = shared.submit(inc, future)
    shared.cancel([future, future], reason="no longer of use")
    assert future.status == "cancelled"
    cancelled(future, "no longer of use")
    cancelled(child, "no longer of use")
    done = shared.submit(inc, 1, pure=False)
    assert done.result(SOON) == 2
    done.cancel()
    cancelled(done, "cancelled by a client")


def test_a_future_of_a_key_that_nobody_knows(shared: Client) -> None:
    """Made by hand, and out of a pickle after the last one was let go of."""
    with shared.as_current():
        cancelled_soon = Future("nobody-made-this", shared)
        ask(cancelled_soon)
        cancelled(cancelled_soon, "not known")
        gone = shared.submit(nap, 1, pure=False)
        data = pickle.dumps(gone)
        gone.release()
        until(lambda: "not known" in shared.why(gone.key))
        late, again = pickle.loads(data), pickle.loads(data)
        ask(late)
        for future in (late, again):
            cancelled(future, "not known")
        kept = shared.submit(nap, 3, pure=False)
        assert pickle.loads(pickle.dumps(kept)).result(SOON) == 3
        with pytest.raises(LostDataError, match="not known"):
            shared.submit(inc, late).result(SOON)


@pytest.mark.parametrize("how", ["client", "cluster", "restart"])
def test_futures_of_a_client_that_closed(nothing_is_left: None, how: str) -> None:
    """Or whose cluster closed, or restarted: what is not here is cancelled, and says why; nothing hangs."""
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False) as cluster:
        client = Client(cluster, set_as_default=False)
        pending, done, failed = client.submit(nap, 1, 1), client.submit(inc, 1), client.submit(fail, 1)
        large = client.submit(bytes, 1_000_000)
        wait([done, failed, large])
        if how == "restart":
            client.restart()
        else:
            (client if how == "client" else cluster).close()
        until(pending.cancelled)
        why = "was restarted" if how == "restart" else "closed"
        cancelled(pending, why)
        cancelled(large, why)
        if how == "restart":
            cancelled(done, why)
            cancelled(failed, why)
        else:
            if how == "client":  # else the workers may go first, and their results with them
                assert ask(done)["result"] == 2
                assert "no 1" in str(ask(failed)["exception"])
            for call in (pending.retry, done.cancel, lambda: client.gather([done])):
                with pytest.raises(ClosedClientError):
                    call()
            pending.release()
            done.release()
            assert done.cancelled()
        client.close()


def test_a_retried_future_is_pending_at_once(shared: Client, tmp_path: Any) -> None:
    """And gives the new value, never the old error; so do what it was made of, and what fails again."""
    counter = tmp_path / "count"

    def flaky(*_: Any) -> int:
        with counter.open("a") as file:
            file.write("x")
        times = len(counter.read_text())
        time.sleep(0.02)
        if times % 2:
            raise ValueError(f"at {times}")
        return times

    for _ in range(10):
        counter.unlink(missing_ok=True)
        origin = shared.submit(flaky, pure=False)
        child = shared.submit(inc, origin)
        other = shared.submit(inc, child)
        assert "at 1" in str(child.exception(SOON))
        assert "at 1" in str(origin.exception(SOON))
        child.retry()
        assert (origin.status, child.status) == ("pending", "pending")
        assert child.result(SOON) == 3
        assert origin.result(SOON) == 2
        assert isinstance(other.exception(SOON), ValueError)
        shared.retry([other, other, child])
        assert other.result(SOON) == 4
    counter.unlink()
    one = dask.delayed(flaky)()
    collection = dask.delayed(inc)(one)
    computed = shared.compute(collection)
    assert "at 1" in str(computed.exception(SOON))
    computed.retry()
    assert shared.gather(computed) == 3
    bad = shared.submit(fail, 5, pure=False)
    for _ in range(3):
        assert "no 5" in str(bad.exception(SOON))
        bad.retry()
        assert bad.status == "pending"


def test_retry_of_what_did_not_fail_changes_nothing(shared: Client) -> None:
    """Pending, finished, cancelled, of a key that nobody knows."""
    pending, done = shared.submit(nap, 1, pure=False), shared.submit(inc, 1, pure=False)
    assert done.result(SOON) == 2
    shared.retry([pending, done, done])
    assert (pending.result(SOON), done.result(SOON)) == (1, 2)
    unknown = Future("who-knows", shared)
    unknown.retry()
    cancelled_soon = ask(unknown)
    assert isinstance(cancelled_soon["result"], FutureCancelledError)
    done.cancel()
    done.retry()
    cancelled(done, "cancelled")


def test_scatter_of_equal_values(shared: Client) -> None:
    """The same value, the same key, several times in a call and in two, in every form that scatter takes."""
    assert shared.gather(shared.scatter([5, 5], timeout=SOON)) == [5, 5]
    assert shared.gather(shared.scatter((5, 5, 6), timeout=SOON)) == (5, 5, 6)
    assert shared.gather(shared.scatter([5, 5], hash=False, timeout=SOON)) == [5, 5]
    assert shared.gather(shared.scatter([5, 5], broadcast=True, direct=True, timeout=SOON)) == [5, 5]
    assert shared.gather(shared.scatter({"a": 5, "b": 5}, timeout=SOON)) == {"a": 5, "b": 5}
    assert shared.gather(shared.scatter({5, 6}, timeout=SOON)) == {5, 6}
    assert shared.gather(shared.scatter((n % 2 for n in range(4)), timeout=SOON)) == [0, 1, 0, 1]
    assert shared.gather(shared.scatter(range(3), timeout=SOON)) == [0, 1, 2]
    for empty in ([], (), set(), {}):
        assert shared.scatter(empty, timeout=SOON) == empty
    first, second = shared.scatter([7, 7], timeout=SOON)
    third = shared.scatter(7, timeout=SOON)
    first.release()
    second.release()
    assert third.result(SOON) == 7
    third.release()
    cancelled(third, "it was released")
    with pytest.raises(UsageError, match="nobody"):
        shared.scatter([8, 8], workers=["nobody"], timeout=SOON)
    assert shared.scatter(8, timeout=SOON).result(SOON) == 8


def test_the_same_key_several_times_in_a_call(shared: Client) -> None:
    """In every call that takes keys or futures; afterwards, nothing is left of them."""
    with shared.as_current():
        future = shared.submit(nap, 4, pure=False)
        assert shared.gather([future, future, {"x": future}]) == [4, 4, {"x": 4}]
        assert shared.submit(sum, [future, future]).result(SOON) == 8
        assert shared.gather(shared.map(inc, [3, 3], key=["same", "same"])) == [4, 4]
        assert shared.gather(shared.map(inc, [3, 3])) == [4, 4]
        assert shared.get({"x": (inc, 1)}, ["x", "x", ["x"]]) == [2, 2, [2]]
        delayed = dask.delayed(inc)(1)
        assert shared.gather(shared.compute([delayed, delayed])) == [2, 2]
        one, two = shared.persist([delayed, delayed])
        assert dask.compute(one, two, scheduler=shared.get) == (2, 2)
        normal = shared.normalize_collection(one)
        assert shared.compute(normal).result(SOON) == 2
        assert len(wait([future, future], timeout=SOON).done) == 1
        assert [done.result() for done in as_completed([future, future], timeout=SOON)] == [4, 4]
        shared.replicate([future, future])
        shared.publish_dataset([future, future], name="twice")
        shared.publish_dataset([future, future], name="twice", override=True)
        with pytest.raises(KeyError):
            shared.publish_dataset(future, name="twice")
        Queue("twice").put([future, future])
        Variable("twice").set([future, future])
        Variable("twice").set([future, future])
        fire_and_forget([future, future])
        fire_and_forget(future)
        future.release()
        kept = [shared.get_dataset("twice"), Queue("twice").get(), Variable("twice").get()]
        assert [[one.result(SOON) for one in two] for two in kept] == [[4, 4]] * 3
        shared.cancel([kept[0][0], kept[0][0]])
        assert [[one.status for one in two] for two in kept] == [["cancelled"] * 2] * 3
        shared.unpublish_dataset("twice")
        Variable("twice").delete()
        Queue("twice").close()
        del kept, one, two, normal, future
        gc.collect()
        until(lambda: not shared.who_has() and not any(shared.processing().values()))


#: What may be done with a key: each takes the client, the key and what is held, and may add to it.
ACTIONS: dict[str, Callable[[Client, str, list[Any]], Any]] = {
    "submit": lambda client, key, held: held.append(client.submit(inc, 1, key=key)),
    "fail": lambda client, key, held: held.append(client.submit(fail, 1, key=key)),
    "map": lambda client, key, held: held.extend(client.map(inc, [1, 1], key=[key, key])),
    "scatter": lambda client, key, held: held.append(client.scatter({key: 2}, timeout=SOON)[key]),
    "get": lambda client, key, held: held.append(client.get({key: (inc, 1)}, key, sync=False)),
    "release": lambda client, key, held: [future.release() for future in held[-1:]],
    "drop": lambda client, key, held: held.clear(),
    "cancel": lambda client, key, held: client.cancel(held[-1:] * 2),
    "force": lambda client, key, held: client.cancel(held[-1:], force=True),
    "retry": lambda client, key, held: client.retry(held[-1:] * 2),
    "adopt": lambda client, key, held: held.append(Future(key, client)),
    "use": lambda client, key, held: held.append(client.submit(inc, held[-1], pure=False) if held else None),
    "forget": lambda client, key, held: fire_and_forget(held),
    "wait": lambda client, key, held: _try_to(lambda: wait(held, timeout=SOON)),
    "publish": lambda client, key, held: _try_to(lambda: client.publish_dataset(held, name=key, override=True)),
    "take": lambda client, key, held: held.extend(client.get_dataset(key, [])),
    "unpublish": lambda client, key, held: _try_to(lambda: client.unpublish_dataset(key)),
}


def _try_to(call: Callable[[], Any]) -> None:
    try:
        call()
    except (KeyError, UsageError, FutureCancelledError):
        pass  # there is no such dataset, or one of the futures was let go of


def _all_end(client: Client, held: list[Any], told: str) -> None:
    for future in held:
        if future is None:
            continue
        try:
            value = future.result(SOON)
            assert value in (2, 3, 4, 5), (told, value)
        except TimeoutError:
            raise AssertionError(f"{told}: {future!r} never ends; {client.why(future.key)}") from None
        except (FutureCancelledError, LostDataError):
            assert future.status in ("cancelled", "lost", "error"), told
        except ValueError:
            pass  # what "fail" raises


def test_every_pair_of_calls_in_every_order(shared: Client) -> None:
    """Two calls on one key, after one that makes it, without waiting in between: every future ends."""
    number = 0
    for first in ("submit", "fail", "scatter"):
        for second, third in product(ACTIONS, repeat=2):
            number += 1
            key, held, told = f"pair-{number}", [], f"{first}, {second}, {third}"
            for action in (first, second, third):
                ACTIONS[action](shared, key, held)
            _all_end(shared, [one for one in held if one is not None], told)
            _try_to(lambda key=key: shared.unpublish_dataset(key))  # type: ignore[misc]
            held.clear()
    gc.collect()  # errors hold the frames that they came through, and these the futures
    until(lambda: not shared.who_has() and not any(shared.processing().values()))


def test_threads_that_change_their_minds_about_one_key(shared: Client) -> None:
    """Two clients with two threads each do whatever there is with the same few keys: every future ends."""
    errors: list[BaseException] = []
    with Client(shared.scheduler_address, set_as_default=False) as other:

        def work(seed: int, client: Client) -> None:
            rng = random.Random(seed)
            try:
                for turn in range(40):
                    held: list[Any] = []
                    chosen = [rng.choice(list(ACTIONS)) for _ in range(rng.randint(1, 6))]
                    for action in chosen:
                        ACTIONS[action](client, f"minds-{rng.randint(0, 1)}", held)
                        held = [one for one in held if one is not None]
                    _all_end(client, held, f"{seed}.{turn}: {chosen}")
            except BaseException as error:
                errors.append(error)

        threads = [
            threading.Thread(target=work, args=(seed, client)) for seed, client in enumerate([shared, other] * 2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not errors, errors
        for name in ("minds-0", "minds-1"):
            _try_to(lambda name=name: shared.unpublish_dataset(name))  # type: ignore[misc]
    gc.collect()
    until(lambda: not shared.who_has() and not any(shared.processing().values()))


def test_map_with_a_prefix(shared: Client) -> None:
    """Other inputs have other keys, the same inputs the same; impure calls have keys of their own."""
    first, second = shared.map(nap, [1, 2], [0, 0], key="text"), shared.map(nap, [3, 4], [0, 0], key="text")
    assert (shared.gather(first), shared.gather(second)) == ([1, 2], [3, 4])
    assert all(future.key.startswith("text-") for future in first)
    assert [future.key for future in shared.map(nap, [1, 2], [0, 0], key="text")] == [future.key for future in first]
    impure = [shared.map(nap, [1, 1], [0, 0], key="text", pure=False) for _ in range(2)]
    assert len({future.key for futures in impure for future in futures}) == 4
    other = shared.map(inc, [1, 2], key="text")
    assert shared.gather(other) == [2, 3]


def test_an_executor_that_no_worker_has(shared: Client, caplog: Any) -> None:
    """Is an error that names it, and those that there are; what a worker that comes may have is waited for, aloud."""
    with dask.annotate(executor="unknown"):
        future, graph = shared.submit(inc, 1, pure=False), shared.compute(dask.delayed(inc)(1))
    for one in (future, graph, shared.submit(inc, future)):
        with pytest.raises(ValueError, match=r"invalid executor 'unknown'.*'default'"):
            one.result(SOON)
    waiting = [shared.submit(inc, 1, workers=["nobody"]), shared.submit(inc, 1, resources={"Z": 1}, key="z")]
    until(lambda: "nobody" in caplog.text and "'Z'" in caplog.text)
    assert "waits for a worker" in caplog.text
    assert "nobody" in shared.why(waiting[0])
    assert [future.status for future in waiting] == ["pending", "pending"]
