"""Semaphores (a lock is one of a single lease) and locks of several names, held by clients as leases that expire.

A lease is named by its client, before it asks: it can give it back whatever it heard. Its client says every now and
then that it still holds it; one of which nothing is heard for ``lease-timeout`` is taken back, and so is one whose
client is gone. What is waited for is granted in the order of asking.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from shoal.core.scheduler.state import SchedulerState
from shoal.core.scheduler.waiting import Waiter, WaitingRoom, check_room
from shoal.errors import UsageError
from shoal.ids import ClientId


class Lease:
    """A right to go on, and when its client was last heard of."""

    __slots__ = ("client", "names", "seen")

    def __init__(self, client: ClientId, names: list[str], seen: float) -> None:
        self.client, self.names, self.seen = client, names, seen


class Semaphore:
    """One semaphore: ids of leases that are out, and requests for one (their ``what`` is the id)."""

    __slots__ = ("held", "most", "waiters")

    def __init__(self, most: int) -> None:
        self.most = most
        self.held: dict[str, None] = {}
        self.waiters: deque[Waiter] = deque()


class Locks:
    """All semaphores and locks of several names.

    Parameters
    ----------
    state
        Where the time is.
    room
        Where requests wait.
    lease_timeout, check_interval
        Seconds without a word after which a lease is taken back, and between two looks at that.
    expired
        Called with the client, the names and the id of a lease that is taken back for that.
    """

    def __init__(
        self,
        state: SchedulerState,
        room: WaitingRoom,
        lease_timeout: float,
        check_interval: float,
        expired: Callable[[ClientId, list[str], str], None],
    ) -> None:
        self._state, self._room, self._expired = state, room, expired
        self._lease_timeout, self._interval = lease_timeout, check_interval
        self.semaphores: dict[str, Semaphore] = {}
        self.leases: dict[str, Lease] = {}
        #: Names that are held by locks of several names, with the id of the lease.
        self.taken: dict[str, str] = {}
        #: Requests for several names (``what``: id, names, how many of them), in the order of their coming.
        self._several: dict[Waiter, None] = {}
        self._check_at: float | None = None

    # -------------------------------------------------------------------------------------------- semaphores

    def register(self, name: str, most: int) -> Semaphore:
        """The semaphore of that name, made if need be.

        Raises
        ------
        UsageError
            If there is one with another number of leases.
        """
        found = self.semaphores.get(name)
        if found is None:
            check_room(self.semaphores, "semaphores")
            found = self.semaphores[name] = Semaphore(most)
        elif found.most != most:
            raise UsageError(f"semaphore {name!r} has max_leases={found.most} already, not {most}")
        return found

    def acquire(self, client: ClientId, rid: int, name: str, most: int, lease: str, due: float | None) -> None:
        """Grant a lease as soon as there is one: answered with the seconds for which it holds, or None when late."""
        semaphore = self.register(name, most)

        def drop(gone: Waiter) -> None:
            semaphore.waiters.remove(gone)
            self._forget_idle(name, semaphore)

        semaphore.waiters.append(self._room.wait(client, rid, due, lease, drop))
        self._grant(name, semaphore)

    def _forget_idle(self, name: str, semaphore: Semaphore) -> None:
        """A lock that nobody holds or waits for is as one that was never heard of."""
        if semaphore.most == 1 and not semaphore.held and not semaphore.waiters:
            self.semaphores.pop(name, None)

    def _grant(self, name: str, semaphore: Semaphore) -> None:
        while semaphore.waiters and len(semaphore.held) < semaphore.most:
            waiter = semaphore.waiters.popleft()
            semaphore.held[waiter.what] = None
            self._lend(waiter, waiter.what, [name])

    def _lend(self, waiter: Waiter, lease: str, names: list[str]) -> None:
        self.leases[lease] = Lease(waiter.client, names, self._state.now)
        if self._check_at is None:
            self._check_at = self._state.now + self._interval
        self._room.serve(waiter, self._lease_timeout)

    def release(self, lease: str) -> bool:
        """Take a lease back; return whether it was out."""
        found = self.leases.pop(lease, None)
        if found is None:
            return False
        for name in found.names:
            semaphore = self.semaphores.get(name)
            if semaphore is not None and lease in semaphore.held:
                del semaphore.held[lease]
                self._grant(name, semaphore)
                self._forget_idle(name, semaphore)
            elif self.taken.get(name) == lease:
                del self.taken[name]
        self._grant_several()
        return True

    def value(self, name: str) -> int:
        """How many leases of a semaphore are out."""
        found = self.semaphores.get(name)
        return 0 if found is None else len(found.held)

    def close(self, name: str) -> None:
        """Forget a semaphore; who waits for it is told."""
        found = self.semaphores.pop(name, None)
        if found is None:
            return
        for lease in found.held:
            self.leases.pop(lease, None)
        for waiter in found.waiters:
            self._room.serve(waiter, None, f"semaphore {name!r} was closed")

    # -------------------------------------------------------------------------------------------- several names

    def acquire_several(
        self, client: ClientId, rid: int, names: list[str], count: int, lease: str, due: float | None
    ) -> None:
        """Grant ``count`` of ``names`` together, as soon as they are free and nobody before waits for them."""
        waiter = self._room.wait(client, rid, due, (lease, names, count), self._give_up)
        self._several[waiter] = None
        self._grant_several()

    def _give_up(self, waiter: Waiter) -> None:
        del self._several[waiter]
        self._grant_several()

    def _grant_several(self) -> None:
        spoken_for: set[str] = set()
        for waiter in tuple(self._several):
            lease, names, count = waiter.what
            free = [name for name in names if name not in self.taken and name not in spoken_for]
            if len(free) < count:
                spoken_for.update(names)
                continue
            del self._several[waiter]
            granted = free[:count]
            self.taken.update(dict.fromkeys(granted, lease))
            self._lend(waiter, lease, granted)

    # -------------------------------------------------------------------------------------------- leases

    def refresh(self, client: ClientId, leases: list[str]) -> list[str]:
        """The client holds these still; return those that it does not, since they were taken back."""
        gone = []
        for lease in leases:
            found = self.leases.get(lease)
            if found is None or found.client != client:
                gone.append(lease)
            else:
                found.seen = self._state.now
        return gone

    def client_lost(self, client: ClientId) -> None:
        """All leases of ``client`` are free."""
        for lease in [lease for lease, held in self.leases.items() if held.client == client]:
            self.release(lease)

    def step(self, now: float) -> None:
        """Take back the leases of which nothing was heard for too long."""
        if self._check_at is None or now < self._check_at:
            return
        late = now - self._check_at > self._interval
        for lease, held in tuple(self.leases.items()):
            client = self._state.clients.get(held.client)
            if late or (client is not None and client.owed is not None):
                held.seen = now  # nobody could be heard: this process stood still, or hears nobody who does not read
            elif now - held.seen > self._lease_timeout:
                self._expired(held.client, held.names, lease)
                self.release(lease)
        self._check_at = now + self._interval if self.leases else None

    def deadline(self) -> float | None:
        """When :meth:`step` is to be called."""
        return self._check_at

    def summary(self) -> dict[str, dict[str, Any]]:
        """How each semaphore stands."""
        return {
            name: {"max_leases": one.most, "leases": len(one.held), "waiting": len(one.waiters)}
            for name, one in self.semaphores.items()
        }
