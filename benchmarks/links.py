"""What it costs to authenticate and to encrypt what goes over a link: one process asks another for an array.

``python benchmarks/links.py [--mib 128] [--rounds 9]``: a local socket, TCP with and without seals
(``core/sealing.py``), and TLS, in turn; medians. What is read from the owner's memory on one machine takes none of
these ways (``shell/direct.py``).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
from time import perf_counter
from typing import Any

from shoal.core.session import Carrier
from shoal.messages import Blob, Data, FromPeer, GetData, ToPeer
from shoal.security import Credentials
from shoal.shell import link as links
from shoal.shell.link import Identity, Link
from shoal.shell.loops import new_event_loop
from shoal.shell.network import dial, listen, local_address

WAYS = ("local socket", "TCP, not sealed", "TCP, sealed", "TLS")
SECRET = Credentials(b"for a benchmark, and for nothing else")


def _nothing(*args: Any) -> None:
    pass


async def serve(address: str, mib: int) -> None:
    """Answer with the array, and with nothing, until stdin closes."""
    identity = Identity("worker", "w", SECRET, {"client": FromPeer})
    array = memoryview(bytearray(os.urandom(1 << 20)) * mib)

    def answer(link: Link, messages: list[Any]) -> None:
        for message in messages:
            items = {"array": Blob([array])} if message.keys else {}
            link.send(Data(message.rid, items, [], {}))

    _, actual = await listen(address, lambda: Link(identity, False, _nothing, answer, _nothing), SECRET)
    print(actual, flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def ask(address: str, rounds: int) -> tuple[float, float]:
    """Seconds until the array is here, and until an empty answer is."""
    identity = Identity("client", "c", SECRET, {"worker": ToPeer})
    came = asyncio.Event()

    def hear(link: Link, messages: list[Any]) -> None:
        came.set()

    link = await dial([address], lambda: Link(identity, True, _nothing, hear, _nothing), 10, identity)

    async def once(keys: list[str]) -> float:
        came.clear()
        began = perf_counter()
        link.send(GetData(1, keys))
        await came.wait()
        return perf_counter() - began

    for _ in range(3):
        await once(["array"])
    large = statistics.median([await once(["array"]) for _ in range(rounds)])
    small = statistics.median([await once([]) for _ in range(2000)])
    link.close()
    await asyncio.sleep(0.1)
    return large, small


def unsealed() -> None:
    """Have TCP not sealed, to compare with."""
    links.carrier_of = lambda transport, dialling: Carrier()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--unsealed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        if options.unsealed:
            unsealed()
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve(options.serve, options.mib))
        return
    found: dict[str, tuple[float, float]] = {}
    kept = links.carrier_of
    for way in WAYS:
        address = {"local socket": local_address(), "TLS": "tls://127.0.0.1:0"}.get(way, "tcp://127.0.0.1:0")
        command = [sys.executable, __file__, "--serve", address, "--mib", str(options.mib)]
        links.carrier_of = kept
        if way == "TCP, not sealed":
            command.append("--unsealed")
            unsealed()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            actual = process.stdout.readline().strip()
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                found[way] = runner.run(ask(actual, options.rounds))
            process.communicate("")
    base, base_small = found["TCP, not sealed"]
    print(
        f"| {options.mib} MiB over | [ms] | [MB/s] | | small round trip [µs] | |\n| --- | --- | --- | --- | --- | --- |"
    )
    for way, (large, small) in found.items():
        rate = options.mib * 1.048576 / large
        print(
            f"| {way} | {large * 1e3:.0f} | {rate:,.0f} | {base / large:.2f}× | {small * 1e6:.0f} "
            f"| {base_small / small:.2f}× |"
        )


if __name__ == "__main__":
    main()
