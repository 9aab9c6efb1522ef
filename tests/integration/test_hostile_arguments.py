"""What users give is checked at the call that gives it: an error that names the argument, and nothing else is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import dask
import numpy
import pytest
from click.testing import CliRunner

import shoal
from shoal import Client, Event, Lock, MultiLock, Nanny, Queue, Semaphore, Variable, Worker
from shoal.checks import MOST_KEY, MOST_NAME
from shoal.cli import main
from shoal.errors import UsageError
from shoal.messages import Bye, Cancel, RunFunction, Subscribe, Unwant
from shoal.observe.spans import span

LONE = "caf\udce9"
#: What is no name: what UTF-8 cannot carry, nothing, far too much, and no text at all.
BAD_NAMES = [LONE, "x" * (MOST_NAME + 1), b"bytes", 1.5, ["list"], object()]
BAD_KEYS = [LONE, "", "x" * (MOST_KEY + 1), ("x", LONE), ("x", object()), float("nan"), ("x", float("inf")), ["list"]]
BAD_WORKERS = [LONE, [LONE], "", [""], [1.5], [None], 1.5, {"a": 1}, ["a\0b"], [10**30]]
BAD_NUMBERS = [10**30, -(10**30), float("nan"), float("inf"), "7", [1], object()]
BAD_COUNTS = [*BAD_NUMBERS, -1, 1.5]
BAD_AMOUNTS = [{"GPU": bad} for bad in [*BAD_NUMBERS[1:], 10**400, -1, None]] + [
    {LONE: 1},
    {"": 1},
    {1: 1},
    {"x" * 5000: 1},
    3,
    "GPU",
]
BAD_TIMES = [float("nan"), -1, "soon", [1]]


class Unsure:
    """Neither true nor false."""

    def __bool__(self) -> bool:
        raise KeyError("neither")


def inc(x: int) -> int:
    return x + 1


def annotated(**noted: Any) -> Callable[[Client], Any]:
    """A submission under an annotation."""

    def call(client: Client) -> Any:
        with dask.annotate(**noted):
            return client.submit(inc, 1, pure=False)

    return call


def graph(client: Client, **noted: Any) -> Any:
    with dask.annotate(**noted):
        value = dask.delayed(inc)(1)
    return client.compute(value, optimize_graph=False)


#: The argument as its error names it, calls with a bad value of it, and the bad values.
TABLE: list[tuple[str, str, Callable[[Client, Any], Any], list[Any]]] = [
    ("submit", "key", lambda c, v: c.submit(inc, 1, key=v), BAD_KEYS),
    ("map", "key", lambda c, v: c.map(inc, [1], key=[v]), BAD_KEYS),
    ("get", "key", lambda c, v: c.get({v: (inc, 1)}, v, sync=False), [LONE, "", ("x", LONE)]),
    ("scatter", "key", lambda c, v: c.scatter({v: 1}), [LONE, "", ("x", LONE)]),
    ("why", "key", lambda c, v: c.why(v), BAD_KEYS),
    ("story", "key", lambda c, v: c.story(v), BAD_KEYS),
    ("nbytes", "key", lambda c, v: c.nbytes([v]), BAD_KEYS),
    ("map", "key", lambda c, v: c.map(inc, [1], key=v), [LONE, "x" * (MOST_KEY + 1), "x" * 2**20]),
    ("submit", "priority", lambda c, v: c.submit(inc, 1, priority=v), BAD_NUMBERS),
    ("map", "priority", lambda c, v: c.map(inc, [1], priority=v), BAD_NUMBERS),
    ("compute", "priority", lambda c, v: c.compute(dask.delayed(inc)(1), priority=v), BAD_NUMBERS),
    ("annotate", "priority", lambda c, v: annotated(priority=v)(c), BAD_NUMBERS),
    ("graph", "priority", lambda c, v: graph(c, priority=v), BAD_NUMBERS),
    ("submit", "retries", lambda c, v: c.submit(inc, 1, retries=v), BAD_COUNTS),
    ("persist", "retries", lambda c, v: c.persist(dask.delayed(inc)(1), retries=v), BAD_COUNTS),
    ("annotate", "retries", lambda c, v: annotated(retries=v)(c), BAD_COUNTS),
    ("submit", "resources", lambda c, v: c.submit(inc, 1, resources=v), BAD_AMOUNTS),
    ("compute", "resources", lambda c, v: c.compute(dask.delayed(inc)(1), resources=v), BAD_AMOUNTS),
    ("annotate", "resources", lambda c, v: annotated(resources=v)(c), BAD_AMOUNTS),
    ("graph", "resources", lambda c, v: graph(c, resources=v), BAD_AMOUNTS),
    ("submit", "workers", lambda c, v: c.submit(inc, 1, workers=v), BAD_WORKERS),
    ("map", "workers", lambda c, v: c.map(inc, [1], workers=v), BAD_WORKERS),
    ("get", "workers", lambda c, v: c.get({"a": (inc, 1)}, "a", workers=v, sync=False), BAD_WORKERS),
    ("annotate", "workers", lambda c, v: annotated(workers=v)(c), BAD_WORKERS),
    ("graph", "workers", lambda c, v: graph(c, workers=v), BAD_WORKERS),
    ("scatter", "workers", lambda c, v: c.scatter([1], workers=v), BAD_WORKERS),
    ("run", "workers", lambda c, v: c.run(inc, 1, workers=v), BAD_WORKERS),
    ("retire_workers", "workers", lambda c, v: c.retire_workers(v), BAD_WORKERS),
    ("retire_workers", "names", lambda c, v: c.retire_workers(names=v), BAD_WORKERS),
    ("replicate", "workers", lambda c, v: c.replicate([], workers=v), BAD_WORKERS),
    ("rebalance", "workers", lambda c, v: c.rebalance(workers=v), BAD_WORKERS),
    ("restart_workers", "workers", lambda c, v: c.restart_workers(v), BAD_WORKERS),
    ("has_what", "workers", lambda c, v: c.has_what(v), BAD_WORKERS),
    ("nthreads", "workers", lambda c, v: c.nthreads(v), BAD_WORKERS),
    ("processing", "workers", lambda c, v: c.processing(v), BAD_WORKERS),
    ("profile", "workers", lambda c, v: c.profile(workers=v), BAD_WORKERS),
    ("annotate", "executor", lambda c, v: annotated(executor=v)(c), BAD_NAMES),
    ("submit", "fifo_timeout", lambda c, v: c.submit(inc, 1, fifo_timeout=v), BAD_TIMES),
    ("submit", "task_timeout", lambda c, v: c.submit(inc, 1, task_timeout=v), BAD_TIMES),
    ("map", "batch_size", lambda c, v: c.map(inc, [1], batch_size=v), [*BAD_COUNTS, 0]),
    ("Lock", "name", lambda c, v: Lock(v, client=c).acquire(), BAD_NAMES),
    ("Semaphore", "name", lambda c, v: Semaphore(1, v, client=c).acquire(), BAD_NAMES),
    ("Semaphore", "max_leases", lambda c, v: Semaphore(v, "s", client=c).acquire(), [*BAD_COUNTS, 0]),
    ("MultiLock", "names", lambda c, v: MultiLock([v], client=c).acquire(), BAD_NAMES),
    ("Event", "name", lambda c, v: Event(v, client=c).set(), BAD_NAMES),
    ("Event", "timeout", lambda c, v: Event("e", client=c).wait(v), BAD_TIMES),
    ("Queue", "name", lambda c, v: Queue(v, client=c).put(1), BAD_NAMES),
    ("Queue", "maxsize", lambda c, v: Queue("q", client=c, maxsize=v).put(1), BAD_COUNTS),
    ("Queue", "batch", lambda c, v: Queue("q", client=c).get(batch=v), [*BAD_COUNTS, 0]),
    ("Variable", "name", lambda c, v: Variable(v, client=c).set(1), BAD_NAMES),
    ("publish_dataset", "key", lambda c, v: c.publish_dataset(1, name=v), BAD_KEYS),
    ("get_dataset", "key", lambda c, v: c.get_dataset(v), BAD_KEYS),
    ("unpublish_dataset", "key", lambda c, v: c.unpublish_dataset(v), BAD_KEYS),
    ("set_metadata", "key", lambda c, v: c.set_metadata(v, 1), [LONE, ["a", LONE], [], [object()], "", "x" * 5000]),
    ("set_metadata", "value", lambda c, v: c.set_metadata("a", v), [LONE, 10**30, object(), {1: [LONE]}]),
    ("get_metadata", "key", lambda c, v: c.get_metadata(v), [LONE, ["a", LONE], [], [object()], ""]),
    ("log_event", "topic", lambda c, v: c.log_event(v, 1), [LONE, "", ["a", LONE], [1], "x" * 5000]),
    ("log_event", "message", lambda c, v: c.log_event("a", v), [LONE, 10**30, object(), [[LONE]]]),
    ("get_events", "topic", lambda c, v: c.get_events(v), BAD_NAMES),
    ("subscribe_topic", "topic", lambda c, v: c.subscribe_topic(v, print), BAD_NAMES),
    ("register_plugin", "name", lambda c, v: c.register_plugin(shoal.WorkerPlugin(), name=v), BAD_NAMES),
    ("unregister_worker_plugin", "name", lambda c, v: c.unregister_worker_plugin(v), BAD_NAMES),
    ("unregister_scheduler_plugin", "name", lambda c, v: c.unregister_scheduler_plugin(v), BAD_NAMES),
    ("forward_logging", "logger_name", lambda c, v: c.forward_logging(v), BAD_NAMES),
    ("span", "name", lambda c, v: span(v).__enter__(), BAD_NAMES),
    ("cancel", "reason", lambda c, v: c.cancel([], reason=v), [LONE, 5]),
    ("retire_workers", "reason", lambda c, v: c.retire_workers(reason=v), [LONE, 5]),
    ("submit", "actor", lambda c, v: c.submit(inc, 1, actor=v), [Unsure()]),
    ("submit", "allow_other_workers", lambda c, v: c.submit(inc, 1, workers="a", allow_other_workers=v), [Unsure()]),
    ("cancel", "force", lambda c, v: c.cancel([], force=v), [Unsure()]),
    ("run", "wait", lambda c, v: c.run(inc, 1, wait=v), [Unsure()]),
    ("restart", "wait_for_workers", lambda c, v: c.restart(wait_for_workers=v), [Unsure()]),
    ("register_plugin", "idempotent", lambda c, v: c.register_plugin(shoal.WorkerPlugin(), idempotent=v), [Unsure()]),
    ("retire_workers", "close_workers", lambda c, v: c.retire_workers([], close_workers=v), [Unsure()]),
    ("get_versions", "packages", lambda c, v: c.get_versions(packages=v), [[LONE], [object()]]),
    ("retire_workers", "n", lambda c, v: c.retire_workers(n=v), [10**30, LONE, object()]),
    ("replicate", "n", lambda c, v: c.replicate([], n=v), [*BAD_COUNTS, 0]),
    ("wait_for_workers", "n_workers", lambda c, v: c.wait_for_workers(v), [*BAD_COUNTS, 0]),
    ("scheduler_info", "n_workers", lambda c, v: c.scheduler_info(v), [10**30, 1.5, "7"]),
    ("get_task_stream", "count", lambda c, v: c.get_task_stream(count=v), BAD_COUNTS),
    ("Client", "name", lambda c, v: Client(c.cluster, name=v), [*BAD_NAMES, "a\0b", "x" * 1000]),
]  # fmt: skip


@pytest.mark.parametrize(("call", "argument", "make", "bad"), TABLE, ids=[f"{row[0]}-{row[1]}" for row in TABLE])
def test_a_bad_argument_is_an_error_that_names_it(
    shared: Client, call: str, argument: str, make: Callable[[Client, Any], Any], bad: list[Any]
) -> None:
    """At the call, as ValueError or TypeError; what was said before it and after it in the same turn is done."""
    for value in bad:
        before = shared.submit(inc, 1, pure=False)
        with pytest.raises((UsageError, TypeError)) as told:
            make(shared, value)
        after = shared.submit(inc, 2, pure=False)
        assert argument in str(told.value), f"{value!r:.50}: {told.value}"
        str(told.value).encode()
        assert shared.gather([before, after]) == [2, 3]


@pytest.fixture(scope="module")
def shared_cluster() -> Any:
    """One for all rows of the table, since none of them may harm it."""
    with shoal.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, memory_limit=0) as cluster:
        yield cluster


@pytest.fixture
def shared(shared_cluster: Any) -> Any:
    """A client of it."""
    with Client(shared_cluster) as client:
        yield client


def test_what_is_as_good_as_true_or_false_may_be_given_for_it(shared: Client) -> None:
    """It used to travel as it was, which closed the link, and took all other futures of the client along."""
    before = shared.submit(time.sleep, 0.2, pure=False)
    for value in (0, 1, 5, None, "yes", [], numpy.bool_(True)):
        told = shared.submit(inc, 1, actor=value, pure=False)
        shared.cancel([told], force=value)
        assert shared.run(inc, 1, wait=value) in (None, dict.fromkeys(shared.nthreads(), 2))
        shared.register_plugin(shoal.WorkerPlugin(), name="p", idempotent=value)
        shared.retire_workers([], close_workers=value, remove=value, force=value)
        shared.submit(inc, 1, workers=["nobody"], allow_other_workers=value, pure=False).cancel()
    assert before.result() is None


def test_a_message_that_is_none_of_the_protocol_is_an_error_where_it_is_said(shared: Client) -> None:
    """Whatever call forgets to check an argument: the link stays, and with it all that other calls wait for."""
    before = shared.submit(time.sleep, 0.2, pure=False)
    for message in (Subscribe("t", on=5), Subscribe("x" * 10**6), Bye(LONE), Unwant([None])):  # type: ignore
        with pytest.raises(UsageError, match=r"on does not|topic|cannot be sent|keys"):
            shared._connection.say(message)
    with pytest.raises(UsageError, match="force does not fit into Cancel"):
        shared._connection.cancel(Cancel([], 5), "no reason")  # type: ignore
    with pytest.raises(UsageError, match="wait does not fit into RunFunction"):
        shared.sync(shared._connection.request, lambda rid: RunFunction(rid, b"", wait=5))  # type: ignore
    assert before.result() is None


def test_numbers_of_numpy_are_numbers(shared: Client) -> None:
    """And what is strange but can be said is said."""
    future = shared.submit(
        inc,
        1,
        key="naïve \0 key ☃",
        priority=numpy.int32(3),
        retries=numpy.int64(2),
        resources={"GPU": numpy.float32(0)},
    )
    assert future.result() == 2
    assert shared.submit(inc, 2, priority=numpy.float64(1.5), pure=False).result() == 3
    assert shared.submit(inc, 2, key=("x", numpy.int64(0))).result() == 3
    assert Lock("naïve \0 ☃", client=shared).acquire(timeout=5)
    event = Event("x" * 4000, client=shared)
    event.set()
    assert event.is_set()


BAD_RESOURCES = [
    {"GPU": -1},
    {"GPU": float("nan")},
    {"GPU": float("inf")},
    {LONE: 1},
    {"": 1},
    {"GPU": "2"},
    {"GPU": 10**400},
]


@pytest.mark.parametrize("kind", [Worker, Nanny])
def test_what_workers_are_made_with(kind: Any) -> None:
    """Names, resources, threads: at the constructor."""
    for argument, bad in (
        ("name", [LONE, "", 1.5, "a\0b", "x" * 5000, b"w"]),
        ("resources", BAD_RESOURCES),
        ("nthreads", [0, -1, 10**30, 1.5, "2"]),
        ("executors", [{LONE: 1}, {"io": 0}, {"io": 10**30}, {"": 1}, {"io": 1.5}]),
    ):
        for value in bad:
            with pytest.raises(UsageError, match=argument):
                kind("tcp://127.0.0.1:9", **{argument: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [("--resources", "GPU=-1"), ("--resources", "GPU=nan"), ("--resources", "GPU=inf"), ("--resources", f"{LONE}=1"),
     ("--resources", "=1"), ("--name", LONE), ("--nthreads", str(10**30))],
)  # fmt: skip
@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_what_the_command_is_given(option: str, value: str, nanny: str) -> None:
    """As a line that names it, not as a traceback."""
    told = CliRunner().invoke(main, ["worker", "tcp://127.0.0.1:9", nanny, option, value])
    assert told.exit_code in (1, 2)
    assert option.strip("-") in told.output
    assert not isinstance(told.exception, TypeError)


def test_asynchronous_clients_check_alike() -> None:
    """Where a call is awaited, too."""

    async def check() -> None:
        async with (
            shoal.Scheduler() as scheduler,
            Worker(scheduler.address, nthreads=1),
            Client(scheduler.address, asynchronous=True) as client,
        ):
            good = client.submit(inc, 1)
            with pytest.raises(UsageError, match="key"):
                client.submit(inc, 1, key=LONE)
            with pytest.raises(UsageError, match="name"):
                await Lock(LONE, client=client).acquire()
            with pytest.raises(TypeError, match="value"):
                await client.set_metadata("a", LONE)
            assert await good == 2

    asyncio.run(check())
