"""A large graph of dask's: from ``client.compute`` to the result.

    python benchmarks/graph.py [--chunks 100000] [--engines shoal,distributed]

``da.ones(n, chunks=1) + 1`` summed: n tasks, and n/15 that add up. Two single-threaded workers.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from time import perf_counter
from typing import Any


def measure(engine: str, chunks: int) -> None:
    """Print how long the call took, and when the result was there."""
    import dask.array as da

    if engine == "shoal":
        from shoal import Client, LocalCluster

        options: dict[str, Any] = {}
    else:
        from distributed import Client, LocalCluster

        options = {"dashboard_address": None}
    with LocalCluster(n_workers=2, threads_per_worker=1, **options) as cluster, Client(cluster) as client:
        client.submit(int).result()
        total = (da.ones((chunks,), chunks=1) + 1).sum(split_every=16)
        begun = perf_counter()
        future = client.compute(total)
        submitted = perf_counter() - begun
        assert future.result() == 2 * chunks
        print(f"{engine}: {submitted:.2f} s in client.compute, {perf_counter() - begun:.2f} s until the result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--engines", default="shoal,distributed")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options.one, options.chunks)
        return
    for engine in options.engines.split(","):
        command = [sys.executable, __file__, "--one", engine, "--chunks", str(options.chunks)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
