"""A census of Python source: parse every file, count, reduce in a tree, rank who is imported most.

python examples/census.py [--workers N] [--path DIR] [--chaos] [--check]
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import signal
import sysconfig
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import dask
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from shoal import Client, LocalCluster, as_completed

Census = dict[str, Counter]
#: Files that are parsed and added up together, and totals that are added up at once.
GROUP, BRANCHES = 32, 16


def parse(path: str) -> Census:
    """Count what one file holds; a file that is no Python is counted as such."""
    counts: Counter = Counter(files=1)
    imports: Counter = Counter()
    edges: Counter = Counter()
    package = Path(path).parent.name if Path(path).name == "__init__.py" else Path(path).stem
    try:
        source = Path(path).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, OSError, RecursionError):
        counts["unreadable"] += 1
        return {"counts": counts, "imports": imports, "edges": edges}
    counts["lines"] += source.count(b"\n")
    for node in ast.walk(tree):
        counts[type(node).__name__] += 1
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        for name in names:
            top = name.split(".")[0]
            imports[top] += 1
            edges[(package, top)] += 1
    return {"counts": counts, "imports": imports, "edges": edges}


def merge(parts: list[Census]) -> Census:
    """Add up partial results."""
    total: Census = {"counts": Counter(), "imports": Counter(), "edges": Counter()}
    for part in parts:
        for name, counter in part.items():
            total[name].update(counter)
    return total


def rank(census: Census, rounds: int = 30, damping: float = 0.85) -> list[tuple[str, float]]:
    """PageRank over who imports whom."""
    out: dict[str, list[str]] = {}
    nodes: dict[str, None] = {}
    for importer, imported in sorted(census["edges"]):
        out.setdefault(importer, []).append(imported)
        nodes[importer] = nodes[imported] = None
    score = dict.fromkeys(nodes, 1 / max(len(nodes), 1))
    for _ in range(rounds):
        fresh = dict.fromkeys(nodes, (1 - damping) / len(nodes))
        for node, targets in out.items():
            for target in targets:
                fresh[target] += damping * score[node] / len(targets)
        score = fresh
    return sorted(score.items(), key=lambda item: (-item[1], item[0]))


def find(paths: list[Path]) -> list[str]:
    return sorted({str(file) for path in paths for file in path.rglob("*.py")})


def kill_now_and_then(client: Client, stop: threading.Event, killed: list[int]) -> None:
    """End a worker process every second."""
    chooser = random.Random(0)
    while not stop.wait(1.0):
        workers = list(client.scheduler_info()["workers"].values())
        if workers:
            victim = chooser.choice(workers)["pid"]
            killed.append(victim)
            os.kill(victim, signal.SIGKILL)


def census(client: Client, files: list[str], progress: Progress) -> tuple[Any, int]:
    """Parse and add up in groups, add up the groups in a tree, rank; return the answer and the number of tasks.

    Each total comes back to this process as soon as it is there, so that a worker that dies costs the groups that it
    had in hand, and not what was finished before.
    """
    bar = progress.add_task("parsing", total=len(files))
    sizes: dict[str, int] = {}
    totals = as_completed(with_results=True)
    for number, at in enumerate(range(0, len(files), GROUP)):
        group = files[at : at + GROUP]
        leaves = client.map(parse, group, retries=2, priority=-number)
        total = client.submit(merge, leaves, priority=-number)
        sizes[total.key] = len(group)
        totals.add(total)
    tasks = len(files) + len(sizes) + 1
    parts: list[Census] = []
    for total, part in totals:
        progress.advance(bar, sizes.get(total.key, 0))
        parts.append(part)
        if len(parts) == BRANCHES:
            totals.add(client.submit(merge, parts, priority=1))
            tasks, parts = tasks + 1, []
    whole = client.submit(merge, parts)
    return client.gather((whole, client.submit(rank, whole))), tasks + 1


def alone(files: list[str], progress: Progress) -> tuple[Any, float]:
    """The same in this one process; return what the cluster must find too, and the seconds that it took."""
    started = time.perf_counter()
    bar = progress.add_task("in one process", total=len(files))
    totals = merge([])
    for file in files:
        part = parse(file)
        for name, counter in part.items():
            totals[name].update(counter)
        progress.advance(bar)
    return (totals, rank(totals)), time.perf_counter() - started


def bytes_moved(dask_worker: Any) -> int:
    """Bytes of results that a worker got from others."""
    return dask_worker.bytes_in


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--path", type=Path, action="append", help="where to look (default: what Python has installed)")
    parser.add_argument("--chaos", action="store_true", help="kill a worker process every second")
    parser.add_argument("--check", action="store_true", help="also do all of it in one process, and compare")
    options = parser.parse_args()
    console = Console()
    paths = options.path or [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))]
    files = find(paths)
    if not files:
        raise SystemExit(f"no Python files below {', '.join(map(str, paths))}")
    if options.chaos:
        # A large file takes seconds, and may be hit again and again: that is nothing against the file.
        dask.config.set({"distributed.scheduler.allowed-failures": 1000})
    with (
        LocalCluster(n_workers=options.workers, threads_per_worker=1, silence_logs=40) as cluster,
        Client(cluster) as client,
    ):
        stop, killed = threading.Event(), []
        if options.chaos:
            threading.Thread(target=kill_now_and_then, args=(client, stop, killed), daemon=True).start()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        started = time.perf_counter()
        with Progress(*columns, console=console) as progress:
            (totals, ranking), tasks = census(client, files, progress)
            wall = time.perf_counter() - started
            stop.set()
            client.wait_for_workers(options.workers, timeout=60)
            moved = sum(client.run(bytes_moved).values())
            sample = files if options.check else files[:: max(1, len(files) // 300)]
            expected, seconds = alone(sample, progress)
            single = seconds * len(files) / len(sample)
    constructs = Table("construct", "count", title=f"{totals['counts']['files']:,} files")
    for name, count in totals["counts"].most_common(12):
        constructs.add_row(name, f"{count:,}")
    ranks = Table("module", "rank", "imported", title="imported by whom others import")
    for name, score in ranking[:12]:
        ranks.add_row(name, f"{score:.4f}", f"{totals['imports'][name]:,}")
    figures = Table("figure", "value", title="this run")
    figures.add_row("tasks", f"{tasks:,}")
    figures.add_row("tasks per second", f"{tasks / wall:,.0f}")
    figures.add_row("workers", str(options.workers))
    figures.add_row("wall time", f"{wall:.1f} s")
    figures.add_row("bytes moved between workers", f"{moved / 1e6:,.1f} MB")
    kind = "all files" if options.check else "from a sample"
    figures.add_row(f"in one process ({kind})", f"{single:.1f} s, {single / wall:.1f}x")
    if options.chaos:
        figures.add_row("worker processes killed", str(len(killed)))
    if options.check:
        same = (totals, ranking) == expected
        figures.add_row("same answer as in one process", "yes" if same else "NO")
    for table in (constructs, ranks, figures):
        console.print(table)
    if options.check and not same:
        raise SystemExit("the cluster's answer differs from that of one process")


if __name__ == "__main__":
    main()
