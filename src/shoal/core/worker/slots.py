"""Threads and abstract resources: what may start now.

A task takes a thread. Tasks that are known to be very short are handed to the threads ahead of time, a few
milliseconds' worth, since passing each one between two threads would cost more than running it. Those are counted as
executing, and can be called back until a thread begins them.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Final

from shoal.core.amounts import amount_of, needed, offered
from shoal.core.worker.attempt import AttemptState
from shoal.core.worker.key import KeyRecord
from shoal.ids import key_prefix

#: Tasks that are looked at for one whose inputs are in memory, and how often one is passed over for such.
LOOKED_AT: Final = 16
PASSED_OVER_MOST: Final = 64
#: Only tasks expected to take less than this (seconds) are handed out ahead of time …
SHORT: Final = 0.001
#: … and no more than this much work (seconds) for each thread.
AHEAD: Final = 0.005


class Pool:
    """The threads of one executor, and who waits for them."""

    __slots__ = ("handed", "handed_seconds", "nthreads", "ready", "unknown")

    def __init__(self, nthreads: int) -> None:
        self.nthreads = nthreads
        self.ready: list[tuple[tuple[int, int, int], int, KeyRecord]] = []
        #: How many tasks it was handed, how many of them take no one knows how long, and seconds that the others take.
        self.handed = 0
        self.unknown = 0
        self.handed_seconds = 0.0

    def take(self, expected: float | None) -> None:
        self.handed += 1
        if expected is None:
            self.unknown += 1
        else:
            self.handed_seconds += expected

    def give(self, expected: float | None) -> None:
        self.handed -= 1
        if expected is None:
            self.unknown -= 1
        else:
            self.handed_seconds -= expected
        if not self.handed:
            self.handed_seconds = 0.0


class Slots:
    """Accounts of threads and resources, and the heaps of those who wait for them.

    Parameters
    ----------
    nthreads
        Tasks that run at the same time.
    resources
        Abstract resources of this worker, by name.
    executors
        Threads of other pools, for tasks that ask for one of them by its name.
    """

    __slots__ = ("_constrained", "_durations", "_handed", "_seceded", "_seq", "_units", "pools", "short", "total")

    def __init__(self, nthreads: int, resources: dict[str, float], executors: dict[str, int] | None = None) -> None:
        self.pools = {"": Pool(nthreads)} | {name: Pool(size) for name, size in (executors or {}).items()}
        self.total = dict(resources)
        #: What is free of each resource, in units.
        self._units = {name: offered(amount) for name, amount in resources.items()}
        self._constrained: list[tuple[tuple[int, int, int], int, KeyRecord]] = []
        self._seq = 0
        #: Whether results take too much memory: then what needs none from disk is run first.
        self.short = False
        self._durations: dict[str, float] = {}
        #: The pool of each running key, what it was expected to take (None: not known), and its resources.
        self._handed: dict[str, tuple[Pool, float | None, dict[str, float] | None]] = {}
        #: Keys that run outside of their pools: which that is, and the resources that they took.
        self._seceded: dict[str, tuple[Pool, dict[str, float] | None]] = {}

    @property
    def n_running(self) -> int:
        return len(self._handed)

    def pool_of(self, key: str) -> Pool:
        """The pool in which a running key takes a thread."""
        return self._handed[key][0]

    def holds(self, key: str) -> bool:
        """Whether a running key holds resources."""
        found = self._seceded.get(key) or self._handed.get(key)
        return found is not None and bool(found[-1])

    def running_keys(self) -> list[str]:
        return [*self._handed, *self._seceded]

    @property
    def available(self) -> dict[str, float]:
        """What is free of each resource."""
        return {name: max(0.0, amount_of(units)) for name, units in self._units.items()}

    def offer(self, resources: dict[str, float]) -> None:
        """Have other amounts of some resources. Where there is less than is in use, nothing starts before that ends."""
        for name, amount in resources.items():
            self._units[name] = self._units.get(name, 0) + offered(amount) - offered(self.total.get(name, 0.0))
            self.total[name] = amount

    def could_run(self, resources: dict[str, float]) -> bool:
        """Whether there is as much of all resources, in use or not."""
        return all(needed(amount) <= offered(self.total.get(name, 0.0)) for name, amount in resources.items())

    def free_units(self, name: str) -> int:
        """What is free of a resource, in units."""
        return self._units[name]

    def taken(self) -> dict[str, int]:
        """Units of resources that the running keys hold, by name."""
        found = dict.fromkeys(self.total, 0)
        for needs in [
            *(taken for _, _, taken in self._handed.values()),
            *(taken for _, taken in self._seceded.values()),
        ]:
            for name, amount in (needs or {}).items():
                found[name] = found.get(name, 0) + needed(amount)
        return found

    def push(self, record: KeyRecord) -> None:
        """``record`` is ready or constrained: it waits in line."""
        self._seq += 1
        record.seq = self._seq
        waits_for_more = record.attempt is AttemptState.CONSTRAINED
        heap = self._constrained if waits_for_more else self._pool_of(record).ready
        heappush(heap, (record.priority, self._seq, record))

    def _pool_of(self, record: KeyRecord) -> Pool:
        assert record.spec is not None
        return self.pools[record.spec.executor]

    def pop(self) -> KeyRecord | None:
        """The next record that may start now, taken off its line, or None.

        What takes resources is before others of the same priority, since the resources wait too.
        """
        if self._constrained:
            found = self._pop_constrained()
            if found is not None:
                return found
        for pool in self.pools.values():
            record = self._first_ready(pool)
            if record is None or not self._fits(record, pool):
                continue
            if self.short and _needs_disk(record):
                return self._pop_in_memory(pool)
            heappop(pool.ready)
            return record
        return None

    def _pop_in_memory(self, pool: Pool) -> KeyRecord:
        """The first that needs nothing from disk, of the first few of the same priority; or the first of all.

        Nobody is passed over for ever.
        """
        passed: list[tuple[tuple[int, int, int], int, KeyRecord]] = []
        found: KeyRecord | None = None
        while found is None and len(passed) < LOOKED_AT and (record := self._first_ready(pool)) is not None:
            if passed and record.priority[0] != passed[0][2].priority[0]:
                break
            entry = heappop(pool.ready)
            if record.passed_over >= PASSED_OVER_MOST or not _needs_disk(record):
                found = record
            else:
                passed.append(entry)
        if found is None:
            found = passed.pop(0)[2]
        else:
            for _, _, record in passed:
                record.passed_over += 1
        for entry in passed:
            heappush(pool.ready, entry)
        return found

    def _first_ready(self, pool: Pool) -> KeyRecord | None:
        heap = pool.ready
        while heap:
            _, seq, record = heap[0]
            if record.seq == seq and record.attempt is AttemptState.READY:
                return record
            heappop(heap)
        return None

    def _fits(self, record: KeyRecord, pool: Pool) -> bool:
        if pool.handed < pool.nthreads:
            return True
        if pool.unknown:
            return False
        expected = self._durations.get(_kind(record))
        return expected is not None and expected < SHORT and pool.handed_seconds < AHEAD * pool.nthreads

    def _pop_constrained(self) -> KeyRecord | None:
        passed_over = []
        found = None
        while self._constrained:
            entry = heappop(self._constrained)
            _, seq, record = entry
            if record.seq != seq or record.attempt is not AttemptState.CONSTRAINED:
                continue
            assert record.spec is not None
            pool = self._pool_of(record)
            urgent = self._first_ready(pool)
            if urgent is not None and urgent.priority[0] < record.priority[0]:
                passed_over.append(entry)
                continue
            if pool.handed < pool.nthreads and all(
                self._units.get(name, 0) >= needed(need) for name, need in (record.spec.resources or {}).items()
            ):
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
        record.passed_over = 0
        expected = self._durations.get(_kind(record))
        resources = record.spec.resources
        pool = self._pool_of(record)
        self._handed[record.key] = (pool, expected, resources)
        pool.take(expected)
        for name, amount in (resources or {}).items():
            self._units[name] = self._units.get(name, 0) - needed(amount)

    def _leave(self, key: str) -> tuple[Pool, dict[str, float] | None]:
        """``key`` leaves its thread; return its pool, and the resources that it holds."""
        pool, expected, resources = self._handed.pop(key)
        pool.give(expected)
        return pool, resources

    def secede(self, record: KeyRecord) -> None:
        """``record`` runs on outside of the pool: its thread is free, its resources are not."""
        self._seceded[record.key] = self._leave(record.key)

    def rejoin(self, record: KeyRecord) -> None:
        """``record`` takes a thread again."""
        pool, resources = self._seceded.pop(record.key)
        self._handed[record.key] = (pool, None, resources)
        pool.take(None)

    def give(self, record: KeyRecord, seconds: float | None) -> None:
        """``record`` ended after ``seconds`` (None: it never began): its thread and resources are free."""
        seceded = record.key in self._seceded
        _, resources = self._seceded.pop(record.key) if seceded else self._leave(record.key)
        if seceded:
            seconds = None  # it waited for others, so it says nothing about what its like takes
        for name, amount in (resources or {}).items():
            self._units[name] += needed(amount)
        if seconds is not None:
            kind = _kind(record)
            known = self._durations.get(kind)
            if known is None and len(self._durations) > 10_000:
                self._durations.clear()
            self._durations[kind] = seconds if known is None else max(seconds, 0.5 * (known + seconds))


def _needs_disk(record: KeyRecord) -> bool:
    return any(dep.on_disk for dep in record.deps)


def _kind(record: KeyRecord) -> str:
    assert record.spec is not None
    return record.spec.fn or key_prefix(record.key)
