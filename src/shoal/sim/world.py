"""One run: nodes, links, virtual time, misfortunes, then peace, then the questions."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heappop, heappush
from random import Random
from typing import Any

from shoal.core.effects import CloseLink, Fetch, Log, Send
from shoal.core.events import Due, Event, FetchFailed, LinkLost, LinkOpened, Received
from shoal.core.scheduler.reactor import SchedulerCore
from shoal.core.scheduler.settings import Settings
from shoal.errors import InternalError, InvariantViolation
from shoal.messages import INBOUND, OUTBOUND, StealAnswer
from shoal.messages import Options as TaskOptions
from shoal.sim.network import Wire
from shoal.sim.nodes import ClientNode, WorkerNode
from shoal.sim.options import Options
from shoal.sim.oracle import Oracle
from shoal.sim.workload import graph, sequential, value_of

#: Events after which a run that should have come to rest counts as endless.
MOST_STEPS = 200_000
#: Seconds of virtual time in which misfortunes happen.
TROUBLE = 3.0


@dataclass(frozen=True)
class Act:
    """Something that happens to the cluster, or that a user does."""

    at: float
    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.at:.4f} {self.kind} ({self.seed})"


#: What may happen, with its weight.
MISFORTUNES = {
    "crash": 3,
    "join": 3,
    "cut": 2,
    "slow worker": 2,
    "slow link": 2,
    "deaf worker": 2,
    "release": 4,
    "cancel": 3,
    "resubmit": 4,
    "retry": 2,
    "vanish": 1,
    "changes of mind": 4,
    "forgetful worker": 2,
}


class World:
    """A simulated cluster.

    Parameters
    ----------
    options
        Its circumstances.
    skip
        Numbers of acts that are left out, to find those that matter.
    validate
        Check all invariants after every event.
    """

    def __init__(self, options: Options, skip: frozenset[int] = frozenset(), validate: bool = True) -> None:
        self.options, self.validate = options, validate
        self.random = Random(f"world-{options.seed}")
        self.now = 0.0
        self.steps = 0
        self.counters: Counter[str] = Counter()
        self.told: deque[str] = deque(maxlen=400)
        self._trace = blake2b(digest_size=16)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._seq = 0
        self._wakes: dict[Any, float] = {}
        self._runs: Counter[str] = Counter()
        self._names = 0
        settings = Settings(
            allowed_failures=options.allowed_failures,
            saturation=options.saturation,
            worker_ttl=None,
            validate=validate,
        )
        self.scheduler = SchedulerCore("scheduler", settings)
        self.oracle = Oracle(self)
        self.workers: dict[str, WorkerNode] = {}
        self.clients: dict[str, ClientNode] = {}
        self._down: dict[str, Wire] = {}
        self.acts = self._draw_acts(skip)

    # -------------------------------------------------------------------------------------------- time

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Have ``action`` called ``seconds`` from now."""
        self._at(self.now + seconds, action)

    def _at(self, when: float, action: Callable[[], None]) -> None:
        self._seq += 1
        heappush(self._heap, (when, self._seq, action))

    def wake_at(self, due: float | None, node: Any) -> None:
        """A core wants to be called at ``due``."""
        if due is not None and self._wakes.get(node) != due:
            self._wakes[node] = due
            self._at(max(self.now, due), lambda: self._wake(node, due))

    def _wake(self, node: Any, due: float) -> None:
        if self._wakes.get(node) == due:
            del self._wakes[node]
            if node is self.scheduler:
                self.tell_scheduler(Due())
            else:
                node.tell(Due())

    def run_until_rest(self, until: float | None = None) -> None:
        """Let things happen until nothing is left to happen, or ``until``."""
        while self._heap and (until is None or self._heap[0][0] <= until):
            self.steps += 1
            self.require(self.steps < MOST_STEPS, f"no rest after {MOST_STEPS} events")
            self.now, _, action = heappop(self._heap)
            action()
        if until is not None:
            self.now = max(self.now, until)

    # -------------------------------------------------------------------------------------------- notes

    def note(self, text: str) -> None:
        """Remember what happens: for the trace, and for who has to understand a failure."""
        line = f"{self.now:.6f} {text}"
        self._trace.update(line.encode())
        self.told.append(line)

    def count(self, what: str) -> None:
        self.counters[what] += 1

    @property
    def trace(self) -> str:
        """A digest of everything that happened."""
        return self._trace.hexdigest()

    def require(self, truth: bool, what: str) -> None:
        if not truth:
            raise InvariantViolation(what)

    # -------------------------------------------------------------------------------------------- nodes

    def tell_scheduler(self, *events: Event) -> None:
        """Hand events to the scheduler's core, and do what it asks for."""
        for effect in self.scheduler.handle(events, self.now):
            if isinstance(effect, Send):
                wire = self._down.get(effect.to)
                if wire is not None:
                    wire.send(effect.message)
            elif isinstance(effect, Log):
                self.count("logged" if effect.level < 30 else "warned")
            elif isinstance(effect, CloseLink):
                self._hang_up(effect.to, effect.reason)
        self.wake_at(self.scheduler.deadline(), self.scheduler)

    def _connect(self, node: WorkerNode | ClientNode, role: str) -> None:
        name = node.name

        def up(messages: list[Any]) -> None:
            self.note(f"{name} → s: {messages}")
            for message in messages:
                if isinstance(message, StealAnswer):
                    self.count("thefts" if message.granted else "thefts refused")
            self.tell_scheduler(Received(name, messages))

        def down(messages: list[Any]) -> None:
            self.note(f"s → {name}: {messages}")
            node.tell(Received("", messages))

        rng, delay = self.random, self.options.delay
        node.up = Wire(INBOUND[role], rng, delay, self.after, up)
        self._down[name] = Wire(OUTBOUND[role], rng, delay, self.after, down)
        self.tell_scheduler(LinkOpened(role, name))
        node.register()

    def join(self) -> WorkerNode:
        """A worker comes."""
        self._names += 1
        name = f"w{self._names}"
        worker = self.workers[name] = WorkerNode(self, name, self.options.nthreads)
        self.note(f"{name} joins")
        self._connect(worker, "worker")
        return worker

    def enter(self) -> ClientNode:
        """A client comes."""
        self._names += 1
        name = f"c{self._names}"
        client = self.clients[name] = ClientNode(self, name)
        self._connect(client, "client")
        return client

    def _hang_up(self, name: str, reason: str) -> None:
        """The scheduler closes a link: the other end hears of it."""
        wire = self._down.pop(name, None)
        node = self.workers.get(name) or self.clients.get(name)
        if wire is None or node is None:
            return
        self.after(self.random.uniform(*self.options.delay), lambda: node.tell(LinkLost("scheduler", "s", reason)))

    def crash(self, worker: WorkerNode, reason: str, clean: bool = False) -> None:
        """A worker process ends; the scheduler hears of it a little later."""
        if not worker.alive:
            return
        self.note(f"{worker.name} ends: {reason}")
        worker.alive = False
        del self.workers[worker.name]
        self._wakes.pop(worker, None)
        if worker.up is not None:
            self.after(self.random.uniform(*self.options.delay) * 2, lambda: self._lost(worker.name, "worker", reason))

    def _lost(self, name: str, role: str, reason: str) -> None:
        self._down.pop(name, None)
        self.note(f"the scheduler hears that {name} is gone")
        self.oracle.died(name)
        self.tell_scheduler(LinkLost(role, name, reason))

    def transfer(self, worker: WorkerNode, fetch: Fetch) -> None:
        """Bring copies from a peer, or the news that it cannot be had."""
        self.count("transfers")
        seconds = self.random.uniform(*self.options.delay)
        self.after(seconds, lambda: self._ask_peer(worker, fetch))

    def _ask_peer(self, worker: WorkerNode, fetch: Fetch) -> None:
        peer = self.workers.get(fetch.peer)
        if peer is None or peer.deaf_until > self.now:
            self.count("unreachable peers")
            answer: Event = FetchFailed(fetch.peer, fetch.keys, "no answer")
            values: dict[str, bytes] = {}
        else:
            answer = peer.serve(fetch)
            values = {key: peer.values[key] for key, _, _ in answer.got}
        self.after(self.random.uniform(*self.options.delay), lambda: self._answer(worker, answer, values))

    def _answer(self, worker: WorkerNode, answer: Event, values: dict[str, bytes]) -> None:
        if worker.alive:
            self.note(f"{worker.name} hears {answer}")
            worker.values.update(values)
            worker.tell(answer)

    # -------------------------------------------------------------------------------------------- tasks

    def duration(self, key: str) -> float:
        """Seconds that a task runs."""
        return Random(f"duration-{self.options.seed}-{key}").uniform(*self.options.duration)

    def fails(self, key: str) -> bool:
        """Whether a task may fail for good."""
        return self._kind(key) == "broken" or (self._kind(key) == "flaky" and self.options.retries == 0)

    def secedes(self, key: str) -> bool:
        """Whether a task leaves the pool half-way."""
        return Random(f"secede-{self.options.seed}-{key}").random() < self.options.seceding

    def _kind(self, key: str) -> str:
        draw = Random(f"kind-{self.options.seed}-{key}").random()
        if draw < self.options.broken:
            return "broken"
        if draw < self.options.broken + self.options.flaky:
            return "flaky" if draw < self.options.broken + self.options.flaky / 2 else "rescheduling"
        return "good"

    def fate(self, key: str) -> str:
        """How the execution that ends now ends."""
        kind = self._kind(key)
        self._runs[key] += 1
        if kind == "broken" or (kind == "flaky" and self._runs[key] == 1):
            self.count("tasks that raise")
            return "error"
        if kind == "rescheduling" and self._runs[key] == 1:
            self.count("reschedules")
            return "reschedule"
        return "ok"

    # -------------------------------------------------------------------------------------------- what happens

    def _draw_acts(self, skip: frozenset[int]) -> list[Act]:
        rng = Random(f"acts-{self.options.seed}")
        acts = [
            Act(0.0 if n == 0 else rng.uniform(0, TROUBLE), "submit", rng.randrange(10**6))
            for n in range(self.options.submissions)
        ]
        kinds, weights = list(MISFORTUNES), list(MISFORTUNES.values())
        acts += [
            Act(rng.uniform(0, TROUBLE), rng.choices(kinds, weights)[0], rng.randrange(10**6))
            for _ in range(self.options.faults)
        ]
        acts.sort(key=lambda act: act.at)
        return [act for number, act in enumerate(acts) if number not in skip]

    def _do(self, act: Act) -> None:
        rng = Random(f"act-{act.seed}")
        self.note(f"-- {act.kind}")
        self.count(act.kind)
        workers = list(self.workers.values())
        clients = [client for client in self.clients.values() if client.alive]
        worker = rng.choice(workers) if workers else None
        client = rng.choice(clients) if clients else self.enter()
        held = list(client.core.futures)
        some = rng.sample(held, min(len(held), rng.randint(1, 3)))
        if act.kind == "submit":
            self._submit(client, rng)
        elif act.kind == "join":
            self.join()
        elif act.kind == "release":
            for key in some:
                client.release(key)
        elif act.kind == "cancel" and some:
            client.cancel(some, rng.random() < 0.3)
            if rng.random() < 0.5:  # and changes their mind at once
                self._resubmit(client, rng, some[0])
        elif act.kind == "retry" and some:
            client.retry(some)
        elif act.kind == "resubmit" and self.oracle.tasks:
            self._resubmit(client, rng)
        elif act.kind == "changes of mind" and some:
            self._change_mind(client, rng, some, rng.randint(2, 6))
        elif act.kind == "vanish":
            client.alive = False
            del self.clients[client.name]
            self._lost(client.name, "client", "vanished")
        elif worker is not None:
            self._harm(act.kind, worker, rng)

    def _harm(self, kind: str, worker: WorkerNode, rng: Random) -> None:
        assert worker.up is not None
        if kind == "crash":
            self.crash(worker, "crash")
        elif kind == "cut":
            # Both ends learn of it, each in its own time; what was under way is gone.
            worker.up.break_off()
            wire = self._down.pop(worker.name, None)
            if wire is not None:
                wire.break_off()
            name = worker.name
            self.after(rng.uniform(0, 0.5), lambda: self._lost(name, "worker", "cut"))
            self.after(rng.uniform(0, 0.5), lambda: worker.tell(LinkLost("scheduler", "s", "cut")))
        elif kind == "slow worker":
            worker.slowness = rng.choice([3.0, 10.0])
        elif kind == "slow link":
            worker.up.slowness = rng.uniform(0.0, 0.5)
            wire = self._down.get(worker.name)
            if wire is not None:
                wire.slowness = rng.uniform(0.0, 0.5)
        elif kind == "forgetful worker":
            worker.forgets = rng.randint(1, 3)
        elif kind == "deaf worker":
            worker.deaf_until = self.now + rng.uniform(0.1, 1.0)

    def _change_mind(self, client: ClientNode, rng: Random, keys: list[str], times: int) -> None:
        """Let go of keys and want them again, several times in a short while."""
        if not client.alive:
            return
        for key in keys:
            record = client.core.futures.get(key)
            for _ in range(record.refs if record is not None else 0):
                client.release(key)
        pause = rng.choice([0.0, 0.001, 0.05, 0.3])

        def again() -> None:
            if client.alive:
                for key in keys:
                    self._resubmit(client, rng, key)
                if times > 1:
                    self.after(
                        rng.choice([0.0, 0.001, 0.05, 0.3]), lambda: self._change_mind(client, rng, keys, times - 1)
                    )

        self.after(pause, again)

    def _submit(self, client: ClientNode, rng: Random) -> None:
        tasks = graph(self.options.shape, self.options.tasks, rng, f"t{len(self.oracle.tasks)}")
        known = list(self.oracle.tasks)
        expected = sequential(tasks)
        wants = rng.sample(list(tasks), min(len(tasks), rng.randint(1, 6)))
        held = [key for key in known if key in client.core.futures and rng.random() < 0.3][:3]
        if held:  # a task on futures of the client's
            key = f"on{len(self.oracle.tasks)}-0"
            tasks[key] = held
            expected[key] = value_of(key, [self.oracle.expected[dep] for dep in held])
            wants.append(key)
        self.oracle.tasks.update(tasks)
        self.oracle.expected.update(expected)
        needs = {"R": 1.0} if self.options.resources and rng.random() < 0.5 else None
        self.count("submissions with resources" if needs else "submissions without resources")
        options = TaskOptions(retries=self.options.retries, priority=rng.randint(-1, 1), resources=needs)
        client.submit(tasks, wants, options)

    def _resubmit(self, client: ClientNode, rng: Random, key: str = "") -> None:
        """The same keys again, with all that they are computed from."""
        key = key or rng.choice(list(self.oracle.tasks))
        needed = self.oracle.ancestors(key)
        tasks = {name: deps for name, deps in self.oracle.tasks.items() if name in needed}
        client.submit(tasks, [key], TaskOptions(retries=self.options.retries))

    # -------------------------------------------------------------------------------------------- a run

    def run(self) -> None:
        """Trouble, then peace, then the questions.

        Raises
        ------
        InternalError
            If something is not as it must be.
        """
        for _ in range(self.options.workers):
            self.join()
        for _ in range(self.options.clients):
            self.enter()
        for act in self.acts:
            self.after(act.at, lambda act=act: self._do(act))  # type: ignore[misc]
        self.run_until_rest(TROUBLE)
        self.run_until_rest(TROUBLE + 1.0)
        self.note("-- peace")
        for worker in list(self.workers.values()):
            worker.deaf_until = 0.0
        if not self.workers:
            self.join()
        self.run_until_rest()
        self.oracle.check_wishes()
        for client in list(self.clients.values()):
            client.release_all()
        self.run_until_rest()
        self.oracle.check_nothing_left()


def run(options: Options, skip: frozenset[int] = frozenset(), validate: bool = True) -> tuple[World, str]:
    """Run once; return the world and what broke, or nothing."""
    world = World(options, skip, validate)
    try:
        world.run()
    except InternalError as error:
        return world, f"{type(error).__name__}: {error}"
    except Exception as error:  # a core that raises is as much of a finding as one that is wrong
        import traceback

        return world, "".join(traceback.format_exception(error))
    return world, ""
