"""The cluster as an executor, futures as concurrent.futures has them, tasks that run for nobody, async tasks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
import traceback
from pathlib import Path

import pytest

from shoal import Client, LocalCluster, fire_and_forget, futures_of, get_client
from shoal.errors import ClosedClientError
from tests.integration.functions import inc
from tests.integration.helpers import until


def _fail(text: str) -> None:
    raise ZeroDivisionError(text)


def _sleep(seconds: float, value: int = 0) -> int:
    time.sleep(seconds)
    return value


def _options(key: str, workers: int = 0) -> tuple[str, int]:
    return key, workers


def test_an_executor_as_the_standard_library_has_it(client: Client) -> None:
    """submit, map, wait, as_completed, errors, cancelling, asyncio's run_in_executor."""
    with client.get_executor(retries=0) as executor:
        assert isinstance(executor, concurrent.futures.Executor)
        future = executor.submit(inc, 1)
        assert isinstance(future, concurrent.futures.Future)
        assert future.result(timeout=20) == 2
        assert executor.submit(_options, key="k", workers=3).result() == ("k", 3)
        assert list(executor.map(inc, range(20), timeout=20)) == list(range(1, 21))
        error = executor.submit(_fail, "no").exception(timeout=20)
        assert isinstance(error, ZeroDivisionError)
        calls = [executor.submit(_sleep, 0.01 * number, number) for number in range(4)]
        done, left = concurrent.futures.wait(calls, timeout=20)
        assert (len(done), left) == (4, set())
        assert {call.result() for call in concurrent.futures.as_completed(calls)} == {0, 1, 2, 3}

        async def ask() -> int:
            return await asyncio.get_running_loop().run_in_executor(executor, inc, 5)

        assert asyncio.run(ask()) == 6
        with pytest.raises(TimeoutError):
            list(executor.map(_sleep, [5, 5, 5], timeout=0.05))
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(inc, 1)
    with pytest.raises(TypeError, match="nonsense"):
        client.get_executor(nonsense=1)


def test_calls_of_an_executor_are_cancelled(client: Client) -> None:
    """By their future, or all at the end."""
    executor = client.get_executor()
    many = [executor.submit(_sleep, 30, number) for number in range(6)]
    assert many[0].cancel()
    assert many[0].cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        many[0].result()
    executor.shutdown(wait=True, cancel_futures=True)
    assert all(call.cancelled() for call in many)
    until(lambda: not any(client.processing().values()))


def test_our_futures_in_functions_of_the_standard_library(client: Client) -> None:
    """concurrent.futures.wait and as_completed take them, of whatever fate."""
    good = client.map(_sleep, [0.01, 0.02, 0.03], range(3), pure=False)
    bad, late = client.submit(_fail, "x"), client.submit(_sleep, 20, 9)
    done, left = concurrent.futures.wait([*good, bad], timeout=20)
    assert (done, left) == ({*good, bad}, set())
    done, left = concurrent.futures.wait([late, *good], return_when=concurrent.futures.FIRST_COMPLETED)
    assert late in left
    raised = concurrent.futures.wait([late, bad], return_when=concurrent.futures.FIRST_EXCEPTION, timeout=20)
    assert bad in raised.done
    assert set(concurrent.futures.as_completed([*good, bad])) == {*good, bad}
    with pytest.raises(TimeoutError):
        list(concurrent.futures.as_completed([late], timeout=0.05))
    assert not late.running()
    gone = client.submit(_sleep, 20, 10)
    threading.Timer(0.05, gone.cancel).start()
    assert concurrent.futures.wait([gone], timeout=20).done == {gone}
    late.cancel()


def test_waiting_for_many_while_they_finish(client: Client) -> None:
    """However a future's end and the beginning of the wait fall together, none is waited for in vain."""
    for _ in range(10):
        futures = client.map(inc, range(300), pure=False)
        assert len(concurrent.futures.wait(futures, timeout=20).done) == 300


def test_tasks_run_for_nobody(client: Client, tmp_path: Path) -> None:
    """Fired and forgotten: they run to their end, even if the client closes; then nothing is kept of them."""
    done = tmp_path / "done"
    fire_and_forget(client.submit(_touch, str(done), client.submit(_sleep, 0.1)))
    with Client(client.cluster, set_as_default=False) as other:
        fire_and_forget([other.submit(_touch, str(tmp_path / "other"), other.submit(_sleep, 0.2, 1)), 5])
        fire_and_forget(other.submit(_fail, "nobody sees it"))
    until(done.exists)
    until((tmp_path / "other").exists)
    until(lambda: not client.run_on_scheduler(_known))


def _known(dask_scheduler) -> list[str]:
    return list(dask_scheduler.core.state.tasks)


def _touch(path: str, after: int) -> None:
    Path(path).touch()


async def _add(x: int, y: int) -> int:
    await asyncio.sleep(0.01)
    return x + y


async def _spread(n: int) -> int:
    client = get_client()
    return sum(await asyncio.gather(*(client.submit(inc, number) for number in range(n))))


def test_tasks_may_be_coroutine_functions(client: Client) -> None:
    """They are awaited, on a loop of their own."""
    assert client.submit(_add, 1, 2).result() == 3
    assert client.gather(client.map(_add, range(5), range(5))) == [0, 2, 4, 6, 8]
    assert client.submit(_spread, 3).result() == 6


def test_a_client_is_of_no_use_after_a_fork(client: Client) -> None:
    """A clear error in the child, and no harm to the parent."""
    import os

    future = client.submit(inc, 1)
    assert future.result() == 2
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            client.submit(inc, 2)
        except ClosedClientError as error:
            os.write(writing, str(error).encode())
        except BaseException as error:
            os.write(writing, repr(error).encode())
        client.close()
        os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with open(reading, "rb") as pipe:
        assert b"forked" in pipe.read()
    assert client.submit(inc, 3).result() == 4


def test_futures_inside_of_things(client: Client) -> None:
    """Lists, mappings, collections; what was cancelled is an error where a client is given."""
    import dask.array

    array = dask.array.ones((4, 4), chunks=2).persist()
    plain = client.submit(inc, 1)
    found = futures_of([array, {"x": plain}, 1])
    assert len(found) == 5
    assert plain in found
    assert client.futures_of(array) == futures_of(array, client=client)
    late = client.submit(_sleep, 20)
    late.cancel()
    until(late.cancelled)
    with pytest.raises(concurrent.futures.CancelledError):
        client.futures_of([late])
    assert futures_of(late) == [late]


def test_dask_computes_with_the_client_that_is_current(nothing_is_left) -> None:
    """The newest default, the one that was chosen, and none when all are closed, in whatever order."""
    import dask
    import dask.config

    value = dask.delayed(_where)()
    with LocalCluster(n_workers=1, processes=False) as one, LocalCluster(n_workers=1, processes=False) as two:
        first, second = Client(one), Client(two)
        addresses = [next(iter(client.scheduler_info()["workers"])) for client in (first, second)]
        assert value.compute() == addresses[1]
        with first.as_current():
            assert value.compute() == addresses[0]
        first.close()
        assert value.compute() == addresses[1]
        second.close()
        assert dask.config.get("scheduler", None) is None
        assert dask.delayed(inc)(1).compute(scheduler="sync") == 2


def _where() -> str:
    from shoal import get_worker

    return str(get_worker().address)


def _chain() -> None:
    try:
        try:
            {}["the cause"]
        except KeyError as first:
            raise ValueError("the middle") from first
    except ValueError:
        raise RuntimeError("the end")  # noqa: B904 - the context is what is looked for


@pytest.mark.parametrize("killable", [False, True])
def test_errors_keep_what_led_to_them(client: Client, killable: bool) -> None:
    """The cause, what was being handled, and the traceback of each."""
    error = client.submit(_chain, killable=killable).exception()
    assert isinstance(error, RuntimeError)
    middle = error.__context__
    assert isinstance(middle, ValueError)
    assert isinstance(middle.__cause__, KeyError)
    for one in (error, middle, middle.__cause__):
        names = [frame.name for frame in traceback.extract_tb(one.__traceback__)]
        assert "_chain" in names
    told = "".join(traceback.format_exception(error))
    assert "the direct cause of the following" in told
    assert told.count("_chain") >= 3


def test_streams_of_inputs(client: Client) -> None:
    """With a batch size, the first calls run while the last inputs are not there yet."""
    first_done = threading.Event()

    def inputs():
        yield from range(4)
        assert first_done.wait(20), "nothing ran while the stream went on"
        yield from range(4, 6)

    def watch() -> None:
        until(lambda: any("sleep" in row["key"] for row in client.get_task_stream()))
        first_done.set()

    threading.Thread(target=watch).start()
    futures = client.map(_sleep, (0.01 for _ in range(100)), inputs(), batch_size=2)
    assert client.gather(futures) == list(range(6))
    named = {future.key for future in client.map(inc, range(3), key="k", batch_size=2)}
    assert len(named) == 3
    assert all(key.startswith("k-") for key in named)
    assert client.map(inc, []) == []
    for key in (["a"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match=f"{len(key)} keys"):
            client.map(inc, [1, 2], key=key)
