"""Large values between processes: through the reader's own eyes, over the link, and from those who die meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from shoal import Client
from shoal.shell import direct
from shoal.shell.areas import Areas

np = pytest.importorskip("numpy")


def make(seed: int, n: int = 2_000_000) -> Any:
    return np.random.default_rng(seed).random(n)


def total(array: Any) -> float:
    return float(array.sum())


def lent(dask_worker: Any) -> int:
    return len(dask_worker.program._lent)


def test_large_values_are_read_from_the_memory_of_their_worker(client: Client) -> None:
    """To the client and between workers; what was lent is let go of; the copy may be written to."""
    here, there = client.nthreads()
    array = client.submit(make, 1, workers=[here])
    got = array.result(30)
    assert (got == make(1)).all()
    got[0] = 0
    assert client.submit(total, array, workers=[there]).result(30) == pytest.approx(make(1).sum())
    assert set(client.run(lent).values()) == {0}


def test_they_go_over_the_link_where_memory_cannot_be_read(client: Client, monkeypatch) -> None:
    """As in a container that forbids it: the same values, and no second try."""
    tried = []

    async def refuse(pid: int, address: int, target: memoryview) -> None:
        tried.append(pid)
        raise PermissionError(1, "not here")

    monkeypatch.setattr(direct, "read", refuse)
    (where,) = list(client.nthreads())[:1]
    for seed in (2, 3):
        assert (client.submit(make, seed, workers=[where]).result(30) == make(seed)).all()
    assert len(tried) == 1
    assert set(client.run(lent).values()) == {0}


def test_a_holder_that_dies_while_its_memory_is_read(client: Client, monkeypatch) -> None:
    """The value is computed again, on another worker, and is right."""
    real, killed = direct.read, []

    async def kill_first(pid: int, address: int, target: memoryview) -> None:
        if not killed:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.2)
        await real(pid, address, target)

    monkeypatch.setattr(direct, "read", kill_first)
    assert (client.submit(make, 4).result(60) == make(4)).all()
    assert len(killed) == 1


def test_many_buffers_of_all_sizes(client: Client) -> None:
    """Nested containers of arrays, some below and some above each threshold, keep their values and order."""
    sizes = [0, 1, 10, 5_000, 50_000, 200_000, 1_000_000]
    found = client.submit(lambda: {n: [make(n, n), str(n)] for n in sizes}).result(30)
    assert list(found) == sizes
    assert all((found[n][0] == make(n, n)).all() and found[n][1] == str(n) for n in sizes)


def test_areas_are_used_again_once_their_views_are_gone() -> None:
    """Not before."""
    areas = Areas()
    one = areas.allocate(3 << 20)
    two = areas.allocate(3 << 20)
    one[:] = b"1" * len(one)
    two[:] = b"2" * len(two)
    assert bytes(one[:1]) == b"1"
    assert len(areas) == 2
    view = memoryview(one)[5:10]
    del one
    three = areas.allocate(3 << 20)
    assert len(areas) == 3
    del view
    four = areas.allocate(3 << 20)
    assert len(areas) == 3
    assert bytes(four[:1]) == b"1"
    del two, three, four
    areas.most_idle = 0
    areas.trim()
    assert len(areas) == 0
