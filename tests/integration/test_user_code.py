"""Code of users outside of tasks, on real clusters: it fails, and everything else goes on."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
import time
from typing import Any

import dask
import pytest

from shoal import (
    Adaptive,
    Client,
    LocalCluster,
    Scheduler,
    SchedulerPlugin,
    SpecCluster,
    Worker,
    WorkerPlugin,
    get_worker,
    wait,
)  # fmt: skip
from shoal.deploy.spec import ProcessInterface
from shoal.errors import StartError, TaskThreadError
from shoal.shell import doors
from tests.integration import hostile
from tests.integration.helpers import until
from tests.integration.hostile import DEEDS, METHODS


def _pid() -> int:
    return os.getpid()


def ends(call: Any, *args: Any) -> None:
    """It returns or raises, whatever that is, and does not run into a time limit."""
    try:
        call(*args)
    except TimeoutError:
        raise
    except BaseException:
        return


@pytest.fixture
def one(nothing_is_left: None) -> Any:
    """A client of a cluster with one worker of one thread."""
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        yield client


def test_no_result_costs_a_thread(one: Client) -> None:
    """Whatever its methods do when its size is asked, when it is pickled, shown, compared or let go of."""
    pid = one.submit(_pid).result(10)
    made = [
        one.submit(hostile.make, method, deed, pure=False)
        for method in [*METHODS, "nbytes", "__class__"]
        for deed in DEEDS
    ]
    wait(made, timeout=30)
    assert {future.status for future in made} == {"finished"}
    del made
    assert one.submit(_pid, pure=False).result(10) == pid


def test_no_exception_costs_a_thread(one: Client) -> None:
    """Whatever its methods do when it is told of, also when a client reads it."""
    pid = one.submit(_pid).result(10)
    for method in ("__str__", "__repr__", "__reduce__", "__reduce_ex__", "__getstate__", "args", "__cause__"):
        failed = [one.submit(hostile.fail, method, deed, pure=False) for deed in DEEDS]
        wait(failed, timeout=30)
        assert {future.status for future in failed} == {"error"}
        assert all(isinstance(future.exception(10), BaseException) for future in failed)
    raised = [one.submit(hostile.deed, deed, pure=False) for deed in DEEDS]
    wait(raised, timeout=30)
    assert one.submit(_pid, pure=False).result(10) == pid


def _end_threads(how: str) -> int:
    """End another thread of this worker that runs tasks."""
    other = next(
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("shoal-task") and thread is not threading.current_thread()
    )
    assert other.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(other.ident), ctypes.py_object(SystemExit))
    return other.ident


def test_a_thread_that_is_ended_is_replaced_and_told_of() -> None:
    """By an exception that another thread sends it while it waits; its place is taken, and the cluster hears of it."""
    with LocalCluster(n_workers=1, threads_per_worker=2) as cluster, Client(cluster) as client:
        events: list[Any] = []
        client.subscribe_topic("all", lambda event: events.append(event[1]))
        pid = client.submit(_pid).result(10)
        client.submit(_end_threads, "async").result(10)
        # It hears of it when it is woken for the next task.
        client.gather(client.map(time.sleep, [0.05] * 8, pure=False))
        until(lambda: any(told.get("action") == "incident" for told in events))
        threads = client.run(_threads_of_pool)
        assert list(threads.values()) == [2]
        assert client.submit(_pid, pure=False).result(10) == pid


def _threads_of_pool() -> int:
    return sum(thread.name.startswith("shoal-task") for thread in threading.enumerate())


def _exit_from_c() -> None:
    """End this thread behind Python's back."""
    ctypes.CDLL(None).pthread_exit(None)


def test_a_thread_that_is_gone_without_a_word_is_noticed(one: Client) -> None:
    """Native code may end it: its task fails, and another thread takes its place within some heartbeats."""
    pid = one.submit(_pid).result(10)
    gone = one.submit(_exit_from_c)
    with pytest.raises(TaskThreadError, match="ended from outside"):
        gone.result(20)
    assert one.submit(_pid, pure=False).result(10) == pid


def _change_the_process() -> None:
    """What a careless task does to the process that it shares with others."""
    sys.stdout = None  # type: ignore[assignment]
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    sys.stderr.close()
    gone = os.path.join(get_worker().local_directory, "gone")
    os.mkdir(gone)
    os.chdir(gone)
    os.rmdir(gone)
    sys.setrecursionlimit(60)
    sys.setswitchinterval(0.5)


def test_a_task_that_changes_its_process_changes_no_other(one: Client) -> None:
    """Closed standard files, a working directory that is gone, a low recursion limit: tasks go on."""
    one.submit(_change_the_process).result(10)
    assert one.gather(one.map(str, range(20))) == [str(number) for number in range(20)]
    assert one.submit(abs, -4, killable=True).result(20) == 4
    assert isinstance(one.submit(hostile.fail, "__str__", "Exception").exception(10), BaseException)


class EverythingFails(SchedulerPlugin):
    """Each of its hooks does the same."""

    def __init__(self, deed: str) -> None:
        self.deed = deed

    def add_worker(self, *args: Any, **kwargs: Any) -> Any:
        return DEEDS[self.deed]()

    transition = update_graph = add_client = remove_client = log_event = add_worker
    remove_worker = worker_died = valid_workers_downscaling = before_close = close = add_worker


class WorkerFails(WorkerPlugin):
    """As the other, in workers."""

    def __init__(self, deed: str) -> None:
        self.deed = deed

    def transition(self, *args: Any, **kwargs: Any) -> Any:
        return DEEDS[self.deed]()

    teardown = transition


async def _cancel_oneself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(10)


def test_a_function_that_cancels_the_task_that_runs_it_is_answered(one: Client) -> None:
    """On the scheduler, workers and nannies."""
    for call, options in ((one.run_on_scheduler, {}), (one.run, {}), (one.run, {"nanny": True})):
        with pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
            call(_cancel_oneself, **options)
        assert call(_pid, **options)


def test_the_time_for_a_result_holds_for_its_way_here_too(one: Client) -> None:
    """The task is done, and its worker stands still."""
    future = one.submit(bytes, 3_000_000)
    wait(future)
    (pid,) = one.run(os.getpid).values()
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError, match=r"is done, and its value was not here after 0\.5 s"):
            future.result(0.5)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert len(future.result(30)) == 3_000_000


def test_no_hook_function_callback_or_handler_costs_a_program() -> None:
    """Of plugins, of functions that are run at once, of futures and of topics; each failure is told."""
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        pids = client.run(os.getpid), client.run_on_scheduler(os.getpid)
        for deed in DEEDS:
            client.register_plugin(EverythingFails(deed), name=f"scheduler-{deed}")
            client.register_plugin(WorkerFails(deed), name=f"worker-{deed}")
        for deed in DEEDS:
            future = client.submit(abs, 1, pure=False)
            future.add_done_callback(lambda _, deed=deed: DEEDS[deed]())
            assert future.result(10) == 1
            client.subscribe_topic(f"topic-{deed}", lambda _, deed=deed: DEEDS[deed]())
            client.log_event(f"topic-{deed}", 1)
            for where in (client.run, client.run_on_scheduler):
                ends(where, hostile.deed, deed)
        for deed in ("SystemExit", "None"):
            ends(client.unregister_worker_plugin, f"worker-{deed}")
        assert client.submit(abs, -2).result(10) == 2
        assert (client.run(os.getpid), client.run_on_scheduler(os.getpid)) == pids


class Actor:
    """Its methods misbehave."""

    def do(self, deed: str) -> Any:
        return DEEDS[deed]()

    def __getattr__(self, name: str) -> Any:
        return DEEDS[name.removeprefix("do_")]() if name.startswith("do_") else object.__getattribute__(self, name)


def test_no_method_of_an_actor_costs_a_worker(one: Client) -> None:
    """The call raises what it raised."""
    pid = one.submit(_pid).result(10)
    actor = one.submit(Actor, actor=True).result(10)
    for deed in DEEDS:
        ends(lambda deed=deed: actor.do(deed).result(10))
    assert one.submit(_pid, pure=False).result(10) == pid


def test_what_is_read_may_do_anything(one: Client) -> None:
    """Arguments whose unpickling exits fail their task, not its worker."""
    pid = one.submit(_pid).result(10)
    for deed in DEEDS:
        future = one.submit(id, Unread(deed), pure=False)
        wait(future, timeout=10)
    assert one.submit(_pid, pure=False).result(10) == pid


class Unread:
    """It does its deed when it is unpickled."""

    def __init__(self, deed: str) -> None:
        self.deed = deed

    def __reduce__(self) -> Any:
        return hostile.deed, (self.deed,)


def test_arguments_that_misbehave_are_the_callers_error(one: Client) -> None:
    """When the key is made, hashed, compared or pickled: the call raises, and the client goes on."""
    for method in (
        "__dask_tokenize__",
        "__hash__",
        "__eq__",
        "__bool__",
        "__repr__",
        "__reduce_ex__",
        "__dask_graph__",
    ):
        for deed in DEEDS:
            hostile_one = hostile.make(method, deed)
            ends(lambda value=hostile_one: one.submit(bool, value).cancel())
            ends(lambda value=hostile_one: one.scatter(value))
            ends(lambda value=hostile_one: one.map(bool, [value]))
    assert one.submit(abs, -3).result(10) == 3


def test_no_metric_or_preload_costs_a_worker() -> None:
    """A metric that fails is None in the heartbeat; a preload fails the start with its words."""

    async def main() -> None:
        async with Scheduler() as scheduler:
            for deed in ("SystemExit", "CancelledError", "recursion"):
                text = f"from tests.integration.hostile import DEEDS\ndask_setup = lambda worker: DEEDS[{deed!r}]()\n"
                worker = Worker(scheduler.address, nthreads=1, preload=[text])
                with pytest.raises(BaseException, match=r"preload|recursion"):
                    await worker
            metrics = {name: lambda worker, name=name: DEEDS[name]() for name in DEEDS if name != "KeyboardInterrupt"}
            async with (
                Worker(scheduler.address, nthreads=1, metrics=metrics, heartbeat_interval="20 ms") as worker,
                Client(scheduler.address, asynchronous=True) as client,
            ):
                found = (await worker.get_metrics())["huge"]
                assert found is None
                await asyncio.sleep(0.2)
                assert await client.submit(abs, -1) == 1

    asyncio.run(main())


class Job(ProcessInterface):
    """It does its deed when it is started or ended."""

    def __init__(self, scheduler: str, name: Any, when: str, deed: str) -> None:
        super().__init__(scheduler, name)
        self.when, self.deed = when, deed

    async def start(self) -> None:
        if self.when == "start":
            DEEDS[self.deed]()
        await super().start()

    async def close(self) -> None:
        if self.when == "close":
            DEEDS[self.deed]()
        await super().close()


def test_a_manager_of_workers_may_do_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its objects' ``start`` and ``close``, and the methods of an ``Adaptive`` of its own: the cluster closes."""
    monkeypatch.setattr(doors.signal, "getsignal", lambda number: None)

    async def main(when: str, deed: str) -> None:
        spec = {"cls": Job, "options": {"when": when, "deed": deed}}
        cluster = SpecCluster({0: spec, 1: spec}, worker=spec, asynchronous=True)
        try:
            with contextlib.suppress(
                StartError, KeyError, MemoryError, RecursionError, RuntimeError, StopAsyncIteration
            ):
                await cluster
                with contextlib.suppress(Exception):
                    adaptive = cluster.adapt(minimum=0, maximum=2, interval="10 ms", Adaptive=Moody)
                    adaptive.deed = deed
                    await asyncio.sleep(0.05)
                    assert adaptive._task is not None
                    assert not adaptive._task.done()
        finally:
            await cluster.close()

    for when in ("start", "close"):
        for deed in ("Exception", "BaseException", "SystemExit", "KeyboardInterrupt", "StopIteration", "recursion"):
            asyncio.run(asyncio.wait_for(main(when, deed), 20))


class Moody(Adaptive):
    """Its target does a deed."""

    deed = "None"

    async def target(self) -> int:
        DEEDS[self.deed]()
        return 0


def _use_up_descriptors() -> int:
    """As a task does that leaks files."""
    limit = len(os.listdir("/proc/self/fd")) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    _kept.extend(os.dup(0) for _ in range(limit - len(os.listdir("/proc/self/fd"))))
    return os.getpid()


_kept: list[int] = []


def _give_back() -> int:
    count = len(_kept)
    while _kept:
        os.close(_kept.pop())
    return count


def test_a_task_that_uses_up_all_descriptors_costs_no_thread() -> None:
    """Tasks that need none go on, and so do heartbeats."""
    with (
        dask.config.set({"distributed.worker.heartbeat-interval": "50ms"}),
        LocalCluster(n_workers=1, threads_per_worker=1) as cluster,
        Client(cluster) as client,
    ):
        pid = client.submit(_use_up_descriptors).result(10)
        assert client.gather(client.map(abs, range(20))) == list(range(20))
        time.sleep(0.2)
        assert all(count > 0 for count in client.run(_give_back).values())
        assert client.submit(_pid, pure=False).result(10) == pid
