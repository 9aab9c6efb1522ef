"""The same work on shoal and its peers, in one run on one machine, each engine in a process of its own.

    python benchmarks/compare.py [--engines shoal,distributed,...] [--output DIRECTORY] [--repeat N]

Ratios are to dask.distributed in the same run: such machines are noisy, a ratio is not. Engines take turns where there
are several rounds, and the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from engines import ARRAY_BYTES, ENGINES, Engine, add, inc, last_of, make_array, scheduler_memory
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

#: name: (unit, whether more is better)
METRICS: dict[str, tuple[str, bool]] = {
    "start": ("s", False),
    "latency": ("ms", False),
    "latency_p99": ("ms", False),
    "map": ("tasks/s", True),
    "tree": ("tasks/s", True),
    "chain": ("tasks/s", True),
    "worker_to_worker": ("MB/s", True),
    "worker_to_client": ("MB/s", True),
    "scheduler_memory": ("bytes/task", False),
}
#: Seconds after which an engine is given up.
PATIENCE = 120.0

Report = Callable[[str, float], None]


def seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure(name: str, scale: float, report: Report) -> None:
    """Report every figure of one engine as soon as it is known."""
    begun = time.perf_counter()
    engine = ENGINES[name]()
    engine.map(inc, [-1, -2])
    report("start", time.perf_counter() - begun)
    latencies(engine, report)
    engine.map(inc, range(200))
    count = int(20_000 * scale)
    values = range(1000, 1000 + count)
    report("map", count / seconds(lambda: engine.map(inc, values)))
    if engine.graphs:
        report("tree", tree(engine, 2**12 if scale >= 1 else 2**10))
        report("chain", chain(engine, int(2000 * scale)))
    transfers(engine, report)
    engine.close()
    memory = scheduler_memory(name, 50_000)
    if memory is not None:
        report("scheduler_memory", memory)


def latencies(engine: Engine, report: Report) -> None:
    trips = sorted(seconds(lambda n=n: engine.result(engine.submit(inc, -10 - n))) for n in range(400))
    report("latency", 1e3 * trips[200])
    report("latency_p99", 1e3 * trips[396])


def tree(engine: Engine, leaves: int) -> float:
    """Tasks a second in a binary reduction."""

    def work() -> None:
        level = [engine.submit(inc, -100_000 - number) for number in range(leaves)]
        while len(level) > 1:
            level = [engine.submit(add, *level[at : at + 2]) for at in range(0, len(level), 2)]
        total = engine.result(level[0])
        assert total == sum(1 - 100_000 - number for number in range(leaves)), total

    return (2 * leaves - 1) / seconds(work)


def chain(engine: Engine, length: int) -> float:
    """Tasks a second where each needs the one before."""

    def work() -> None:
        future = engine.submit(inc, 1_000_000)
        for _ in range(length - 1):
            future = engine.submit(inc, future)
        assert engine.result(future) == 1_000_000 + length

    return length / seconds(work)


def transfers(engine: Engine, report: Report) -> None:
    """Megabytes a second of arrays that lie ready on a worker."""
    megabytes = ARRAY_BYTES / 1e6
    if engine.pins:
        here, there = engine.workers()[:2]
        rates = []
        for seed in range(5):
            array = engine.submit(make_array, seed, workers=[here])
            engine.finish(array)
            rates.append(megabytes / seconds(lambda a=array: engine.result(engine.submit(last_of, a, workers=[there]))))
            del array
        report("worker_to_worker", statistics.median(rates))
    rates = []
    for seed in range(10, 15):
        array = engine.submit(make_array, seed)
        engine.finish(array)
        got: list[Any] = []
        rates.append(megabytes / seconds(lambda a=array, got=got: got.append(engine.result(a)[::512].sum())))
        assert got[0] == seed * (ARRAY_BYTES // 8 / 512)
        del array
    report("worker_to_client", statistics.median(rates))


def run_one(name: str) -> dict[str, float]:
    """Measure an engine in a session of its own; what it starts ends with it, also where it hangs."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--one", name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        err += f"\ngiven up after {PATIENCE:g} s"
    rows = [json.loads(line[7:]) for line in out.splitlines() if line.startswith("RESULT ")]
    if process.returncode:
        print(f"{name}: stopped after {[row[0] for row in rows]}: {err.strip().splitlines()[-1:]}", file=sys.stderr)
    return dict(rows)


def text(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def table(results: dict[str, dict[str, float]]) -> Table:
    """One row for each metric, one column for each engine, with ratios to dask.distributed."""
    found = Table("", *results, title="figure (times better than dask.distributed in this run)")
    base = results.get("distributed", {})
    for metric, (unit, more) in METRICS.items():
        row = []
        for figures in results.values():
            value = figures.get(metric)
            if value is None:
                row.append("-")
            elif metric in base:
                row.append(f"{text(value)} ({text(value / base[metric] if more else base[metric] / value)}×)")
            else:
                row.append(text(value))
        found.add_row(f"{metric} [{unit}]".replace("_", " ").replace("[", "\\["), *row)
    return found


def plot(results: dict[str, dict[str, float]], path: Path) -> None:
    """Bars of the ratios to dask.distributed, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    base = results.get("distributed")
    if not base:
        return
    metrics = [metric for metric in METRICS if metric in base]
    figure, axes = pyplot.subplots(figsize=(11, 5))
    width = 0.8 / len(results)
    for number, (name, figures) in enumerate(results.items()):
        ratios = [
            (figures[m] / base[m] if METRICS[m][1] else base[m] / figures[m]) if m in figures else 1 for m in metrics
        ]
        places = [x + number * width for x in range(len(metrics))]
        axes.bar(places, [ratio - 1 for ratio in ratios], width, bottom=1, label=name)
    axes.set_yscale("log")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks([x + 0.4 - width / 2 for x in range(len(metrics))], [m.replace("_", "\n") for m in metrics])
    axes.set_ylabel("times better than dask.distributed")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def versions(names: list[str]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass  # it comes with Python
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--output", type=Path, help="a directory for results.json and results.png")
    parser.add_argument("--repeat", type=int, default=1, help="rounds; the median counts")
    parser.add_argument("--one", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        report: Report = lambda metric, value: print("RESULT " + json.dumps([metric, value]), flush=True)  # noqa: E731
        try:
            measure(options.one, 0.1 if options.one == "distributed" else 1.0, report)
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # whatever the engine left running
        os._exit(0)
    names = [name.strip() for name in options.engines.split(",")]
    if unknown := set(names) - set(ENGINES):
        parser.error(f"unknown engines {sorted(unknown)}; known are {', '.join(ENGINES)}")
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("measuring", total=options.repeat * len(names))
        for _ in range(options.repeat):
            for name in names:
                progress.update(bar, description=name)
                rounds[name].append(run_one(name))
                progress.advance(bar)
    results = {
        name: {
            metric: statistics.median(figures[metric] for figures in several if metric in figures)
            for metric in METRICS
            if any(metric in figures for figures in several)
        }
        for name, several in rounds.items()
    }
    Console(width=170).print(table(results))
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        everything = {"versions": versions(names), "cpus": os.cpu_count(), "median": results, "rounds": rounds}
        (options.output / "results.json").write_text(json.dumps(everything, indent=2) + "\n")
        plot(results, options.output / "results.png")


if __name__ == "__main__":
    main()
