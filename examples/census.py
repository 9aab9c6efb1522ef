"""A census of Python source: parse every file, count, reduce in a tree, rank who is imported most.

python examples/census.py [--workers N] [--path DIR] [--chaos]
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

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from shoal import Client, LocalCluster

Census = dict[str, Counter]


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
    """Submit the whole graph, show how far it is, and return the totals and the number of tasks."""
    leaves = client.map(parse, files, retries=2)
    level, inner = list(leaves), []
    while len(level) > 1:
        level = [client.submit(merge, level[i : i + 16]) for i in range(0, len(level), 16)]
        inner += level
    ranking = client.submit(rank, level[0])
    bar = progress.add_task("parsing", total=len(leaves))
    while not ranking.done():
        progress.update(bar, completed=sum(leaf.done() for leaf in leaves))
        time.sleep(0.1)
    progress.update(bar, completed=len(leaves))
    return client.gather((level[0], ranking)), len(leaves) + len(inner) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--path", type=Path, action="append", help="where to look (default: what Python has installed)")
    parser.add_argument("--chaos", action="store_true", help="kill a worker process every second")
    options = parser.parse_args()
    console = Console()
    paths = options.path or [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))]
    files = find(paths)
    if not files:
        raise SystemExit(f"no Python files below {', '.join(map(str, paths))}")
    sample = files[:: max(1, len(files) // 300)]
    started = time.perf_counter()
    merge([parse(file) for file in sample])
    alone = (time.perf_counter() - started) / len(sample) * len(files)
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
    figures.add_row("in one process (from a sample)", f"{alone:.1f} s, {alone / wall:.1f}x")
    if options.chaos:
        figures.add_row("worker processes killed", str(len(killed)))
    for table in (constructs, ranks, figures):
        console.print(table)


if __name__ == "__main__":
    main()
