"""How long until a worker process that ended takes tasks again, and until many nannies of one process are up.

``python benchmarks/restart.py`` for each way of starting processes; seconds, medians.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
from time import perf_counter

import dask

from shoal import Client, Nanny, Scheduler
from shoal.programs.processes import METHODS


async def measure(method: str, nannies: int, rounds: int) -> dict[str, float]:
    """Start ``nannies`` at the same time, then kill one worker again and again."""
    with dask.config.set({"distributed.worker.multiprocessing-method": method}):
        async with Scheduler() as scheduler, Client(scheduler.address, asynchronous=True) as client:
            began = perf_counter()
            all_of_them = [Nanny(scheduler.address, nthreads=1, memory_limit=0) for _ in range(nannies)]
            await asyncio.gather(*all_of_them)
            together = perf_counter() - began
            first = all_of_them[0]
            for nanny in all_of_them[1:]:
                await nanny.close()
            killed, asked = [], []
            for n in range(rounds):
                began = perf_counter()
                os.kill(first.pid, signal.SIGKILL)
                await client.submit(os.getpid, pure=False, retries=0)
                killed.append(perf_counter() - began)
                began = perf_counter()
                await first.restart()
                await client.submit(abs, n, pure=False)
                asked.append(perf_counter() - began)
            await first.close()
    return {
        f"{nannies} nannies up": together,
        "killed, and takes tasks": statistics.median(killed),
        "restarted, and takes tasks": statistics.median(asked),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nannies", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    args = parser.parse_args()
    for method in args.methods:
        for name, seconds in asyncio.run(measure(method, args.nannies, args.rounds)).items():
            print(f"{method:12} {name:28} {seconds:.3f} s")


if __name__ == "__main__":
    main()
