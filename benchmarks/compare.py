"""The same work on shoal and its peers, in one run on one machine, each engine in a process of its own.

    python benchmarks/compare.py [--engines shoal,distributed,...] [--json FILE]

Every engine has two single-threaded workers. Ratios are to dask.distributed in the same run: these machines are noisy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

#: name, unit, whether more is better
METRICS = [
    ("start", "s", False),
    ("latency", "ms", False),
    ("latency_p99", "ms", False),
    ("map", "tasks/s", True),
    ("tree", "tasks/s", True),
    ("chain", "tasks/s", True),
    ("to_client", "MB/s", True),
]
ENGINES = ["shoal", "distributed", "frisky", "ray", "processpool", "loky"]
ARRAY_BYTES = 128 * 2**20


def inc(x: int) -> int:
    return x + 1


def add(x: int, y: int) -> int:
    return x + y


def make_array(seed: int) -> Any:
    import numpy as np

    return np.full(ARRAY_BYTES // 8, seed, dtype="f8")


class Engine:
    """What an engine must do; futures may be arguments where ``graphs`` is True."""

    graphs = True

    def __init__(self, client: Any, close: Callable[[], None]) -> None:
        self.client, self.close = client, close

    def submit(self, function: Any, *args: Any) -> Any:
        return self.client.submit(function, *args)

    def result(self, future: Any) -> Any:
        return future.result()

    def map(self, function: Any, values: Any) -> list[Any]:
        return self.client.gather(self.client.map(function, values))


class Pool(Engine):
    graphs = False

    def map(self, function: Any, values: Any) -> list[Any]:
        return [future.result() for future in [self.client.submit(function, value) for value in values]]


class Ray(Engine):
    def submit(self, function: Any, *args: Any) -> Any:
        if not hasattr(self, "_remote"):
            self._remote = {}
        if function not in self._remote:
            self._remote[function] = self.client.remote(function)
        return self._remote[function].remote(*args)

    def result(self, future: Any) -> Any:
        return self.client.get(future)

    def map(self, function: Any, values: Any) -> list[Any]:
        return self.client.get([self.submit(function, value) for value in values])


def start(name: str) -> Engine:
    if name == "shoal":
        from shoal import Client, LocalCluster

        cluster = LocalCluster(n_workers=2, threads_per_worker=1)
        client = Client(cluster)
        return Engine(client, lambda: (client.close(), cluster.close()))
    if name == "distributed":
        from distributed import Client, LocalCluster

        cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
        client = Client(cluster)
        return Engine(client, lambda: (client.close(), cluster.close()))
    if name == "frisky":
        import frisky

        cluster = frisky.LocalCluster(n_workers=2, threads_per_worker=1, processes=True)
        client = frisky.Client(cluster)
        return Engine(client, lambda: (client.close(), cluster.close()))
    if name == "ray":
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40)
        return Ray(ray, ray.shutdown)
    if name == "processpool":
        from concurrent.futures import ProcessPoolExecutor

        pool = ProcessPoolExecutor(2)
        return Pool(pool, pool.shutdown)
    if name == "loky":
        from loky import get_reusable_executor

        pool = get_reusable_executor(2)
        return Pool(pool, pool.shutdown)
    raise SystemExit(f"unknown engine {name!r}; known: {', '.join(ENGINES)}")


def measure(name: str, scale: float) -> dict[str, float]:
    """All figures of one engine."""
    found: dict[str, float] = {}
    begun = time.perf_counter()
    engine = start(name)
    engine.map(inc, [-1, -2])
    found["start"] = time.perf_counter() - begun
    trips = []
    for number in range(300):
        begun = time.perf_counter()
        engine.result(engine.submit(inc, -10 - number))
        trips.append(time.perf_counter() - begun)
    trips.sort()
    found["latency"], found["latency_p99"] = 1e3 * trips[150], 1e3 * trips[297]
    engine.map(inc, range(200))
    count = int(20_000 * scale)
    begun = time.perf_counter()
    assert engine.map(inc, range(1000, 1000 + count))[-1] == 1000 + count
    found["map"] = count / (time.perf_counter() - begun)
    if engine.graphs:
        leaves = 2 ** (12 if scale >= 1 else 9)
        begun = time.perf_counter()
        level = [engine.submit(inc, -100_000 - number) for number in range(leaves)]
        while len(level) > 1:
            level = [engine.submit(add, *level[at : at + 2]) for at in range(0, len(level), 2)]
        engine.result(level[0])
        found["tree"] = (2 * leaves - 1) / (time.perf_counter() - begun)
        length = int(1000 * scale)
        begun = time.perf_counter()
        future = engine.submit(inc, 1_000_000)
        for _ in range(length - 1):
            future = engine.submit(inc, future)
        assert engine.result(future) == 1_000_000 + length
        found["chain"] = length / (time.perf_counter() - begun)
    begun = time.perf_counter()
    for seed in range(3):
        array = engine.result(engine.submit(make_array, seed))
        assert array.nbytes == ARRAY_BYTES
    found["to_client"] = 3 * ARRAY_BYTES / 1e6 / (time.perf_counter() - begun)
    engine.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        slow = options.one == "distributed"
        print("RESULT " + json.dumps(measure(options.one, 0.1 if slow else 1.0)))
        return
    results: dict[str, dict[str, float]] = {}
    for name in options.engines.split(","):
        done = subprocess.run(
            [sys.executable, __file__, "--one", name], capture_output=True, text=True, timeout=300, check=False
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if lines:
            results[name] = json.loads(lines[0].removeprefix("RESULT "))
        else:
            print(f"{name} could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    base = results.get("distributed", {})
    table = Table("metric", *results, title="figure (times better than dask.distributed)")
    for metric, unit, more in METRICS:
        row = []
        for name in results:
            value = results[name].get(metric)
            if value is None:
                row.append("-")
                continue
            ratio = ""
            if metric in base:
                ratio = f" ({value / base[metric] if more else base[metric] / value:.1f}x)"
            row.append(f"{value:,.3g}{ratio}" if value < 1000 else f"{value:,.0f}{ratio}")
        table.add_row(f"{metric} [{unit}]", *row)
    Console(width=160).print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
