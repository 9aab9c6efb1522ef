"""Nannies of the simulated cluster, and the processes that they watch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.core.effects import Effect, Send, Signal, Spawn, Stop
from shoal.core.events import ChildExited, ChildFailed, ChildReady, Command, Event, MemorySample, Received
from shoal.core.nanny.reactor import NannyCore
from shoal.messages import Close, Leave, RegisterNanny, RestartWorker

if TYPE_CHECKING:
    from shoal.sim.network import Wire
    from shoal.sim.nodes import WorkerNode
    from shoal.sim.world import World

#: Bytes that a worker may use.
LIMIT = 1000


class NannyNode:
    """A nanny: the core, and a process that takes time to start and may fail to."""

    role = "nanny"

    def __init__(self, world: World, name: str, host: str) -> None:
        self.world, self.name, self.host = world, name, host
        self.core = NannyCore(name, memory_limit=LIMIT, start_timeout=2.0, crash_limit=20)
        self.worker: WorkerNode | None = None
        self.alive = True
        self.up: Wire | None = None
        self._booting = self._exited = 0
        #: The last thing that anybody wanted of it.
        self.wanted = "start"

    def register(self) -> None:
        """Say hello to the scheduler, and start a worker."""
        assert self.up is not None
        self.up.send(RegisterNanny(self.name, self.host, 1))
        self.tell(Command("start"))

    def tell(self, *events: Event) -> None:
        if not self.alive:
            return
        for event in events:
            self._note_wish(event)
        for effect in self.core.handle(events, self.world.now):
            self._perform(effect)
        self.world.wake_at(self.core.deadline(), self)

    def _note_wish(self, event: Event) -> None:
        orders = [event.what] if isinstance(event, Command) else []
        for said in event.messages if isinstance(event, Received) else ():
            if isinstance(said, RestartWorker):
                orders.append("restart")
            elif isinstance(said, Leave) and said.on:
                orders.append("retire")
            elif isinstance(said, Leave) and self.wanted == "retire":
                self.wanted = "start"
            elif isinstance(said, Close):
                orders.append("close")
        for order in orders:
            final = self.wanted in ("leave", "close") or (self.wanted == "retire" and order not in ("leave", "close"))
            if not final:
                self.wanted = order

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send():
                assert self.up is not None
                self.up.send(effect.message)
            case Spawn():
                wanted = self.wanted in ("start", "restart")
                self.world.require(wanted, f"{self.name} starts a worker, and was told to {self.wanted}")
                self.world.require(self.worker is None, f"{self.name} starts a second worker")
                self._booting = effect.incarnation
                self.world.after(self.world.random.uniform(0.01, 0.5), lambda: self._boot(effect.incarnation))
            case Signal() if effect.incarnation == self.core.incarnation:
                if self.worker is not None:
                    self.world.crash(self.worker, "signal", clean=not effect.hard)
                else:
                    self._booting = 0
                    self.exited(effect.incarnation, [])
            case Stop():
                self.world.leave(self, suddenly=False)

    def _boot(self, incarnation: int) -> None:
        if not self.alive or self._booting != incarnation:
            return
        if self.world.random.random() < self.world.options.bad_starts:
            self.world.count("starts that failed")
            self._fail(incarnation, self.world.random.choice(["said", "unsaid", "hung", "late"]))
            return
        self.worker = self.world.boot(self)
        if incarnation > 1:
            self.world.count("workers that were revived")
        self.tell(ChildReady(incarnation, self.worker.name, f"sim://{self.worker.name}", 1))

    def _fail(self, incarnation: int, how: str) -> None:
        """A start fails: with words, without any, by never coming to an end, or after the process was there."""
        self.world.count(f"starts that failed: {how}")
        if how == "hung":
            return  # until it is killed
        self._booting = 0
        if how == "late":
            self.tell(ChildReady(incarnation, f"{self.name}-{incarnation}-never-registered", "sim://nowhere", 1))
        if how != "unsaid":
            self.tell(ChildFailed(incarnation, "no such module"))
        self.exited(incarnation, [])

    def exited(self, incarnation: int, running: list[str]) -> None:
        """The process ended; a moment later that is known here."""
        if self._exited == incarnation:
            return
        self._exited, self.worker = incarnation, None
        delay = self.world.random.uniform(0, 0.01)
        self.world.after(delay, lambda: self.tell(ChildExited(incarnation, None, 9, running)))

    def use_too_much(self) -> None:
        """The worker's memory is over its limit."""
        self.tell(MemorySample(self.core.incarnation, 2 * LIMIT))
