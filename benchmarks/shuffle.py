"""A shuffle that does not fit into memory: seconds, bytes that the workers wrote to disk, and a check of the result.

    python benchmarks/shuffle.py [--engines shoal,distributed] [--work shuffle,sort,groupby,rechunk,tree] [--rounds 3]

A dataframe of 1.2 GB goes through two workers of one thread and 0.75 GiB each, by dask's task-based shuffle on every
engine. The engines take turns within a round. What was written is what the kernel counted for the workers' processes
(``write_bytes`` of ``/proc/PID/io``), the same for all engines. ``--memory 0`` is no limit. ``--python ENGINE=PATH``
runs an engine by another interpreter, ``--source NAME=PATH`` one with other sources of shoal, as ``base=../base/src``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Rows of a partition, with 8 columns of 8 bytes: 20 MB; partitions, for 1.2 GB.
ROWS, PARTITIONS = 312_500, 60


def written(pid: int) -> int:
    """Bytes that a process caused to be written to disk."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["write_bytes"])


def partition(number: int, rows: int) -> Any:
    """One partition: keys that are spread over all of them, and values from which the sum is known."""
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(number)
    frame = pd.DataFrame(random.random((rows, 6)), columns=list("abcdef"))
    frame["k"] = random.integers(0, 1 << 40, rows)
    frame["n"] = np.arange(number * rows, (number + 1) * rows)
    return frame


def frame_of(share: float) -> tuple[Any, int]:
    """The dataframe, and how many rows it has."""
    import dask.dataframe as dd

    count = max(2, round(PARTITIONS * share))
    numbers = list(range(count))
    return dd.from_map(partition, numbers, rows=ROWS, meta=partition(0, 1)), count * ROWS


def digest(frame: Any) -> Any:
    """What is compared of one partition: rows, the sum of a column, and the keys' remainders by the partitions."""
    import pandas as pd

    return pd.DataFrame(
        {"rows": [len(frame)], "sum": [frame["n"].sum()], "low": [frame["k"].min()], "high": [frame["k"].max()]}
    )


def check(found: Any, rows: int) -> None:
    if found["rows"].sum() != rows or found["sum"].sum() != rows * (rows - 1) // 2:
        raise SystemExit(f"the result is wrong: {found}")


def shuffle(share: float) -> None:
    """Every row goes to the partition that its key says."""
    frame, rows = frame_of(share)
    check(frame.shuffle("k", npartitions=frame.npartitions).map_partitions(digest).compute(), rows)


def sort(share: float) -> None:
    """Rows in the order of their keys."""
    frame, rows = frame_of(share)
    found = frame.sort_values("k").map_partitions(digest).compute()
    check(found, rows)
    filled = found[found["rows"] > 0]
    if not (filled["high"].to_numpy()[:-1] <= filled["low"].to_numpy()[1:]).all():
        raise SystemExit("the result is not sorted")


def groupby(share: float) -> None:
    """Sums by key, with about as many groups as a partition has rows."""
    frame, rows = frame_of(share)
    frame["g"] = frame["k"] % ROWS
    found = frame.groupby("g")[["n"]].sum(split_out=8).compute()
    if found["n"].sum() != rows * (rows - 1) // 2:
        raise SystemExit("the sums are wrong")


def rechunk(share: float) -> None:
    """A matrix from blocks of rows to blocks of columns."""
    import dask.array as da

    side = int((1.2e9 * share / 8) ** 0.5) // 40 * 40
    matrix = da.ones((side, side), chunks=(side // 40, side)).cumsum(axis=1).rechunk((side, side // 40))
    found = matrix.sum().compute()
    if found != side * side * (side + 1) / 2:
        raise SystemExit(f"the sum is {found}")


def tree(share: float) -> None:
    """The sum of blocks of 20 MB, two at a time."""
    import dask.array as da

    count = max(2, round(PARTITIONS * share))
    blocks = [da.full((2_500_000,), float(n), chunks=-1) for n in range(count)]
    while len(blocks) > 1:
        blocks = [a + b for a, b in zip(blocks[::2], blocks[1::2], strict=False)] + blocks[len(blocks) // 2 * 2 :]
    found = blocks[0].sum().compute(optimize_graph=False)
    if found != 2_500_000 * count * (count - 1) / 2:
        raise SystemExit(f"the sum is {found}")


WORK: dict[str, Callable[[float], None]] = {
    "shuffle": shuffle, "sort": sort, "groupby": groupby, "rechunk": rechunk, "tree": tree,
}  # fmt: skip


def measure(engine: str, work: str, memory: float, share: float) -> dict[str, Any]:
    """Run it once on a cluster of its own."""
    import dask

    dask.config.set({"dataframe.shuffle.method": "tasks", "array.rechunk.method": "tasks"})
    module = importlib.import_module("distributed" if engine == "distributed" else "shoal")
    limit = int(memory * 2**30) or None
    options = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": limit, "dashboard_address": None}
    with module.LocalCluster(**options) as cluster, module.Client(cluster) as client:
        client.run(importlib.import_module, "pandas")
        pids = sorted(client.run(os.getpid).values())
        before = {pid: written(pid) for pid in pids}
        begun = time.perf_counter()
        WORK[work](share)
        seconds = time.perf_counter() - begun
        lost = set(pids) - set(client.run(os.getpid).values())
        gigabytes = sum(written(pid) - before[pid] for pid in pids if pid not in lost) / 1e9
    return {"seconds": seconds, "written": gigabytes, "lost": len(lost)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="shoal,distributed")
    parser.add_argument("--work", default="shuffle", help=f"some of {','.join(WORK)}")
    parser.add_argument("--memory", type=float, default=0.75, help="GiB of each worker")
    parser.add_argument("--share", type=float, default=1.0, help="of the 1.2 GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", action="append", default=[], metavar="ENGINE=PATH")
    parser.add_argument("--source", action="append", default=[], metavar="ENGINE=PATH")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.work, options.memory, options.share)))
        return
    pythons = dict(one.split("=", 1) for one in options.python)
    sources = dict(one.split("=", 1) for one in options.source)
    engines = options.engines.split(",")
    for work in options.work.split(","):
        found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
        for _ in range(options.rounds):
            for engine in engines:
                command = [pythons.get(engine, sys.executable), __file__, "--one", engine, "--work", work]
                command += ["--memory", str(options.memory), "--share", str(options.share)]
                environment = dict(os.environ)
                if engine in sources:
                    environment["PYTHONPATH"] = sources[engine]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
                if done.returncode:
                    print(f"{work} {engine}: failed", flush=True)
                    continue
                found[engine].append(json.loads(done.stdout.splitlines()[-1]))
        for engine, runs in found.items():
            if runs:
                seconds, gigabytes = (statistics.median(run[name] for run in runs) for name in ("seconds", "written"))
                lost = sum(run["lost"] for run in runs)
                each = ", ".join(f"{run['seconds']:.1f} s {run['written']:.2f} GB" for run in runs)
                gone = f", {lost} workers lost" if lost else ""
                print(f"{work:8} {engine:12} {seconds:7.1f} s {gigabytes:6.2f} GB written{gone}   ({each})", flush=True)


if __name__ == "__main__":
    main()
