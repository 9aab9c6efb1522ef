"""A cluster grows and shrinks for minutes under load; nothing may be lost, computed twice, or left behind.

``python tools/scaling.py --minutes 5``. First 1 → 8 → 1 workers in a loop, with scattered data on board and tasks that
leave a line for each execution; then bursts of work under ``adapt(minimum=0, maximum=8)``, from and to nothing; then a
steady load, under which the size should settle. Status 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from shoal import Client, LocalCluster


def work(directory: str, x: int, seconds: float) -> int:
    """Leave a line for each execution, in a file for each process."""
    time.sleep(seconds)
    with open(Path(directory) / str(os.getpid()), "a") as file:
        file.write(f"{x}\n")
    return x * x


def executions(directory: str) -> Counter[int]:
    return Counter(int(line) for path in Path(directory).iterdir() for line in path.read_text().split())


def until(condition: Any, seconds: float = 60) -> float:
    """Wait; return how long it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise SystemExit(f"nothing came of it within {seconds:g} s: {condition}")
        time.sleep(0.005)
    return time.monotonic() - began


def names(client: Client) -> int:
    return len(client.scheduler_info()["workers"])


def loop(minutes: float, directory: str, most: int) -> dict[str, Any]:
    """1 → 8 → 1, again and again, under load."""
    up, down, rounds = [], [], 0
    with LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=0) as cluster, Client(cluster) as client:
        data: list[Any] = []
        futures: list[Any] = []
        ends = time.monotonic() + 60 * minutes
        while time.monotonic() < ends:
            until(lambda: sum(future.status == "pending" for future in futures[-1000:]) < 300)  # noqa: B023
            futures += client.map(work, [directory] * 40, range(len(futures), len(futures) + 40), [0.02] * 40)
            cluster.scale(most)
            up.append(until(lambda: names(client) == most))
            data += client.scatter([np.full(10_000, n) for n in range(len(data), len(data) + 16)], hash=False)
            time.sleep(0.2)
            cluster.scale(1)
            down.append(until(lambda: names(client) == 1 and len(cluster.workers) == 1))
            rounds += 1
        assert client.gather(futures) == [n * n for n in range(len(futures))]
        for n, value in enumerate(client.gather(data)):
            assert value[0] == value[-1] == n
        retired = [msg for _, msg in client.get_events("all") if msg["action"] == "retired"]
    return {
        "rounds": rounds, "tasks": len(futures), "scattered": len(data), "retirements seen": len(retired),
        "seconds to grow": statistics.median(up), "seconds to shrink": statistics.median(down), "most": max(down),
    }  # fmt: skip


def bursts(minutes: float, directory: str, first: int) -> dict[str, Any]:
    """Work comes and goes; the cluster follows it, from and to nothing."""
    seconds, done = [], 0
    with LocalCluster(n_workers=0, threads_per_worker=1, memory_limit=0) as cluster, Client(cluster) as client:
        adaptive = cluster.adapt(minimum=0, maximum=8, interval="200 ms", target_duration="1 s")
        ends = time.monotonic() + 60 * minutes
        while time.monotonic() < ends:
            keys = range(first + done, first + done + 200)
            began = time.monotonic()
            futures = client.map(work, [directory] * 200, keys, [0.02] * 200)
            assert client.gather(futures) == [n * n for n in keys]
            seconds.append(time.monotonic() - began)
            done += 200
            del futures
            until(lambda: not names(client) and not cluster.plan)
        counts = Counter(told["status"] for _, told in adaptive.log)
    return {"bursts": len(seconds), "tasks": done, "seconds for one": statistics.median(seconds), **counts}


def steady(seconds: float, directory: str, first: int) -> dict[str, Any]:
    """A load of about two workers and a half, and how often the size changed in the second half of the time."""
    with LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=0) as cluster, Client(cluster) as client:
        adaptive = cluster.adapt(minimum=0, maximum=8)
        began = time.monotonic()
        futures: list[Any] = []
        early = 0
        while time.monotonic() - began < seconds:
            futures.append(client.submit(work, directory, first + len(futures), 0.1))
            time.sleep(0.04)
            if time.monotonic() - began < seconds / 2:
                early = len(adaptive.log)
        client.gather(futures)
        return {"tasks": len(futures), "workers": names(client), "changes": early, "later": len(adaptive.log) - early}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--most", type=int, default=8)
    args = parser.parse_args()
    me = psutil.Process()
    with tempfile.TemporaryDirectory() as directory:
        told = loop(args.minutes / 2, directory, args.most)
        print("1 → 8 → 1:", told, flush=True)
        adapted = bursts(args.minutes / 4, directory, told["tasks"])
        print("bursts:   ", adapted, flush=True)
        settled = steady(15 * args.minutes, directory, told["tasks"] + adapted["tasks"])
        print("steady:   ", settled, flush=True)
        found = executions(directory)
        twice = {key: count for key, count in found.items() if count > 1}
        expected = told["tasks"] + adapted["tasks"] + settled["tasks"]
    left = [child for child in me.children(recursive=True) if child.is_running()]
    print(f"{len(found)} of {expected} tasks were executed; more than once: {twice or 'none'}; left behind: {left}")
    sys.exit(1 if twice or left or len(found) != expected else 0)


if __name__ == "__main__":
    main()
