"""What a pass of the active memory manager costs the scheduler: a million keys in memory on 1,000 workers.

``python benchmarks/memory_manager.py [--keys N] [--workers N]``: the scheduler's core alone. Each turn is measured: a
pass is spread over several where there is much to do. Once nothing has more than one copy, once half of the keys have
two, and once with a policy that looks at every key and suggests nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from shoal.core.events import Due, LinkOpened, Received
from shoal.core.scheduler.amm import ActiveMemoryManagerPolicy
from shoal.core.scheduler.reactor import SchedulerCore
from shoal.core.scheduler.settings import Settings
from shoal.messages import AddKeys, DataPut, KeyInfo, RegisterClient, RegisterWorker


class Looker(ActiveMemoryManagerPolicy):
    """Looks at every key, and gives others a turn each time."""

    def run(self) -> Iterator[Any]:
        for task in list(self.manager.scheduler.tasks.values()):
            if task.nbytes > 1 << 40:
                yield "drop", task, None
            else:
                yield None


def fill(n_workers: int, n_keys: int, copies: int) -> SchedulerCore:
    """A core that knows of data which a client put on workers, ``copies`` of each second key fetched by another."""
    core = SchedulerCore("s", Settings(worker_ttl=None, amm_running=False))
    core.handle([LinkOpened("client", "c"), Received("c", [RegisterClient()])], 0.0)
    for number in range(n_workers):
        name = f"w{number}"
        hello = RegisterWorker(name, name, [f"tcp://{name}:1"], 1, 0, 1, "host")
        core.handle([LinkOpened("worker", name), Received(name, [hello])], 0.0)
    each = n_keys // n_workers
    for number in range(n_workers):
        items = [KeyInfo(f"x-{number}-{n}", 1000, "bytes") for n in range(each)]
        core.handle([Received(f"w{number}", [DataPut("c", items)])], 1.0)
        if copies > 1:
            core.handle([Received(f"w{(number + 1) % n_workers}", [AddKeys(items[::2])])], 1.0)
    return core


def measure(core: SchedulerCore) -> tuple[int, float, float]:
    """Turns that a pass takes, the longest of them, and all of them (seconds)."""
    core.amm.run_once()
    longest = total = 0.0
    turns = 0
    now = 10.0
    while core.amm._pass is not None:
        began = perf_counter()
        core.handle([Due()], now)
        seconds = perf_counter() - began
        turns, longest, total = turns + 1, max(longest, seconds), total + seconds
        now += 0.001
    return turns, longest, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=1_000)
    args = parser.parse_args()
    for name, copies, policy in (
        ("one copy of each", 1, None),
        ("two copies of each second", 2, None),
        ("a policy that looks at all", 1, Looker()),
    ):
        core = fill(args.workers, args.keys, copies)
        if policy is not None:
            core.amm.add_policy(policy)
        turns, longest, total = measure(core)
        print(
            f"{name:28} {turns:5} turns, the longest {1000 * longest:6.1f} ms, all {1000 * total:8.1f} ms; "
            f"{core.amm.counts['drop']} copies dropped"
        )


if __name__ == "__main__":
    main()
