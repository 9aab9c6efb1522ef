"""Memory for large buffers, mapped in huge pages and used again.

The first touch of a fresh page costs several times more than a copy into it, so an area whose last view is gone is
kept for a few seconds and handed out again. Whether views are left is what the operating system's mapping object
knows: it refuses to be resized while there are. It is asked only of areas whose first view is gone, and of a few of
them each time: there may be thousands in use.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections import deque
from time import monotonic
from typing import Final

#: Buffers smaller than this are plain ``bytearray``: the allocator has warm memory for them.
SMALLEST: Final = 1 << 20
#: Seconds that an unused area is kept.
KEEP: Final = 5.0
_PAGE: Final = 2 << 20
#: Areas that are looked at for one that is unused.
_LOOKS: Final = 8


class _Area:
    """One mapping, and when it was last known to be in use."""

    __slots__ = ("map", "seen", "view")

    def __init__(self, size: int) -> None:
        self.map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self.map.madvise(mmap.MADV_HUGEPAGE)
        self.seen = 0.0
        self.view: weakref.ref[memoryview] | None = None

    @property
    def idle(self) -> bool:
        """Whether nobody has a view of it."""
        try:
            self.map.resize(len(self.map))
        except BufferError:
            self.seen = monotonic()
            return False
        return True


class Areas:
    """A pool of large buffers. Safe to use from several threads."""

    def __init__(self) -> None:
        #: Bytes of unused areas that are kept.
        self.most_idle = 512 << 20
        self._lock = threading.Lock()
        self._areas: dict[_Area, None] = {}
        self._trimmed = 0.0
        #: Areas whose first view is gone: those that were not looked at since, and those that were in use all the same.
        self._left: deque[_Area] = deque()
        self._held: deque[_Area] = deque()

    def allocate(self, nbytes: int) -> memoryview:
        """Return memory of ``nbytes``; its content is undefined."""
        if nbytes < SMALLEST:
            return memoryview(bytearray(nbytes))
        size = -(-nbytes // _PAGE) * _PAGE
        with self._lock:
            area = self._find(size)
            if area is None:
                if monotonic() - self._trimmed > KEEP:
                    self._trim(KEEP)
                area = _Area(size)
                self._areas[area] = None
        area.seen = monotonic()
        view = memoryview(area.map)[:nbytes]
        area.view = weakref.ref(view, lambda _: self._left.append(area))
        return view

    def _find(self, size: int) -> _Area | None:
        """Take an unused area of about this size out of those that may be unused."""
        unfit: list[_Area] = []
        found = None
        for _ in range(_LOOKS):
            area = self._left.pop() if self._left else self._held.popleft() if self._held else None
            if area is None:
                break
            if not area.idle:
                self._held.append(area)
            elif size <= len(area.map) <= 2 * size:
                found = area
                break
            else:
                unfit.append(area)
        self._left.extendleft(unfit)
        return found

    def trim(self, all_of_them: bool = False) -> None:
        """Give unused areas back to the system: the ones unused for long, and what is over the limit; or all."""
        with self._lock:
            self._trim(0.0 if all_of_them else KEEP)

    def _trim(self, keep: float) -> None:
        now, idle = monotonic(), 0
        self._trimmed = now
        looked_at = [self._left.pop() for _ in range(len(self._left))]
        looked_at += [self._held.popleft() for _ in range(len(self._held))]
        for area in looked_at:
            if not area.idle:
                self._held.append(area)
                continue
            idle += len(area.map)
            if now - area.seen < keep and idle <= self.most_idle:
                self._left.appendleft(area)
            else:
                del self._areas[area]
                area.map.close()

    def __len__(self) -> int:
        return len(self._areas)


#: The pool of this process.
AREAS: Final = Areas()
