"""Programs that clients come to and leave keep nothing of them: the containers of their cores and of their shells."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import shoal
from shoal.sim.inventory import REMEMBERED, SLACK

#: Entries of tables that are swept now and then.
_SWEPT = {**SLACK, "OpenWorkers._heap": 64}
#: What goes up and down with the load of the moment.
_NOISE = 8


def _held(dask_scheduler: Any = None, dask_worker: Any = None) -> Counter[str]:
    from shoal.sim.inventory import sizes

    return sizes(dask_scheduler if dask_scheduler is not None else dask_worker, ("shoal.",))


def _fail() -> None:
    raise ValueError("as planned")


def _visit(cluster: Any, number: int) -> None:
    with shoal.Client(cluster.scheduler_address, set_as_default=False) as guest:
        assert guest.submit(len, bytes(number), pure=False).result() == number
        assert guest.gather(guest.map(lambda x: x + number, range(5))) == [x + number for x in range(5)]
        assert isinstance(guest.submit(_fail, pure=False).exception(), ValueError)
        with shoal.Lock(f"lock-{number}", client=guest):
            pass
        assert guest.submit(len, guest.scatter(bytes(20_000 + number), hash=False)).result() == 20_000 + number
        guest.cancel(guest.submit(time.sleep, 0.05, pure=False))
        guest.run(len, b"")
        guest.run_on_scheduler(len, b"")


def _look(client: Any) -> dict[str, Counter[str]]:
    found = {"scheduler": client.run_on_scheduler(_held), "client": _held(dask_worker=client)}
    found["cluster"] = _held(dask_worker=client.cluster)
    for nanny in (False, True):
        for address, sizes in client.run(_held, nanny=nanny).items():
            found[f"{'nanny' if nanny else 'worker'} {address}"] = sizes
    return found


def _grown(before: dict[str, Counter[str]], after: dict[str, Counter[str]]) -> list[str]:
    return [
        f"{program}: {path}: {size} instead of {before[program][path]}"
        for program, sizes in after.items()
        for path, size in sizes.items()
        if path not in REMEMBERED and size > before[program][path] + _SWEPT.get(path, _NOISE)
    ]


def test_programs_keep_nothing_of_clients_that_left() -> None:
    with (
        shoal.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster,
        shoal.Client(cluster) as client,
    ):
        for number in range(3):
            _visit(cluster, number)
        before = _look(client)
        assert all(len(sizes) > 10 for sizes in before.values()), before
        for number in range(3, 20):
            _visit(cluster, number)
        deadline = time.monotonic() + 20
        while grown := _grown(before, _look(client)):
            assert time.monotonic() < deadline, grown
            time.sleep(0.1)
