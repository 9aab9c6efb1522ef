"""A manager of machines in fifty lines: each takes a while to come, and a while to end, as machines in a cloud do.

    python examples/delayed_machines.py [--delay SECONDS]

A machine is a ``shoal worker`` command that is started late; put an order to your cloud, your Kubernetes or your batch
system in its place. ``SpecCluster`` does the rest: it scales, adapts, replaces machines that fail, and lets workers
retire before their machines end, however late that is.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any

import shoal


class DelayedMachine(shoal.ProcessInterface):
    """A machine with one worker on it.

    Parameters
    ----------
    scheduler, name
        Given by the cluster: where the worker is to register, and under which name.
    delay
        Seconds until the machine has booted, and until it is gone after it was ended.
    """

    def __init__(self, scheduler: str, name: Any, delay: float) -> None:
        super().__init__(scheduler, name)
        self.delay = delay
        self._life: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Order the machine; its worker registers once it is there."""
        self._life = asyncio.create_task(self._live())
        await super().start()

    async def _live(self) -> None:
        await asyncio.sleep(self.delay)
        assert self.scheduler is not None
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "shoal", "worker", self.scheduler, "--name", str(self.name), "--nthreads", "1")
        )
        await self._process.wait()
        self._ended.set()  # whoever ended it: the cluster starts another, if there is to be one

    async def close(self) -> None:
        """End the machine. Its worker retired before, if it was to go; nothing is lost, however late this comes."""
        await asyncio.sleep(self.delay)
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()
        elif self._life is not None:
            self._life.cancel()
        await super().close()


def slow_square(x: int) -> int:
    time.sleep(0.2)
    return x * x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=float, default=2.0)
    args = parser.parse_args()
    machine = {"cls": DelayedMachine, "options": {"delay": args.delay}}
    with shoal.SpecCluster(worker=machine, name="machines") as cluster, shoal.Client(cluster) as client:
        cluster.adapt(minimum=0, maximum=4, interval="500 ms", target_duration="2 s")
        data = None
        for burst in range(2):
            futures = client.map(slow_square, range(100 * burst, 100 * burst + 60))
            print(f"burst {burst}: {sum(client.gather(futures))}", flush=True)
            data = data or client.scatter({"kept": list(range(10))})
            del futures
            time.sleep(4 * args.delay)
            print(f"{len(cluster.plan)} machines are left, which {data['kept'].result()[-1]} still needs", flush=True)
        print(cluster.get_logs(scheduler=False, workers=False)["Cluster"])


if __name__ == "__main__":
    main()
