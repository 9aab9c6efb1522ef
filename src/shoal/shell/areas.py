"""Memory for large buffers, mapped in huge pages and used again.

The first touch of a fresh page costs several times more than a copy into it, so an area whose last view is gone is
kept for a few seconds and handed out again. Whether views are left is what the operating system's mapping object
knows: it refuses to be resized while there are.
"""

from __future__ import annotations

import mmap
import threading
from time import monotonic
from typing import Final

#: Buffers smaller than this are plain ``bytearray``: the allocator has warm memory for them.
SMALLEST: Final = 1 << 20
#: Seconds that an unused area is kept.
KEEP: Final = 5.0
_PAGE: Final = 2 << 20


class Areas:
    """A pool of large buffers. Safe to use from several threads."""

    def __init__(self) -> None:
        #: Bytes of unused areas that are kept.
        self.most_idle = 512 << 20
        self._lock = threading.Lock()
        #: Area, and when it was last seen in use.
        self._areas: list[tuple[mmap.mmap, float]] = []

    def allocate(self, nbytes: int) -> memoryview:
        """Return memory of ``nbytes``; its content is undefined."""
        if nbytes < SMALLEST:
            return memoryview(bytearray(nbytes))
        size = -(-nbytes // _PAGE) * _PAGE
        with self._lock:
            for number, (area, _) in enumerate(self._areas):
                if size <= len(area) <= 2 * size and _is_idle(area):
                    self._areas[number] = (area, monotonic())
                    return memoryview(area)[:nbytes]
            self._trim()
            fresh = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                fresh.madvise(mmap.MADV_HUGEPAGE)
            self._areas.append((fresh, monotonic()))
            return memoryview(fresh)[:nbytes]

    def trim(self, all_of_them: bool = False) -> None:
        """Give unused areas back to the system: the ones unused for long, and what is over the limit; or all."""
        with self._lock:
            self._trim(0.0 if all_of_them else KEEP)

    def _trim(self, keep: float = KEEP) -> None:
        now = monotonic()
        kept: list[tuple[mmap.mmap, float]] = []
        idle = 0
        for area, seen in reversed(self._areas):
            if not _is_idle(area):
                kept.append((area, now))
                continue
            idle += len(area)
            if now - seen < keep and idle <= self.most_idle:
                kept.append((area, seen))
            else:
                area.close()
        self._areas = kept[::-1]

    def __len__(self) -> int:
        return len(self._areas)


def _is_idle(area: mmap.mmap) -> bool:
    try:
        area.resize(len(area))
    except BufferError:
        return False
    return True


#: The pool of this process.
AREAS: Final = Areas()
