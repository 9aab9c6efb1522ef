"""The scheduler's own time and memory for each task, by the size of the cluster.

    python benchmarks/scale.py [--workers 10,100,1000,10000] [--tasks 100000] [--shapes map,tree,scarce]

The scheduler's core alone, driven as its program drives it, with workers that answer at once: what it costs to take
tasks, to choose a worker for each, to hear that it is done, and to let it go. ``scarce`` is a map whose tasks need
resources, of three kinds; nearly all of them wait at the scheduler.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import time
from collections import deque

from rich.console import Console
from rich.table import Table

from shoal.core.effects import Send
from shoal.core.events import LinkOpened, Received
from shoal.core.scheduler.reactor import SchedulerCore
from shoal.core.scheduler.settings import Settings
from shoal.messages import (
    Compute,
    Finished,
    Options,
    RegisterClient,
    RegisterWorker,
    Submit,
    TaskDone,
    TaskSpec,
    Unwant,
)

#: What the tasks of a map take that need resources.
SCARCE = [Options(resources={"GPU": 1.0}), Options(resources={"R": 0.5}), Options(resources={"GPU": 1.0, "R": 0.1})]


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(n_workers: int, n_tasks: int, shape: str) -> tuple[float, float]:
    """Seconds and bytes for each task."""
    core = SchedulerCore("s", Settings(worker_ttl=None))
    core.handle([LinkOpened("client", "c"), Received("c", [RegisterClient()])], 0.0)
    for number in range(n_workers):
        name = f"w{number}"
        hello = RegisterWorker(name, name, [f"tcp://{name}:1"], 1, 0, 1, "host", resources={"GPU": 1, "R": 1})
        core.handle([LinkOpened("worker", name), Received(name, [hello])], 0.0)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    specs = []
    n_tasks -= shape == "tree" and n_tasks % 2 == 0
    for number in range(n_tasks):
        if shape != "tree":
            deps = []
        else:
            half = (n_tasks + 1) // 2
            deps = [] if number < half else [f"t-{2 * (number - half)}", f"t-{2 * (number - half) + 1}"]
        options = SCARCE[number % len(SCARCE)] if shape == "scarce" else None
        specs.append(TaskSpec(f"t-{number}", "f", b"payload", deps, number, options))
    wants = [spec.key for spec in specs] if shape != "tree" else [specs[-1].key]
    before = resident()
    now, most = 1.0, 0
    begun = time.perf_counter()
    out: deque[tuple[str, Compute]] = deque()

    def take(effects: list[object]) -> None:
        for effect in effects:
            if type(effect) is Send and type(effect.message) is Compute:
                out.append((effect.to, effect.message))

    take(core.handle([Received("c", [Submit(specs, {"f": b"F"}, Options(), wants, 1)])], now))
    most = resident() - before
    done = 0
    while out:
        name, message = out.popleft()
        now += 0.0001
        items = [TaskDone(t.key, t.attempt, 8, "int", now, now + 0.01, b"v") for t in message.tasks]
        done += len(items)
        take(core.handle([Received(name, [Finished(items)])], now))
    take(core.handle([Received("c", [Unwant(wants)])], now))
    seconds = time.perf_counter() - begun
    if done < n_tasks or core.state.tasks:
        raise SystemExit(f"{done} of {n_tasks} tasks were done, {len(core.state.tasks)} are left")
    return seconds / n_tasks, most / n_tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="10,100,1000,10000")
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--shapes", default="map,tree")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(*measure(int(options.one[0]), options.tasks, options.one[1]))
        return
    shapes = options.shapes.split(",")
    table = Table(
        "workers", *(f"{shape}: µs a task" for shape in shapes), *(f"{shape}: bytes a task" for shape in shapes)
    )
    for workers in options.workers.split(","):
        figures = []
        for shape in shapes:
            command = [sys.executable, __file__, "--tasks", str(options.tasks), "--one", workers, shape]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            figures.append(tuple(map(float, done.stdout.split())))
        table.add_row(workers, *(f"{1e6 * f[0]:.1f}" for f in figures), *(f"{f[1]:,.0f}" for f in figures))
    Console().print(table)


if __name__ == "__main__":
    main()
