"""What clients leave with the scheduler for each other: events, queues, variables, datasets, metadata.

Values are payloads that nobody here looks into, with the keys of the futures inside of them. Those keys are kept: the
scheduler itself wants them (:class:`Keeper`) while the value is here, and then until whoever took it says that it
wants them too (:class:`~shoal.messages.Took`), so that no result is let go of between two hands.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from shoal.core.scheduler.roster import ClientRecord
from shoal.core.scheduler.state import SchedulerState
from shoal.core.scheduler.waiting import Waiter, WaitingRoom, check_room
from shoal.errors import UsageError
from shoal.ids import ClientId, key_from_wire

#: A payload, and the keys of the futures inside of it.
Kept = tuple[Any, list[str]]

#: No peer can have an id with a space (``core/session.py``).
KEEPER = ClientId("the scheduler")


class Keeper:
    """Wants keys in the name of the scheduler, each as often as it was asked to."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._counts: dict[str, int] = {}

    def keep(self, keys: list[str]) -> None:
        """Want these once more.

        Raises
        ------
        UsageError
            If one is not known: it was cancelled or released.
        """
        for key in keys:
            if key not in self._state.tasks:
                raise UsageError(f"{key_from_wire(key)!r} is not known here: it was cancelled or released")
        for key in keys:
            self._counts[key] = self._counts.get(key, 0) + 1
            self._state.want(self._record(), self._state.tasks[key])

    def drop(self, keys: list[str]) -> None:
        """Want these once less."""
        for key in keys:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]
                task = self._state.tasks.get(key)
                if task is not None:
                    self._state.unwant(self._record(), task)
        if not self._counts:
            self._state.clients.pop(KEEPER, None)

    def _record(self) -> ClientRecord:
        found = self._state.clients.get(KEEPER)
        if found is None:
            found = self._state.clients[KEEPER] = ClientRecord(KEEPER, "what is left with the scheduler", remote=False)
        return found


class Queue:
    """One queue; who waits to put something has it in ``what``, who waits to get some how many."""

    __slots__ = ("getters", "items", "most", "putters")

    def __init__(self, most: int) -> None:
        self.most = most
        self.items: deque[Kept] = deque()
        self.getters: deque[Waiter] = deque()
        self.putters: deque[Waiter] = deque()

    @property
    def full(self) -> bool:
        return 0 < self.most <= len(self.items)


class Boxes:
    """All of them, by name."""

    def __init__(self, state: SchedulerState, room: WaitingRoom, answer: Any) -> None:
        self._room, self._answer = room, answer
        self._keeper = Keeper(state)
        self.queues: dict[str, Queue] = {}
        self.variables: dict[str, Kept] = {}
        self.datasets: dict[str, Kept] = {}
        self.metadata: dict[str, Any] = {}
        self.events: dict[str, bool] = {}
        self._event_waiters: dict[str, dict[Waiter, None]] = {}
        self._variable_waiters: dict[str, dict[Waiter, None]] = {}
        #: Keys that were given to somebody who has not said yet that it wants them, by client and request.
        self._handed: dict[tuple[ClientId, int], list[str]] = {}

    # -------------------------------------------------------------------------------------------- handing over

    def _hand(self, client: ClientId, rid: int, items: list[Kept], keep: bool) -> list[list[Any]]:
        """``items`` as they are answered; they stay here too if ``keep``."""
        keys = [key for _, inside in items for key in inside]
        if keys:
            if keep:
                self._keeper.keep(keys)
            self._handed[client, rid] = keys
        return [[payload, inside] for payload, inside in items]

    def took(self, client: ClientId, rid: int) -> None:
        """The client wants the keys that it was given."""
        self._keeper.drop(self._handed.pop((client, rid), []))

    def client_lost(self, client: ClientId) -> None:
        """``client`` takes nothing any more."""
        for owner, rid in [key for key in self._handed if key[0] == client]:
            self.took(owner, rid)

    # -------------------------------------------------------------------------------------------- events

    def event_set(self, name: str) -> None:
        """Set an event; all who wait for it go on."""
        if name not in self.events:
            check_room(self.events, "events that are set")
        self.events[name] = True
        for waiter in self._event_waiters.pop(name, {}):
            self._room.serve(waiter, True)

    def event_wait(self, client: ClientId, rid: int, name: str, due: float | None) -> None:
        """Answer True as soon as the event is set, None when late."""
        if self.events.get(name):
            self._answer(client, rid, True, None)
            return
        waiters = self._event_waiters.setdefault(name, {})
        waiters[self._room.wait(client, rid, due, None, lambda gone: _forget(self._event_waiters, name, gone))] = None

    # -------------------------------------------------------------------------------------------- queues

    def queue(self, name: str, most: int) -> Queue:
        """The queue of that name, made if need be.

        Raises
        ------
        UsageError
            If there is one with another limit.
        """
        found = self.queues.get(name)
        if found is None:
            check_room(self.queues, "queues")
            found = self.queues[name] = Queue(most)
        elif most and found.most != most:
            raise UsageError(f"queue {name!r} has maxsize={found.most} already, not {most}")
        return found

    def queue_put(
        self, client: ClientId, rid: int, name: str, most: int, item: Kept, due: float | None, first: bool = False
    ) -> None:
        """Answer True once there is room for ``item``; ``first``: it was taken by mistake, and goes back."""
        queue = self.queue(name, most)
        self._keeper.keep(item[1])
        if first:
            queue.items.appendleft(item)
            self._answer(client, rid, True, None)
        else:

            def drop(gone: Waiter) -> None:
                queue.putters.remove(gone)
                self._keeper.drop(item[1])
                self._forget_idle(name, queue)

            queue.putters.append(self._room.wait(client, rid, due, item, drop))
        self._move(queue)
        self._forget_idle(name, queue)

    def queue_size(self, name: str) -> int:
        """How many items are in a queue."""
        found = self.queues.get(name)
        return 0 if found is None else len(found.items)

    def _forget_idle(self, name: str, queue: Queue) -> None:
        """An empty queue without a limit that nobody waits at is as one that was never heard of."""
        if not (queue.most or queue.items or queue.getters or queue.putters) and self.queues.get(name) is queue:
            del self.queues[name]

    def queue_get(self, client: ClientId, rid: int, name: str, most: int, count: int | None, due: float | None) -> None:
        """Answer with ``count`` items (None: all that are there now, be it none), or None when late."""
        queue = self.queue(name, most)
        if count is None:
            items = list(queue.items)
            queue.items.clear()
            self._answer(client, rid, self._hand(client, rid, items, keep=False), None)
        else:

            def drop(gone: Waiter) -> None:
                queue.getters.remove(gone)
                self._move(queue)  # one who wants less may have stood behind it
                self._forget_idle(name, queue)

            queue.getters.append(self._room.wait(client, rid, due, count, drop))
        self._move(queue)
        self._forget_idle(name, queue)

    def _move(self, queue: Queue) -> None:
        """Let in what there is room for, and out what is waited for, in order."""
        moved = True
        while moved:
            moved = False
            while queue.putters and (not queue.full or (queue.getters and queue.getters[0].what > len(queue.items))):
                waiter = queue.putters.popleft()
                queue.items.append(waiter.what)
                self._room.serve(waiter, True)
                moved = True
            while queue.getters and queue.getters[0].what <= len(queue.items):
                waiter = queue.getters.popleft()
                items = [queue.items.popleft() for _ in range(waiter.what)]
                self._room.serve(waiter, self._hand(waiter.client, waiter.rid, items, keep=False))
                moved = True

    def queue_close(self, name: str) -> None:
        """Forget a queue, and what is in it; who waits is told."""
        queue = self.queues.pop(name, None)
        if queue is None:
            return
        for waiter in queue.putters:
            self._keeper.drop(waiter.what[1])
        for waiter in (*queue.putters, *queue.getters):
            self._room.serve(waiter, None, f"queue {name!r} was closed")
        for _, keys in queue.items:
            self._keeper.drop(keys)

    # -------------------------------------------------------------------------------------------- variables

    def variable_set(self, name: str, value: Kept) -> None:
        """Put a value in place of the one before; who waits for the first one gets it."""
        if name not in self.variables:
            check_room(self.variables, "variables")
        self._keeper.keep(value[1])
        self._keeper.drop(self.variables.pop(name, (None, []))[1])
        self.variables[name] = value
        for waiter in self._variable_waiters.pop(name, {}):
            self._room.serve(waiter, self._hand(waiter.client, waiter.rid, [value], keep=True))

    def variable_get(self, client: ClientId, rid: int, name: str, due: float | None) -> None:
        """Answer with the value as soon as there is one, None when late."""
        value = self.variables.get(name)
        if value is not None:
            self._answer(client, rid, self._hand(client, rid, [value], keep=True), None)
            return
        waiters = self._variable_waiters.setdefault(name, {})
        waiter = self._room.wait(client, rid, due, None, lambda gone: _forget(self._variable_waiters, name, gone))
        waiters[waiter] = None

    def variable_delete(self, name: str) -> None:
        """Forget a variable; who waits for it is told."""
        self._keeper.drop(self.variables.pop(name, (None, []))[1])
        for waiter in self._variable_waiters.pop(name, {}):
            self._room.serve(waiter, None, f"variable {name!r} was deleted")

    # -------------------------------------------------------------------------------------------- datasets

    def publish(self, name: str, value: Kept, override: bool) -> bool:
        """Keep a dataset; return False where there is one of that name, which stays."""
        if name in self.datasets and not override:
            return False
        if name not in self.datasets:
            check_room(self.datasets, "datasets")
        self._keeper.keep(value[1])
        self.unpublish(name)
        self.datasets[name] = value
        return True

    def unpublish(self, name: str) -> bool:
        """Forget a dataset; return whether there was one."""
        found = self.datasets.pop(name, None)
        if found is not None:
            self._keeper.drop(found[1])
        return found is not None

    def dataset(self, client: ClientId, rid: int, name: str) -> list[list[Any]]:
        """The dataset of that name, in a list, or an empty one."""
        found = self.datasets.get(name)
        return [] if found is None else self._hand(client, rid, [found], keep=True)

    # -------------------------------------------------------------------------------------------- metadata

    def set_metadata(self, names: list[Any], value: Any) -> None:
        """Set a value in nested mappings, which are made where need be."""
        inner = self.metadata
        if names[0] not in inner:
            check_room(inner, "names of metadata")
        for name in names[:-1]:
            found = inner.get(name)
            if not isinstance(found, dict):
                found = inner[name] = {}
            inner = found
        inner[names[-1]] = value

    def get_metadata(self, names: list[Any]) -> list[Any]:
        """The value, in a list, or an empty one."""
        found: Any = self.metadata
        for name in names:
            if not isinstance(found, dict) or name not in found:
                return []
            found = found[name]
        return [found]


def _forget(waiters: dict[str, dict[Waiter, None]], name: str, waiter: Waiter) -> None:
    found = waiters[name]
    del found[waiter]
    if not found:
        del waiters[name]
