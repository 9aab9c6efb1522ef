"""Comings and goings for minutes, and whether the memory of every process stays flat.

    python tools/memory_soak.py [--minutes 30] [--most 60]

Clients connect and leave, one worker is killed again and again, locks, queues, variables, events, topics, functions,
spans and prefixes have fresh names, tasks fail, are cancelled, return large values. The memory of each process that
lives throughout is sampled; it is judged in the second half of the time, when what is remembered on purpose is full.
Status 1 if one grows by more than ``--most`` megabytes an hour then (Theil and Sen's estimate: the median of the slopes
between all pairs of samples), or if anything comes out wrong. ``--rows FILE`` writes each sample as it is taken.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO
from uuid import uuid4

import dask
import psutil
from rich.console import Console
from rich.table import Table

import shoal
from shoal.errors import FutureCancelledError

#: What is remembered on purpose is little, so that it is full by the end of the warm-up.
SHORT = {
    "shoal.scheduler.story-length": 1000,
    "distributed.scheduler.dashboard.tasks.task-stream-length": 1000,
    "distributed.scheduler.events-cleanup-delay": "5s",
    "distributed.admin.low-level-log-length": 100,
    "distributed.admin.log-length": 200,
}

Samples = dict[str, list[tuple[float, float]]]


def _grow(number: int, size: int) -> bytes:
    return bytes([number % 256]) * size


def _fail(number: int) -> None:
    raise ValueError(f"as planned {number}")


def _nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def _fresh() -> str:
    return uuid4().hex


def _client_comes_and_goes(client: Any, rng: random.Random) -> None:
    with shoal.Client(client.cluster or client.scheduler_address, set_as_default=False) as other:
        other.subscribe_topic("soak", lambda event: None)
        futures = other.map(_grow, range(20), [rng.choice([10, 10_000])] * 20, pure=False)
        other.log_event("soak", {"number": 1})
        assert len(other.gather(futures)) == 20


def _meeting(client: Any, rng: random.Random) -> None:
    name = _fresh()
    with shoal.Lock(name, client=client):
        pass
    event = shoal.Event(name, client=client)
    event.set()
    event.clear()
    queue = shoal.Queue(name, client=client)
    queue.put(client.submit(_grow, rng.randrange(10**9), 1000))
    assert len(queue.get().result()) == 1000
    queue.close()
    variable = shoal.Variable(name, client=client)
    variable.set(5)
    assert variable.get() == 5
    variable.delete()
    client.log_event(name, "a topic of a fresh name")


def _fresh_function(number: int) -> Callable[[int], int]:
    def fresh(x: int) -> int:
        return x + number

    fresh.__name__ = fresh.__qualname__ = f"fresh_{number}"
    return fresh


def _functions(client: Any, rng: random.Random) -> None:
    number = rng.randrange(10**9)
    with shoal.span(f"span-{number}"):
        assert client.gather(client.map(_fresh_function(number), range(5))) == [number + x for x in range(5)]


def _failures(client: Any, rng: random.Random) -> None:
    futures = client.map(_fail, range(10), pure=False)
    assert all(isinstance(future.exception(), ValueError) for future in futures)


def _cancellations(client: Any, rng: random.Random) -> None:
    futures = client.map(_nap, [0.01] * 100, pure=False)
    client.cancel(futures[::2])
    for future in futures[::2]:
        try:
            future.result()
        except FutureCancelledError:
            pass
    client.gather(futures[1::2])


def _large(client: Any, rng: random.Random) -> None:
    values = client.gather(client.map(_grow, range(5), [5_000_000] * 5, pure=False))
    assert sum(map(len, values)) == 25_000_000
    assert client.submit(len, client.scatter(values[0], hash=False)).result() == 5_000_000


def _restricted(client: Any, rng: random.Random) -> None:
    # not worker 0, which may be killed before the task is there: nobody would ever have its old address again
    workers = [address for address, one in client.scheduler_info()["workers"].items() if str(one["name"]) != "0"]
    worker = rng.choice(workers)
    client.submit(_grow, rng.randrange(10**9), 10, workers=[worker, _fresh()]).result()


def _kill(client: Any, rng: random.Random) -> None:
    found = [one for one in client.scheduler_info()["workers"].values() if str(one["name"]) == "0"]
    if found:
        with contextlib.suppress(ProcessLookupError):  # the last one was killed a moment ago, and is still listed
            os.kill(found[0]["pid"], signal.SIGKILL)
        client.submit(_nap, 0.0, pure=False).result()


ACTS: dict[Callable[[Any, random.Random], None], int] = {
    _client_comes_and_goes: 6, _meeting: 8, _functions: 8, _failures: 4, _cancellations: 3, _large: 3,
    _restricted: 6, _kill: 1,
}  # fmt: skip


def _fill(client: Any) -> None:
    """Fill the tables of topics, prefixes of tasks, spans and functions, for which comings and goings take an hour."""
    client.log_event([f"filled-{number}" for number in range(10_000)], "a topic")
    for first in range(0, 10_000, 1000):
        client.gather([client.submit(len, b"", key=f"filled{number}-0") for number in range(first, first + 1000)])
    for number in range(1000):
        with shoal.span(f"filled-{number}"):
            client.submit(len, b"", key=f"filled-{number}").result()
    workers = [address for address, one in client.scheduler_info()["workers"].items() if str(one["name"]) != "0"]
    for number in range(1000):
        client.gather([client.submit(_fresh_function(number), 1, workers=[worker], pure=False) for worker in workers])


def _sample(client: Any, began: float, samples: Samples, rows: TextIO | None) -> None:
    processes = {"client": os.getpid(), "scheduler": client.run_on_scheduler(os.getpid)}
    for one in client.scheduler_info()["workers"].values():
        if str(one["name"]) != "0":
            processes[f"worker {one['name']}"] = one["pid"]
            processes["fork server"] = psutil.Process(one["pid"]).ppid()
    for name, pid in processes.items():
        row = (time.monotonic() - began, psutil.Process(pid).memory_info().rss / 1e6)
        samples.setdefault(f"{name} ({pid})", []).append(row)
        if rows is not None:
            print(f"{name};{pid};{row[0]:.1f};{row[1]:.3f}", file=rows, flush=True)


def slope(samples: list[tuple[float, float]]) -> float:
    """Megabytes an hour: the median of the slopes between all pairs of samples."""
    slopes = sorted(
        (y2 - y1) / (x2 - x1) * 3600 for n, (x1, y1) in enumerate(samples) for x2, y2 in samples[n + 1 :] if x2 > x1
    )
    return slopes[len(slopes) // 2] if slopes else 0.0


def judge(samples: Samples, seconds: float, most: float) -> tuple[Table, bool]:
    """A row for each process that lived throughout the second half, and whether all of them are flat."""
    table, flat = Table("process", "MB at the start", "in the middle", "at the end", "MB an hour", "verdict"), True
    for name, all_of_it in samples.items():
        half = [one for one in all_of_it if one[0] >= seconds / 2]
        if len(half) < 20:
            continue  # it was replaced
        growth = slope(half)
        flat &= growth <= most
        figures = (all_of_it[0][1], half[0][1], half[-1][1], growth)
        table.add_row(name, *(f"{value:.1f}" for value in figures), "flat" if growth <= most else "grows")
    return table, flat


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--most", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=argparse.FileType("a"), default=None)
    asked = parser.parse_args()
    dask.config.set(SHORT)
    rng, samples, counts = random.Random(asked.seed), Samples(), dict.fromkeys(ACTS, 0)
    kinds, weights = list(ACTS), list(ACTS.values())
    with (
        shoal.LocalCluster(
            n_workers=3, threads_per_worker=2, memory_limit="512 MiB", dashboard_address=None
        ) as cluster,
        shoal.Client(cluster) as client,
    ):
        _fill(client)
        began, last = time.monotonic(), 0.0
        while time.monotonic() - began < asked.minutes * 60:
            act = rng.choices(kinds, weights)[0]
            act(client, rng)
            counts[act] += 1
            if time.monotonic() - last > asked.minutes / 3:  # 180 samples
                last = time.monotonic()
                _sample(client, began, samples, asked.rows)
    table, flat = judge(samples, asked.minutes * 60, asked.most)
    console = Console(width=110)
    console.print(table)
    console.print(", ".join(f"{act.__name__.strip('_')}: {count}" for act, count in counts.items()))
    console.print("flat" if flat else f"more than {asked.most:g} MB an hour")
    return int(not flat)


if __name__ == "__main__":
    sys.exit(main())
