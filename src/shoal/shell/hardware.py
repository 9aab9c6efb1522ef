"""How fast a worker's memory, disk and network are: functions that clients have run there."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final
from uuid import uuid4

from shoal import private
from shoal.messages import PutData

_SIZES: Final = {"4 kiB": 4096, "100 kiB": 100 * 1024, "1 MiB": 2**20, "10 MiB": 10 * 2**20, "100 MiB": 100 * 2**20}
#: Seconds for each size.
_LONGEST: Final = 0.3


def _rate(size: int, once: Callable[[], Any]) -> float:
    begun, count = perf_counter(), 0
    while (took := perf_counter() - begun) < _LONGEST:
        once()
        count += 1
    return size * count / took


def memory(peers: Any, dask_worker: Any = None) -> dict[str, float]:
    """Bytes a second that are copied, by size."""
    found = {}
    for name, size in _SIZES.items():
        source, target = bytearray(os.urandom(size)), bytearray(size)

        def copy(source: bytearray = source, target: bytearray = target) -> None:
            target[:] = source

        found[name] = _rate(size, copy)
    return found


def disk(peers: Any, dask_worker: Any = None) -> dict[str, float]:
    """Bytes a second that are written into files and reach the disk, by size."""
    found = {}
    directory = private.Directory(dask_worker.local_directory, create=False)
    file = f"benchmark-{uuid4().hex}"
    descriptor = directory.create(file)
    try:
        for name, size in _SIZES.items():
            data = os.urandom(size)

            def write(data: bytes = data) -> None:
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                private.overwrite(descriptor, data)
                os.fsync(descriptor)

            found[name] = _rate(size, write)
    finally:
        os.close(descriptor)
        directory.remove(file)
    return found


async def network(peers: list[list[Any]], dask_worker: Any = None) -> dict[str, float]:
    """Bytes a second that come to the worker after this one, by size; that one does not keep them."""
    program = getattr(dask_worker, "program", dask_worker)
    ids = [peer[0] for peer in peers]
    if len(peers) < 2 or program.id not in ids:
        return {}
    peer, addresses = peers[(ids.index(program.id) + 1) % len(peers)]
    found = {}
    for name, size in _SIZES.items():
        data = os.urandom(size)
        begun, count = perf_counter(), 0
        while (took := perf_counter() - begun) < _LONGEST:
            await program._peers.request(peer, addresses, lambda rid, data=data: PutData(rid, "", {"": data}))
            count += 1
        found[name] = size * count / took
    return found
