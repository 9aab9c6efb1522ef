"""What each thread is running, written where it can be read after the process is gone.

The nanny makes a piece of shared memory, its worker writes the key there before a thread begins it, and whatever way
the process ends, the nanny can tell the scheduler which tasks were in its threads. One write of memory for each task.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

_SLOT: Final = 512
#: Threads outside of the pool that are told of; what more there are is not.
SECEDED: Final = 64


class Recorder:
    """One slot for each thread.

    Parameters
    ----------
    descriptor
        Of the shared memory; it is kept open by its owner.
    nthreads
        Threads of the pool.
    """

    def __init__(self, descriptor: int, nthreads: int) -> None:
        #: Slots: for the pool, and for threads that left it.
        self.capacity = nthreads + SECEDED
        if os.fstat(descriptor).st_size < _SLOT * self.capacity:
            os.ftruncate(descriptor, _SLOT * self.capacity)
        self._memory = mmap.mmap(descriptor, _SLOT * self.capacity)

    def begin(self, thread: int, key: str) -> None:
        """Thread ``thread`` begins ``key`` (a name too long for its slot is cut)."""
        data = key.encode()[: _SLOT - 2]
        at = thread * _SLOT
        self._memory[at : at + 2 + len(data)] = len(data).to_bytes(2, "little") + data

    def end(self, thread: int) -> None:
        self._memory[thread * _SLOT : thread * _SLOT + 2] = b"\0\0"

    def running(self) -> list[str]:
        """The keys that threads are in, or were in when the process ended."""
        found = []
        for at in range(0, self.capacity * _SLOT, _SLOT):
            size = int.from_bytes(self._memory[at : at + 2], "little")
            if size:
                found.append(self._memory[at + 2 : at + 2 + size].decode(errors="replace"))
        return found

    def close(self) -> None:
        self._memory.close()
