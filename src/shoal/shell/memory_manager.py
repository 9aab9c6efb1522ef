"""What a worker does about its memory: it spills, and takes no tasks while that is not enough.

Managed memory is that of results that the worker holds, spilled that of results on disk; the rest of the process's
memory is unmanaged. From ``target`` on (managed memory) and from ``spill`` on (the process's), values go to disk until
it is less than ``target``; at ``pause`` no task is started any more; at ``terminate`` the nanny ends the process. All
are fractions of the limit.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, ClassVar

from shoal import config
from shoal.shell.areas import AREAS
from shoal.shell.store import ValueStore
from shoal.shell.tasks import Every, keep_running
from shoal.shell.usage import resident_bytes

logger = logging.getLogger("shoal.worker.memory")

#: Seconds after which a disk that failed is tried again.
TRY_AGAIN = 5.0
#: Bytes spilled after which the allocator is asked to give memory back.
_TRIM = 64 << 20
#: Bytes a second at which memory can be taken, at most; seconds between two looks, at least.
_GROWTH, _SHORTEST = 4e9, 0.01
_PREFIX = "distributed.worker.memory."


class MemoryManager:
    """Watches the memory of this process.

    Parameters
    ----------
    store
        The values that may be spilled.
    limit
        Bytes; 0 is no limit, and then nothing is done.
    on_pressure
        Called on the loop with whether the worker is to pause, and why.
    """

    #: Those of this process. Where there are several, none of them answers for the memory of the whole process.
    _here: ClassVar[set[MemoryManager]] = set()

    def __init__(self, store: ValueStore, limit: int, on_pressure: Callable[[bool, str], None]) -> None:
        self.store, self.memory_limit, self._on_pressure = store, limit, on_pressure
        self._here.add(self)
        self.target = config.fraction(config.get(_PREFIX + "target", 0.6), _PREFIX + "target")
        self.spill = config.fraction(config.get(_PREFIX + "spill", 0.7), _PREFIX + "spill")
        self.pause = config.fraction(config.get(_PREFIX + "pause", 0.8), _PREFIX + "pause")
        self.interval = (
            config.seconds(config.get(_PREFIX + "monitor-interval", 0.1), _PREFIX + "monitor-interval") or 0.1
        )
        self.paused = False
        #: Why nothing can be spilled at the moment, if that is so.
        self.failure = ""
        self._failed_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._timer: Every | None = None
        self._closed = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch, if there is a limit."""
        if self.memory_limit:
            if self.store.disk is not None and (self.target or self.spill):
                self._thread = keep_running("shoal-spill", self._work, lambda: self._closed)
            self._timer = Every(0.0, self._sample, "the look at this process's memory")

    def close(self) -> None:
        """Stop."""
        self._closed = True
        self._here.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(1.0)

    def check(self) -> None:
        """Have room made where values came from elsewhere; called on the loop, and costs nothing there."""
        if self._thread is not None and self.over_target and not self._wake.is_set():
            self._wake.set()

    def make_room(self) -> None:
        """Spill what is over the target before going on: a thread that makes values waits for the disk.

        Called in the threads of tasks.
        """
        if not self.over_target or self._thread is None:
            return
        if not self._is_failing():
            self._try(lambda: self._spill_while(lambda: self.over_target))
        if self.pause and not self.paused and self.used() > self.pause * self.memory_limit:
            looked = threading.Event()
            self._loop.call_soon_threadsafe(self._look, looked)
            looked.wait(self.interval)  # or this thread would begin another task meanwhile

    def used(self) -> int:
        """Bytes that count against the limit: of the process, or of the results alone where others live there too."""
        return resident_bytes() if len(self._here) == 1 else self.store.managed

    @property
    def over_target(self) -> bool:
        """Whether results take more memory than they should."""
        return bool(self.target) and self.store.managed > self.target * self.memory_limit

    def _sample(self) -> float:
        used = self._look()
        left = self.pause * self.memory_limit - used if self.pause else self.memory_limit
        return min(self.interval, max(_SHORTEST, left / _GROWTH))

    def _look(self, looked: threading.Event | None = None) -> int:
        """Do what the memory of the process asks for; return its bytes."""
        used = self.used()
        limit = self.memory_limit
        if self._thread is not None and (self.over_target or (self.spill and used > self.spill * limit)):
            self._wake.set()
        if self.pause and (used > self.pause * limit) != self.paused:
            self.paused = not self.paused
            self._on_pressure(self.paused, self._describe(used))
        if looked is not None:
            looked.set()
        return used

    def _describe(self, used: int) -> str:
        how = "over" if self.paused else "under"
        text = f"{used / 1e6:.0f} MB are used, {how} {self.pause:.0%} of the limit of {self.memory_limit / 1e6:.0f} MB"
        if not self.paused:
            return text
        managed, spilled = self.store.managed / 1e6, self.store.spilled_memory / 1e6
        text += f"; {managed:.0f} MB of that are results, {spilled:.0f} MB more are spilled"
        return f"{text}; nothing can be spilled: {self.failure}" if self.failure else text

    # -------------------------------------------------------------------------------------------- in the thread

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._closed:
                return
            if not self._is_failing():
                self._try(self._spill_some)

    def _is_failing(self) -> bool:
        """Whether the disk failed a moment ago."""
        return bool(self.failure) and monotonic() - self._failed_at < TRY_AGAIN

    def _try(self, spill: Callable[[], None]) -> None:
        try:
            spill()
            self.failure = ""
        except OSError as error:
            self.failure, self._failed_at = str(error), monotonic()
            where = self.store.disk.directory if self.store.disk is not None else ""
            logger.error("cannot spill to %s: %s; the values stay in memory", where, error)

    def _spill_some(self) -> None:
        """Spill until there is less than the target, of managed memory or (where that is much) of all."""
        self._spill_while(lambda: self.over_target)
        low = (self.target or self.spill) * self.memory_limit
        if self.spill and self.used() > self.spill * self.memory_limit:
            give_back()
            self._spill_while(lambda: self.used() > low)
            give_back()

    def _spill_while(self, needed: Callable[[], bool]) -> None:
        since_trim = 0
        while not self._closed and needed():
            freed = self.store.evict()
            if freed is None:
                return  # the rest is unmanaged, or cannot be spilled
            AREAS.trim(all_of_them=True)
            since_trim += freed
            if since_trim > _TRIM:
                since_trim = 0
                give_back()

    def metrics(self) -> dict[str, Any]:
        """Bytes, by what they are for."""
        process = resident_bytes()
        disk = self.store.disk
        return {
            "process": process,
            "managed": self.store.managed,
            "unmanaged": max(0, process - self.store.managed),
            "spilled": self.store.spilled_memory,
            "disk": disk.used if disk is not None else 0,
            "spills": disk.written if disk is not None else 0,
            "failure": self.failure,
        }


_trim: Any = None


def give_back() -> None:
    """Have the allocator return what is free to the system."""
    global _trim
    gc.collect(0)
    AREAS.trim(all_of_them=True)
    if _trim is None:
        _trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)
    _trim(0)
