"""What must be true, from what clients asked for and heard; it looks into no core until the end."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from shoal.core.client.future import RELEASED, FutureRecord, FutureStatus
from shoal.core.scheduler.task import TaskState
from shoal.core.worker.attempt import AttemptState
from shoal.ids import WorkerId
from shoal.messages import KeyErred, KilledTask

if TYPE_CHECKING:
    from shoal.sim.nodes import ClientNode, WorkerNode
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
        #: Which workers are gone, which tasks each was given, and which its nanny says that it died under.
        self.gone: set[str] = set()
        self.given: dict[str, set[str]] = {}
        self.died_under: dict[str, set[str]] = {}
        #: Keys that came with another definition at some time.
        self.redefined: set[str] = set()
        #: Tasks that failed because one that they had launched did.
        self.let_down: set[str] = set()
        #: When clients restarted the cluster.
        self._restarts: list[float] = []
        #: Data that clients put on workers, and what of it may be lost: its last holder crashed, or was forced to go.
        self.scattered: set[str] = set()
        self.excused: set[str] = set()
        #: Workers that the scheduler let go of once it had seen to it that nothing is lost, and those it was forced to.
        self.retired: set[str] = set()
        self.forced: set[str] = set()
        #: Slots that were left for good.
        self.left: set[str] = set()
        #: How often each task was executed.
        self.executed: Counter[str] = Counter()

    def expects(self, tasks: dict[str, list[str]], values: dict[str, bytes]) -> None:
        """These tasks exist from now on, and this is what they compute."""
        self.tasks.update(tasks)
        self.expected.update(values)

    def restarts(self) -> None:
        """A client restarts the cluster: everything is cancelled."""
        self._restarts.append(self.world.now)

    def starts(self, worker: WorkerNode, key: str) -> None:
        """An execution begins: may it be here, and is it needed?"""
        world = self.world
        world.count("executions")
        world.require(not worker.core.leaving, f"{worker.name} begins {key}, and is to go")
        allowed = world.fates.may_run(key, worker.host, worker.resources or {})
        world.require(allowed, f"{key} runs on {worker.name} at {worker.host}, where it may not")
        for name, need in worker.holds[key].items():
            amount = (worker.resources or {}).get(name, 0.0) if need else 0.0
            held = sum(holds.get(name, 0.0) for holds in worker.holds.values())
            world.require(
                not need or held <= amount + 1e-6, f"{worker.holds} take {held} {name} of {amount} on {worker.name}"
            )
        task = world.scheduler.state.tasks.get(key)
        if task is not None and task.state is TaskState.MEMORY:
            world.count("needless executions")
            world.require(
                bool(world.acts_done), f"{key} is computed again, and nothing happened that could call for it"
            )

    def waits_for_nothing(self, worker: WorkerNode) -> None:
        """What a worker was given has its resources there: it never waits for what another task holds."""
        for record in worker.core.keys.values():
            if record.attempt is AttemptState.CONSTRAINED and record.spec is not None:
                short = [
                    name
                    for name, need in (record.spec.resources or {}).items()
                    if sum(holds.get(name, 0.0) for holds in worker.holds.values()) + need
                    > (worker.resources or {}).get(name, 0.0) + 1e-6
                ]
                self.world.require(not short, f"{record.key} waits on {worker.name} for {short}, which others hold")

    def retires(self, name: str) -> None:
        """The scheduler lets go of a worker: what it holds is elsewhere, unless it was forced."""
        world = self.world
        if name in self.retired:  # it is told again when it is heard of
            return
        self.retired.add(name)
        node = world.workers.get(name)
        if node is None:
            return
        world.count("workers that retired")
        for key in self.scattered & node.values.keys():
            task = world.scheduler.state.tasks.get(key)
            crashed = any(worker.id not in world.workers for worker in (task.who_has or ())) if task else False
            if name in self.forced or crashed:
                self.excused.add(key)
            elif task is not None and key not in self.excused:
                self.world.require(self._is_safe(key, node), f"{name} retires with the only copy of {key}")

    def _is_safe(self, key: str, node: WorkerNode) -> bool:
        """Whether another worker that is there has ``key``, and the scheduler counts on it."""
        task = self.world.scheduler.state.tasks.get(key)
        others = [self.world.workers.get(worker.id) for worker in (task.who_has or ())] if task is not None else []
        return any(other is not None and other is not node and key in other.values for other in others)

    def registers(self, name: str) -> None:
        """The scheduler takes a worker."""
        node = self.world.workers.get(name)
        slot = None if node is None else (node.nanny or node).name
        self.world.require(slot not in self.left, f"{name} may register, and its slot was left")

    def keeps(self, name: str) -> None:
        """The scheduler could not let a worker go: something must be there that only it holds."""
        worker = self.world.scheduler.state.workers.get(WorkerId(name))
        if worker is not None and self.world.options.calm and not self.world.options.room:
            alone = any(all(o is worker or not o.stays for o in task.who_has or ()) for task in worker.has_what)
            self.world.require(alone, f"{name} is kept, and holds nothing that no other has")

    def excuse(self, node: WorkerNode) -> None:
        """A worker crashes, or is taken for dead: what only it holds may be lost."""
        if node.name not in self.retired:
            self.excused.update(key for key in self.scattered & node.values.keys() if not self._is_safe(key, node))

    def arrives(self, worker: WorkerNode, key: str) -> None:
        """A copy comes to a worker."""
        world = self.world
        world.count("copies")
        if key in worker.values:
            world.count("needless copies")
            world.require(bool(world.acts_done), f"{key} is brought to {worker.name} twice")

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
        if any(when > wished[1] - 2.0 for when in self._restarts):
            return True
        return any(
            (who == client.name and number > wished[0]) or (who != client.name and force and when > wished[1] - 2.0)
            for (number, when), who, keys, force in self.cancellations
            if keys & ancestors
        )

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
        if record.reason == RELEASED:
            world.require(not record.handles, f"{key} of {client.name} is said to be released, and is held")
        elif record.status is FutureStatus.FINISHED:
            world.count("results")
            right = record.value is None or record.value == self.expected[key]
            right = right or bool(self.redefined & self.ancestors(key))  # which one counts is asked at the end
            world.require(right, f"{client.name} was given {record.value!r} for {key}, not {self.expected[key]!r}")
        elif record.status is FutureStatus.ERROR:
            world.count("errors")
            self._check_error(key, record.error)
        elif record.status is FutureStatus.LOST:
            world.count("scattered data that was lost")
            world.require(key in self.excused, f"{key} of {client.name} is lost, and nothing happened that excuses it")
        elif record.status is FutureStatus.CANCELLED and (key in self.excused or "was not stored" in record.reason):
            world.count("scattered data that was refused")
        elif record.status is FutureStatus.CANCELLED:
            world.count("cancellations")
            cause = self.may_be_cancelled(client, key, record.held)
            world.require(cause, f"{key} of {client.name} was cancelled, and nobody asked for it: {record.reason}")

    def _check_error(self, key: str, error: object) -> None:
        world = self.world
        if isinstance(error, KilledTask):
            world.count("tasks that were given up")
            allowed = world.options.allowed_failures
            world.require(len(error.deaths) > allowed, f"{error.origin} was given up after {error.deaths}")
            for death in error.deaths:
                self._check_death(error.origin, death)
            world.require(error.origin in self.ancestors(key), f"{error.origin} is said to have failed {key}")
        elif isinstance(error, KeyErred):
            fails = world.fates.fails(error.origin) or error.origin in self.let_down
            lost = bool(self.ancestors(key) & self.cancelled) or bool(self._restarts)
            late = world.options.no_workers_timeout is not None and "NoValidWorker" in error.error.text
            orphaned = world.fates.is_actor(error.origin) and "LostActor" in error.error.text
            world.count(
                "actors that were lost" if orphaned else "no worker for too long" if late else "tasks that failed"
            )
            scattered = self.ancestors(key) & self.scattered and "LostData" in error.error.text
            scattered = scattered and not world.options.calm
            world.require(
                bool(fails or lost or late or orphaned or scattered),
                f"{key} erred because of {error.origin}, which does not fail: {error.error.text}",
            )

    def _check_death(self, key: str, told: str) -> None:
        """A worker is said to have died under ``key``: it is gone, and had it; where a nanny saw it, in a thread.

        Where its memory was too small it may also have been bringing the inputs.
        """
        name = told.partition("sim://")[2].partition(")")[0]
        given = self.given.get(name, set())
        under = given if "were brought together" in told else self.died_under.get(name, given)
        self.world.require(name in self.gone and key in under, f"{key} was not under {name}: {told}")

    def check_values(self) -> None:
        """Every copy is what the definition that counts computes, and so is what clients were told."""
        state = self.world.scheduler.state
        values: dict[str, bytes] = {}
        for task in state.tasks.values():
            stack = [task]
            while stack:
                missing = [dep for dep in stack[-1].deps if dep.key not in values]
                if missing:
                    stack += missing
                    continue
                one = stack.pop()
                values[one.key] = self.world.fates.value(
                    one.key, [values[dep.key] for dep in one.deps], one.payload or b""
                )
            for worker in task.who_has or ():
                node = self.world.workers.get(worker.id)
                held = values[task.key] if node is None else node.values.get(task.key)
                self.world.require(held == values[task.key], f"{worker.id} holds {held!r} for {task.key}")
        for client in self.world.clients.values():
            for record in client.core.futures.values():
                told = record.status is FutureStatus.FINISHED and record.value is not None
                right = not told or record.value == values.get(record.key)
                self.world.require(right, f"{client.name} was told {record.value!r} for {record.key}")

    def check_wishes(self) -> None:
        """All that clients hold is done: with the right value, or for a cause."""
        for nanny in self.world.nannies.values():
            there = nanny.worker is not None or nanny.wanted in ("leave", "retire")
            self.world.require(there, f"{nanny.name} has no worker, and was told to {nanny.wanted}")
            scheduler = self.world.scheduler
            leaving = {departure.worker.slot for departure in scheduler.departures.values()}  # emptied, and kept so
            gone = nanny.wanted != "retire" or nanny.name in scheduler.left or nanny.name in leaving
            self.world.require(gone, f"{nanny.name} will start no other worker, and its slot was not left")
            stays = nanny.wanted == "leave" and nanny.core.wish_is_up
            self.world.require(not stays, f"{nanny.name} was to leave when its worker does, and would not")
        for client in self.world.clients.values():
            self.world.require(not client.asked, f"{client.name} was not answered: {client.asked}")
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

    def check_calm(self) -> None:
        """Where no worker crashed and nobody changed their mind, nothing was computed twice, and nothing was lost."""
        twice = {key: times for key, times in self.executed.items() if times > 1}
        timeouts = self.world.scheduler.copying.timeouts
        self.world.require(not timeouts, f"{timeouts} workers that were asked for copies brought none, nor said why")
        self.world.require(not twice, f"computed more than once: {twice}")
        self.world.require(not self.world.counters["results that were lost"], "results were lost")
        self.world.require(not self.excused, f"{self.excused} may be lost, and nothing happened for which they could")

    def check_nothing_left(self) -> None:
        """After all was let go of."""
        world = self.world
        world.require(not world.scheduler.state.tasks, f"tasks are left: {list(world.scheduler.state.tasks.values())}")
        world.require(not world.scheduler.state.queue.size, "the queue is not empty")
        for record in world.scheduler.state.workers.values():
            world.require(not record.lingering, f"{record} still counts threads of {record.lingering}")
        for worker in world.workers.values():
            world.require(not worker.core.keys, f"{worker.name} still knows {list(worker.core.keys.values())}")
            world.require(not worker.values, f"{worker.name} still holds {list(worker.values)}")
            world.require(not worker.core.slots.n_running, f"{worker.name} counts threads that are free")
