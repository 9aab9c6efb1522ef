"""Requests of clients that are answered later: when what they wait for has come, or their time is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush
from typing import Any, Final

from shoal.errors import UsageError
from shoal.ids import ClientId

#: How a request is answered: client, number of the request, value, error.
Answering = Callable[[ClientId, int, Any, str | None], None]


#: Things of one kind that clients may leave with the scheduler by name.
NAMES: Final = 100_000


def check_room(things: Mapping[str, Any], what: str) -> None:
    """Refuse one more of ``things`` where there are too many.

    Raises
    ------
    UsageError
        Saying what is to be done.
    """
    if len(things) >= NAMES:
        raise UsageError(f"there are {len(things)} {what} already; clear, close or delete those that are not needed")


class Waiter:
    """One request; ``what`` is its business with the thing that it waits for, ``drop`` takes it off that thing."""

    __slots__ = ("client", "drop", "due", "over", "rid", "what")

    def __init__(
        self, client: ClientId, rid: int, due: float | None, what: Any, drop: Callable[[Waiter], None]
    ) -> None:
        self.client, self.rid, self.due, self.what, self.drop = client, rid, due, what, drop
        self.over = False


class WaitingRoom:
    """All requests that wait, by client and number, with the times at which they give up."""

    def __init__(self, answer: Answering) -> None:
        self._answer = answer
        self._waiters: dict[tuple[ClientId, int], Waiter] = {}
        self._due: list[tuple[float, int, Waiter]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._waiters)

    def wait(self, client: ClientId, rid: int, due: float | None, what: Any, drop: Callable[[Waiter], None]) -> Waiter:
        """A request begins to wait, until ``due`` at the longest."""
        waiter = self._waiters[client, rid] = Waiter(client, rid, due, what, drop)
        if due is not None:
            self._count += 1
            heappush(self._due, (due, self._count, waiter))
        return waiter

    def serve(self, waiter: Waiter, value: Any, error: str | None = None) -> None:
        """Answer a request that waited; whoever calls this has taken it off what it waited for."""
        waiter.over = True
        del self._waiters[waiter.client, waiter.rid]
        self._answer(waiter.client, waiter.rid, value, error)
        self._sweep()

    def _sweep(self) -> None:
        """Forget when those would have given up that do not wait any more, once they are the most."""
        if len(self._due) > 2 * len(self._waiters) + 64:
            self._due = [entry for entry in self._due if not entry[2].over]
            heapify(self._due)

    def withdraw(self, client: ClientId, rid: int) -> None:
        """The client does not wait for this any more."""
        waiter = self._waiters.pop((client, rid), None)
        if waiter is not None:
            waiter.over = True
            waiter.drop(waiter)
            self._answer(client, rid, None, None)
            self._sweep()

    def client_lost(self, client: ClientId) -> None:
        """``client`` waits for nothing any more."""
        for owner, rid in [key for key in self._waiters if key[0] == client]:
            self.withdraw(owner, rid)

    def step(self, now: float) -> None:
        """Answer None to those whose time is over."""
        while self._due and (self._due[0][2].over or self._due[0][0] <= now):
            waiter = heappop(self._due)[2]
            if not waiter.over:
                waiter.drop(waiter)
                self.serve(waiter, None)

    def deadline(self) -> float | None:
        """When the time of the next one is over."""
        while self._due and self._due[0][2].over:
            heappop(self._due)
        return self._due[0][0] if self._due else None
