"""Event orders of the list that need real processes; their ids are those of the list."""

from __future__ import annotations

import os
import signal
from typing import Any

import dask
import pytest

from shoal import Client, KilledWorker, LocalCluster
from shoal.errors import SerializationError, TaskError
from tests.integration.functions import inc, pid


class Awkward:
    """Cannot be pickled, and says so in its own way."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> Any:
        raise self.kind("not me")


class Silent(Exception):
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise SystemExit

    def __reduce__(self) -> Any:
        raise SystemExit


class Poisoned:
    """Can be pickled, and not read again."""

    def __reduce__(self) -> Any:
        return (_raise, ("not here",))


def _raise(text: str) -> None:
    raise RuntimeError(text)


def make(cls: Any, *args: Any) -> Any:
    return cls(*args)


def use(value: Any) -> str:
    return "used"


def fail_silently() -> None:
    raise Silent


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", [RuntimeError, RecursionError, KeyboardInterrupt, SystemExit])
def test_a26_what_raises_while_a_peer_asks_for_it(client: Client, kind: type[BaseException]) -> None:
    """Who asks is told; the workers go on."""
    first, second = client.nthreads()
    there = client.submit(make, Awkward, kind, workers=[first], pure=False)
    with pytest.raises(SerializationError, match="cannot be pickled"):
        client.submit(use, there, workers=[second]).result(20)
    assert client.submit(use, there, workers=[first], pure=False).result(20) == "used"
    with pytest.raises(SerializationError, match="cannot be pickled"):
        there.result(20)
    assert client.submit(inc, 1, workers=[second]).result(20) == 2


def test_an_exception_that_can_neither_be_pickled_nor_shown(client: Client) -> None:
    """The task fails all the same, and its thread lives on."""
    for _ in range(4):
        with pytest.raises(TaskError, match="Silent"):
            client.submit(fail_silently, pure=False).result(20)
    assert client.gather(client.map(inc, range(4))) == [1, 2, 3, 4]


def test_a27_what_cannot_be_read_where_it_came(client: Client) -> None:
    """The task that needs it fails with the reason; so does its result here."""
    first, second = client.nthreads()
    there = client.submit(make, Poisoned, workers=[first])
    with pytest.raises(RuntimeError, match="not here"):
        client.submit(use, there, workers=[second]).result(20)
    with pytest.raises((RuntimeError, SerializationError), match="not here"):
        there.result(20)
    assert client.submit(inc, 1, workers=[second]).result(20) == 2


def test_a28_tasks_that_kill_their_worker_one_after_another() -> None:
    """Each is given up, with who died of it; the cluster works on."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=1, threads_per_worker=1) as cluster,
        Client(cluster) as client,
    ):
        for _ in range(12):
            with pytest.raises(KilledWorker, match="signal 9"):
                client.submit(die, pure=False).result(30)
        assert client.submit(pid).result(30) in client.run(pid).values()
