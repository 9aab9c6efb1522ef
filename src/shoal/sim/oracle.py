"""What must be true, from what clients asked for and heard; it looks into no core until the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.core.client.future import FutureRecord, FutureStatus
from shoal.ids import WorkerId
from shoal.messages import KeyErred, KilledTask

if TYPE_CHECKING:
    from shoal.sim.nodes import ClientNode
    from shoal.sim.world import World


class Oracle:
    """A small model of its own: graphs that were submitted, tasks that fail, deaths that happened."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.tasks: dict[str, list[str]] = {}
        self.expected: dict[str, bytes] = {}
        self._ticks = 0
        #: Keys that any client ever cancelled, and each cancellation: when, by whom, what, with force or not.
        self.cancelled: set[str] = set()
        self.cancellations: list[tuple[tuple[int, float], str, set[str], bool]] = []
        #: Keys that a worker had when the scheduler heard of its death, with how often: without a nanny nobody knows
        #: what its threads were in, and the scheduler has to guess among these.
        self.deaths: dict[str, int] = {}

    def tick(self) -> tuple[int, float]:
        """The next number in the order of what users do, and the time."""
        self._ticks += 1
        return self._ticks, self.world.now

    def cancels(self, client: ClientNode, keys: list[str], force: bool) -> None:
        """A user cancels."""
        self.cancelled.update(keys)
        self.cancellations.append((self.tick(), client.name, set(keys), force))

    def may_be_cancelled(self, client: ClientNode, key: str, wished: tuple[int, float]) -> bool:
        """Whether somebody's cancellation can be the cause: the client's own after its wish, another's by force."""
        ancestors = self.ancestors(key)
        return any(
            (who == client.name and number > wished[0]) or (who != client.name and force and when > wished[1] - 2.0)
            for (number, when), who, keys, force in self.cancellations
            if keys & ancestors
        )

    def died(self, name: str) -> None:
        """The scheduler hears of a worker's death."""
        worker = self.world.scheduler.state.workers.get(WorkerId(name))
        for task in worker.processing if worker is not None else ():
            self.deaths[task.key] = self.deaths.get(task.key, 0) + 1

    def ancestors(self, key: str) -> set[str]:
        """``key`` and all that it is computed from."""
        found, stack = {key}, [key]
        while stack:
            for dep in self.tasks.get(stack.pop(), ()):
                if dep not in found:
                    found.add(dep)
                    stack.append(dep)
        return found

    def settled(self, client: ClientNode, record: FutureRecord) -> None:
        """A client heard that a key is done."""
        world, key = self.world, record.key
        if record.status is FutureStatus.FINISHED:
            world.count("results")
            right = record.value is None or record.value == self.expected[key]
            world.require(right, f"{client.name} was given {record.value!r} for {key}, not {self.expected[key]!r}")
        elif record.status is FutureStatus.ERROR:
            world.count("errors")
            self._check_error(key, record.error)
        elif record.status is FutureStatus.CANCELLED:
            world.count("cancellations")
            cause = self.may_be_cancelled(client, key, record.held)
            world.require(cause, f"{key} of {client.name} was cancelled, and nobody asked for it: {record.reason}")

    def _check_error(self, key: str, error: object) -> None:
        world = self.world
        if isinstance(error, KilledTask):
            deaths, allowed = self.deaths.get(error.origin, 0), world.options.allowed_failures
            world.require(deaths > allowed, f"{error.origin} was given up after {deaths} deaths of {allowed} allowed")
            world.require(error.origin in self.ancestors(key), f"{error.origin} is said to have failed {key}")
        elif isinstance(error, KeyErred):
            fails = world.fails(error.origin)
            lost = bool(self.ancestors(key) & self.cancelled)
            world.require(
                fails or lost, f"{key} erred because of {error.origin}, which does not fail: {error.error.text}"
            )

    def check_wishes(self) -> None:
        """All that clients hold is done: with the right value, or for a cause."""
        for client in self.world.clients.values():
            for record in client.core.futures.values():
                self.world.require(
                    not record.pending, f"{client.name} holds {record.key}, and it is still pending at the end"
                )
                task = self.world.scheduler.state.tasks.get(record.key)
                if record.status is FutureStatus.FINISHED:
                    held = task is not None and any(
                        record.key in self.world.workers[w.id].values for w in task.who_has or ()
                    )
                    self.world.require(held, f"{record.key} is said to be finished, and nobody holds it")

    def check_nothing_left(self) -> None:
        """After all was let go of."""
        world = self.world
        world.require(not world.scheduler.state.tasks, f"tasks are left: {list(world.scheduler.state.tasks.values())}")
        world.require(not world.scheduler.state.queue.size, "the queue is not empty")
        for worker in world.workers.values():
            world.require(not worker.core.keys, f"{worker.name} still knows {list(worker.core.keys.values())}")
            world.require(not worker.values, f"{worker.name} still holds {list(worker.values)}")
            world.require(not worker.core.slots.n_running, f"{worker.name} counts threads that are free")
