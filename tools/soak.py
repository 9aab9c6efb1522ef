"""Graphs run for minutes while random workers are ended in every way; then nothing may be wrong, and nothing left.

``python tools/soak.py --minutes 10``. Status 1 if a result is wrong, or a process, descriptor, directory or shared
segment is left behind.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import dask
import psutil

from shoal import Client, LocalCluster
from shoal.shell.scratch import space

SETTINGS = {
    "distributed.scheduler.worker-ttl": "5s",
    "distributed.scheduler.allowed-failures": 1_000_000,
}


def leaf(n: int) -> int:
    time.sleep(0.002 * (n % 7))
    return n


def block(n: int) -> bytes:
    """A few megabytes, so that values are spilled and moved."""
    return bytes([n % 256]) * 3_000_000


def weigh(value: bytes, n: int) -> int:
    assert value[0] == value[-1] == n % 256
    return len(value)


def add(*values: int) -> int:
    return sum(values)


def exit_now() -> None:
    os._exit(7)


def segfault() -> None:
    ctypes.string_at(0)


def bomb() -> None:
    held = [bytearray(os.urandom(1000) * 5000) for _ in range(1000)]
    time.sleep(60)
    del held


class Chaos(threading.Thread):
    """Ends workers until it is told to stop."""

    def __init__(self, cluster: LocalCluster, seed: int, pause: float) -> None:
        super().__init__(name="chaos", daemon=True)
        self.cluster, self.random, self.pause = cluster, random.Random(seed), pause
        self.done: Counter[str] = Counter()
        self.over = threading.Event()

    def run(self) -> None:
        with Client(self.cluster, set_as_default=False) as client:
            while not self.over.wait(self.random.expovariate(1 / self.pause)):
                workers = client.scheduler_info()["workers"]
                if not workers:
                    continue
                address, worker = self.random.choice(sorted(workers.items()))
                what = self.random.choice(["SIGKILL", "SIGSEGV", "SIGTERM", "SIGSTOP", "os._exit", "memory bomb"])
                if self.strike(client, what, address, worker["pid"]):
                    self.done[what] += 1

    def strike(self, client: Client, what: str, address: str, pid: int) -> bool:
        """End one worker; False if it was gone already."""
        if what.startswith("SIG"):
            try:
                os.kill(pid, getattr(signal, what))
            except ProcessLookupError:
                return False
            return True
        function = exit_now if what == "os._exit" else bomb
        try:
            client.run(function, workers=[address], wait=False)
        except ValueError:
            return False  # nobody is called so any more
        return True


def one_round(client: Client, rng: random.Random) -> int:
    """A graph of some hundred tasks; return how many."""
    kind = rng.randrange(3)
    start = rng.randrange(1_000_000)
    if kind == 0:  # a tree
        level = client.map(leaf, range(start, start + 256), pure=False)
        while len(level) > 1:
            level = [client.submit(add, *level[at : at + 4], pure=False) for at in range(0, len(level), 4)]
        assert level[0].result(300) == sum(range(start, start + 256))
        return 256 + 85
    if kind == 1:  # values that are moved and spilled
        blocks = client.map(block, range(start, start + 60), pure=False)
        sizes = client.map(weigh, blocks, range(start, start + 60), pure=False)
        assert client.submit(add, *sizes, pure=False).result(300) == 60 * 3_000_000
        return 121
    chain = client.submit(leaf, start, pure=False)
    for _ in range(100):
        chain = client.submit(add, chain, 1, pure=False)
    assert chain.result(300) == start + 100
    return 101


def descriptors(pid: int) -> int:
    return psutil.Process(pid).num_fds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two strikes, on average")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch, dask.config.set(SETTINGS):
        tempfile.tempdir = scratch
        os.environ["TMPDIR"] = scratch
        found = soak(args)
    print(json.dumps(found, indent=2))
    sys.exit(1 if found["left behind"] else 0)


def soak(args: argparse.Namespace) -> dict[str, Any]:
    """Run it; return what happened."""
    shared = set(os.listdir("/dev/shm"))
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    rng = random.Random(args.seed)
    tasks = rounds = 0
    with (
        LocalCluster(n_workers=args.workers, threads_per_worker=1, memory_limit="350 MB") as cluster,
        Client(cluster) as client,
    ):
        assert cluster.scheduler_pid is not None
        began_with = descriptors(cluster.scheduler_pid)
        chaos = Chaos(cluster, args.seed, args.pause)
        chaos.start()
        ends = time.monotonic() + 60 * args.minutes
        while time.monotonic() < ends:
            tasks += one_round(client, rng)
            rounds += 1
        chaos.over.set()
        chaos.join()
        client.restart()
        time.sleep(1)
        found = client.scheduler_info()
        ended_with = descriptors(cluster.scheduler_pid)
        directories = len(list(space().glob("nanny-*/worker-*")))
    recoveries = [seconds for nanny in found["nannies"].values() for seconds in nanny["recoveries"]]
    left = {
        "processes": [c.pid for c in psutil.Process().children(recursive=True) if c.pid not in before],
        "descriptors of the head": max(0, ended_with - began_with - 2),
        "directories of workers that are gone": max(0, directories - args.workers),
        "scratch directories": [str(path) for path in Path(space()).iterdir()],
        "shared segments": sorted(set(os.listdir("/dev/shm")) - shared),
    }
    return {
        "minutes": args.minutes,
        "graphs": rounds,
        "tasks": tasks,
        "strikes": dict(chaos.done),
        "deaths": found["deaths"],
        "restarts": sum(nanny["restarts"] for nanny in found["nannies"].values()),
        "seconds until another worker was there": {
            "median": round(statistics.median(recoveries), 3) if recoveries else None,
            "most": round(max(recoveries), 3) if recoveries else None,
        },
        "descriptors of the head": [began_with, ended_with],
        "left behind": {what: things for what, things in left.items() if things},
    }


if __name__ == "__main__":
    main()
