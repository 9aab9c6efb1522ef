"""Threads and abstract resources: what may start now.

A task takes a thread. Tasks that are known to be very short are handed to the threads ahead of time, a few
milliseconds' worth, since passing each one between two threads would cost more than running it. Those are counted as
executing, and can be called back until a thread begins them.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Final

from shoal.core.worker.attempt import AttemptState
from shoal.core.worker.key import KeyRecord
from shoal.ids import key_prefix

#: Only tasks expected to take less than this (seconds) are handed out ahead of time …
SHORT: Final = 0.001
#: … and no more than this much work (seconds) for each thread.
AHEAD: Final = 0.005


class Slots:
    """Accounts of threads and resources, and the heaps of those who wait for them.

    Parameters
    ----------
    nthreads
        Tasks that run at the same time.
    resources
        Abstract resources of this worker, by name.
    """

    __slots__ = (
        "_constrained", "_durations", "_handed", "_handed_seconds", "_ready", "_seceded", "_seq", "_unknown",
        "available", "nthreads", "total",
    )  # fmt: skip

    def __init__(self, nthreads: int, resources: dict[str, float]) -> None:
        self.nthreads = nthreads
        self.total = dict(resources)
        self.available = dict(resources)
        self._ready: list[tuple[tuple[int, int, int], int, KeyRecord]] = []
        self._constrained: list[tuple[tuple[int, int, int], int, KeyRecord]] = []
        self._seq = 0
        self._durations: dict[str, float] = {}
        #: What each running key was expected to take (None: not known) and the resources that it took.
        self._handed: dict[str, tuple[float | None, dict[str, float] | None]] = {}
        self._handed_seconds = 0.0
        self._unknown = 0
        #: Keys that run outside of the pool, and the resources that they took.
        self._seceded: dict[str, dict[str, float] | None] = {}

    @property
    def n_running(self) -> int:
        return len(self._handed)

    def running_keys(self) -> list[str]:
        return [*self._handed, *self._seceded]

    def taken(self) -> dict[str, float]:
        """Resources that the running keys hold, by name."""
        found = dict.fromkeys(self.total, 0.0)
        for needs in [*(taken for _, taken in self._handed.values()), *self._seceded.values()]:
            for name, amount in (needs or {}).items():
                found[name] = found.get(name, 0.0) + amount
        return found

    def push(self, record: KeyRecord) -> None:
        """``record`` is ready or constrained: it waits in line."""
        self._seq += 1
        record.seq = self._seq
        heap = self._constrained if record.attempt is AttemptState.CONSTRAINED else self._ready
        heappush(heap, (record.priority, self._seq, record))

    def pop(self) -> KeyRecord | None:
        """The next record that may start now, taken off its line, or None."""
        found = self._pop_constrained()
        if found is not None:
            return found
        heap = self._ready
        while heap:
            _, seq, record = heap[0]
            if record.seq != seq or record.attempt is not AttemptState.READY:
                heappop(heap)
            elif self._fits(record):
                heappop(heap)
                return record
            else:
                return None
        return None

    def _fits(self, record: KeyRecord) -> bool:
        if len(self._handed) < self.nthreads:
            return True
        if self._unknown:
            return False
        expected = self._durations.get(_kind(record))
        return expected is not None and expected < SHORT and self._handed_seconds < AHEAD * self.nthreads

    def _pop_constrained(self) -> KeyRecord | None:
        if not self._constrained or len(self._handed) >= self.nthreads:
            return None
        passed_over = []
        found = None
        while self._constrained:
            entry = heappop(self._constrained)
            _, seq, record = entry
            if record.seq != seq or record.attempt is not AttemptState.CONSTRAINED:
                continue
            assert record.spec is not None
            if all(self.available.get(name, 0) >= need for name, need in (record.spec.resources or {}).items()):
                found = record
                break
            passed_over.append(entry)
        for entry in passed_over:
            heappush(self._constrained, entry)
        return found

    def take(self, record: KeyRecord) -> None:
        """``record`` starts: it takes a thread and its resources."""
        assert record.spec is not None
        assert record.key not in self._handed
        expected = self._durations.get(_kind(record))
        resources = record.spec.resources
        self._handed[record.key] = (expected, resources)
        if expected is None:
            self._unknown += 1
        else:
            self._handed_seconds += expected
        for name, amount in (resources or {}).items():
            self.available[name] -= amount

    def _leave(self, key: str) -> dict[str, float] | None:
        """``key`` leaves its thread; return the resources that it holds."""
        expected, resources = self._handed.pop(key)
        if expected is None:
            self._unknown -= 1
        else:
            self._handed_seconds -= expected
        if not self._handed:
            self._handed_seconds = 0.0
        return resources

    def secede(self, record: KeyRecord) -> None:
        """``record`` runs on outside of the pool: its thread is free, its resources are not."""
        self._seceded[record.key] = self._leave(record.key)

    def rejoin(self, record: KeyRecord) -> None:
        """``record`` takes a thread again."""
        self._handed[record.key] = (None, self._seceded.pop(record.key))
        self._unknown += 1

    def give(self, record: KeyRecord, seconds: float | None) -> None:
        """``record`` ended after ``seconds`` (None: it never began): its thread and resources are free."""
        seceded = record.key in self._seceded
        resources = self._seceded.pop(record.key) if seceded else self._leave(record.key)
        if seceded:
            seconds = None  # it waited for others, so it says nothing about what its like takes
        for name, amount in (resources or {}).items():
            self.available[name] += amount
        if seconds is not None:
            kind = _kind(record)
            known = self._durations.get(kind)
            if known is None and len(self._durations) > 10_000:
                self._durations.clear()
            self._durations[kind] = seconds if known is None else max(seconds, 0.5 * (known + seconds))


def _kind(record: KeyRecord) -> str:
    assert record.spec is not None
    return record.spec.fn or key_prefix(record.key)
