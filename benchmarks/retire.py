"""How long it takes a worker to retire: with 2 GiB in 1,000 keys, and with 200,000 tiny ones; shoal beside its peer.

``python benchmarks/retire.py`` (with ``.venv-bench``, see the Makefile); seconds from the call until it returns, in a
cluster of three worker processes. It is checked that every key is on another worker then. A virtual machine may take
several seconds to come up with 2 GiB that nobody has touched of late, whoever asks for them; so that this is not what
is timed, memory is touched and let go of just before, for each of the two (``--cold`` leaves that out).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import subprocess
import sys
from time import perf_counter
from typing import Any

ENGINES = ("shoal", "distributed")


def block(n: int, size: int) -> bytes:
    return bytes([n % 256]) * size


def tiny(n: int) -> int:
    return n


def warm(total: int = 6 << 30, size: int = 2 << 20) -> None:
    """Have the machine come up with memory."""
    pieces = []
    for _ in range(total // size):
        piece = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(piece)), 1, size)
        pieces.append(piece)


def measure(engine: str, scale: float, cold: bool) -> dict[str, float]:
    """Both cases in a fresh cluster each."""
    found = {}
    for name, function, count, extra in (
        ("2 GiB in 1,000 keys", block, int(1000 * scale), (2 * 2**20,)),
        ("200,000 tiny keys", tiny, int(200_000 * scale), ()),
    ):
        module = __import__(engine)
        options: dict[str, Any] = {"n_workers": 3, "threads_per_worker": 1, "memory_limit": 0}
        if engine == "distributed":
            options["dashboard_address"] = None
        with module.LocalCluster(**options) as cluster, module.Client(cluster) as client:
            first = next(iter(client.scheduler_info()["workers"]))
            futures = client.map(function, range(count), *[[one] * count for one in extra], workers=[first], pure=False)
            module.wait(futures)
            if not cold:
                warm()
            began = perf_counter()
            told = client.retire_workers([first])
            found[name] = perf_counter() - began
            assert len(told) == 1, told
            held = client.who_has(futures)
            assert len(held) == count
            assert all(holders and first not in holders for holders in held.values())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the keys, for a quick look")
    parser.add_argument("--cold", action="store_true", help="do not touch memory before")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        print(json.dumps(measure(args.engine, args.scale, args.cold)))
        return
    best: dict[str, dict[str, float]] = {engine: {} for engine in ENGINES}
    for _ in range(args.repeat):
        for engine in ENGINES:
            command = [sys.executable, __file__, "--engine", engine, "--scale", str(args.scale)]
            command += ["--cold"] if args.cold else []
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            for name, seconds in json.loads(done.stdout.splitlines()[-1]).items():
                print(f"{engine:12} {name:22} {seconds:8.2f} s", flush=True)
                best[engine][name] = min(seconds, best[engine].get(name, seconds))
    for name in best["shoal"]:
        ours, theirs = best["shoal"][name], best["distributed"][name]
        print(f"{name:22} shoal {ours:8.2f} s   distributed {theirs:8.2f} s   {theirs / ours:.1f}x")


if __name__ == "__main__":
    main()
