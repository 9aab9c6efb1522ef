"""One run: nodes, links, virtual time, misfortunes, then peace, then the questions."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from heapq import heappop, heappush
from random import Random
from time import perf_counter
from typing import Any

from shoal.core.effects import CloseLink, Fetch, Log, Send
from shoal.core.events import (
    Command,
    Due,
    Event,
    FetchDone,
    FetchFailed,
    LinkDrained,
    LinkFull,
    LinkLost,
    LinkOpened,
    Received,
)
from shoal.core.scheduler.invariants import check
from shoal.core.scheduler.reactor import SchedulerCore
from shoal.core.scheduler.settings import Settings
from shoal.core.worker.key import Goal
from shoal.core.worker.reactor import WorkerCore
from shoal.errors import InternalError, InvariantViolation
from shoal.ids import ClientId, WorkerId
from shoal.messages import (
    INBOUND,
    OUTBOUND,
    Bye,
    Compute,
    Finished,
    GivenBack,
    KeyErred,
    KeysCancelled,
    KeysDone,
    KeysRestarted,
    KilledTask,
    Leave,
    Logged,
    Retired,
    StealAnswer,
    Warned,
    WorkerDied,
    WorkerRegistered,
)
from shoal.messages import Options as TaskOptions
from shoal.sim.acts import HOSTS, TROUBLE, Act, draw_acts, perform
from shoal.sim.fates import Fates
from shoal.sim.inventory import grown
from shoal.sim.nannies import NannyNode
from shoal.sim.network import Wire
from shoal.sim.nodes import ClientNode, WorkerNode
from shoal.sim.options import Options
from shoal.sim.oracle import Oracle
from shoal.sim.silence import TIMEOUT, Partings, Silence

#: Events after which a run that should have come to rest counts as endless: so many, and so many for each task.
MOST_STEPS, MOST_STEPS_A_TASK = 200_000, 200

#: What nobody is told whose link is full.
_CAN_WAIT = (KeyErred, KeysCancelled, KeysDone, KeysRestarted, KilledTask, Logged, Warned)


class World:
    """A simulated cluster.

    Parameters
    ----------
    options
        Its circumstances.
    skip
        Numbers of acts that are left out, to find those that matter.
    validate
        Check all invariants after every event; by default where that is not too much, and else twice in all.
    """

    def __init__(self, options: Options, skip: frozenset[int] = frozenset(), validate: bool | None = None) -> None:
        self.options = options
        self.validate = validate = not options.large if validate is None else validate
        #: Seconds that the scheduler's core took.
        self.scheduler_seconds = 0.0
        self.random = Random(f"world-{options.seed}")
        self.now = 0.0
        self.steps = 0
        self._most_steps = MOST_STEPS + MOST_STEPS_A_TASK * options.tasks * options.submissions
        self.counters: Counter[str] = Counter()
        self.told: deque[str] = deque(maxlen=400)
        self._trace = blake2b(digest_size=16)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._seq = 0
        self._wakes: dict[Any, float] = {}
        self._names = 0
        self.fates = Fates(options)
        #: Workers that nothing is heard of, with the time since when.
        self.silent_since: dict[str, float] = {}
        #: Whether workers report that they are alive.
        self.beating = True
        settings = Settings(
            allowed_failures=options.allowed_failures,
            saturation=options.saturation,
            worker_ttl=options.ttl,
            no_workers_timeout=options.no_workers_timeout,
            validate=validate,
        )
        self.scheduler = SchedulerCore("scheduler", settings)
        self.oracle = Oracle(self)
        self.workers: dict[str, WorkerNode] = {}
        self.nannies: dict[str, NannyNode] = {}
        self.clients: dict[str, ClientNode] = {}
        self._down: dict[str, Wire] = {}
        self.partings = Partings(self)
        self.acts = draw_acts(options, skip)
        #: Clients that do not read what they are told.
        self.full: set[str] = set()
        #: Whether anybody wanted workers to leave: they may all go.
        self.shrunk = False
        #: Whether nothing goes wrong any more.
        self.peaceful = False
        #: How many of those that were drawn have happened, beyond the first submission.
        self.acts_done = 0

    # -------------------------------------------------------------------------------------------- time

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Have ``action`` called ``seconds`` from now."""
        self.at(self.now + seconds, action)

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Have ``action`` called at ``when``."""
        self._seq += 1
        heappush(self._heap, (when, self._seq, action))

    def wake_at(self, due: float | None, node: Any) -> None:
        """A core wants to be called at ``due``."""
        if due is not None and self._wakes.get(node) != due:
            self._wakes[node] = due
            self.at(max(self.now, due), lambda: self._wake(node, due))

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
            self.require(self.steps < self._most_steps, f"no rest after {self.steps} events")
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
        began = perf_counter()
        effects = self.scheduler.handle(events, self.now)
        self.scheduler_seconds += perf_counter() - began
        for effect in effects:
            if isinstance(effect, Send):
                told = effect.to in self.full and isinstance(effect.message, _CAN_WAIT)
                self.require(not told, f"{effect.to} is told {effect.message}, and does not read")
                wire = self._down.get(effect.to)
                if wire is not None:
                    wire.send(effect.message)
                if isinstance(effect.message, KeysRestarted):
                    self.counters["results that were lost"] += len(effect.message.keys)
                if isinstance(effect.message, Retired):
                    self.oracle.retires(effect.to)
                elif isinstance(effect.message, WorkerRegistered):
                    self.oracle.registers(effect.to)
                elif isinstance(effect.message, Leave) and not effect.message.on:
                    self.oracle.keeps(effect.to)
                if isinstance(effect.message, Compute):
                    self.oracle.given.setdefault(effect.to, set()).update(task.key for task in effect.message.tasks)
            elif isinstance(effect, Log):
                if "that copy is given up" in effect.text:
                    self.oracle.excused.update(key for key in self.oracle.scattered if repr(key) in effect.text)
                self.count("logged" if effect.level < 30 else "warned")
            elif isinstance(effect, CloseLink):
                self.oracle.gone.add(effect.to)
                if effect.to in self.workers:
                    self.oracle.excuse(self.workers[effect.to])
                self.counters["workers that were silent for too long"] += "worker-ttl" in effect.reason
                self._hang_up(effect.to, effect.reason)
        self.wake_at(self.scheduler.deadline(), self.scheduler)

    def _connect(self, node: WorkerNode | ClientNode | NannyNode) -> None:
        name, role = node.name, node.role

        def up(messages: list[Any]) -> None:
            if self.validate:
                self.note(f"{name} → s: {messages}")
            self._look_at(messages)
            self.tell_scheduler(Received(name, messages))

        def down(messages: list[Any]) -> None:
            if self.validate:
                self.note(f"s → {name}: {messages}")
            node.tell(Received("", messages))

        rng, delay = self.random, self.options.delay
        node.up = Wire(INBOUND[role], rng, delay, self.after, up)
        self._down[name] = Wire(OUTBOUND[role], rng, delay, self.after, down)
        self.tell_scheduler(LinkOpened(role, name))
        node.register()

    def _look_at(self, messages: list[Any]) -> None:
        """What the scheduler is about to hear, for the counters and for the oracle."""
        for message in messages:
            if isinstance(message, StealAnswer):
                self.count("thefts" if message.granted else "thefts refused")
                self.counters["late confirmations"] += self._is_late(message.key, message.attempt)
            elif isinstance(message, Finished):
                self.counters["late reports"] += sum(self._is_late(item.key, item.attempt) for item in message.items)
            elif isinstance(message, GivenBack):
                self.counters["assignments given back"] += len(message.items)
            elif isinstance(message, WorkerDied) and message.worker:
                self.oracle.gone.add(message.worker)
                self.oracle.died_under[message.worker] = set() if message.expected else set(message.running)

    def _is_late(self, key: str, attempt: int) -> bool:
        """Whether a report is about an assignment that was taken back."""
        task = self.scheduler.state.tasks.get(key)
        return task is None or task.attempt != attempt

    def _name(self, kind: str) -> str:
        self._names += 1
        return f"{kind}{self._names}"

    def join(self, host: str = "") -> NannyNode | WorkerNode:
        """A worker comes, with its nanny where there are such."""
        name = self._name("n" if self.options.nannies else "w")
        host = host or HOSTS[self._names % len(HOSTS)]
        self.note(f"{name} joins at {host}")
        if self.options.nannies:
            nanny = self.nannies[name] = NannyNode(self, name, host)
            self._connect(nanny)
            return nanny
        worker = self.workers[name] = WorkerNode(self, name, self.options.nthreads, host)
        self._connect(worker)
        return worker

    def haunt(self, name: str) -> None:
        """A worker comes up in a slot that was left, by mistake of whoever starts them."""
        nanny = self.nannies.get(name)
        if nanny is not None:
            self.count("ghosts")
            self.boot(nanny, "-ghost")

    def boot(self, nanny: NannyNode, ghost: str = "") -> WorkerNode:
        """The process that ``nanny`` started is up."""
        name = f"{nanny.name}.{nanny.core.incarnation}{ghost}"
        worker = self.workers[name] = WorkerNode(self, name, self.options.nthreads, nanny.host, nanny)
        self._connect(worker)
        return worker

    def enter(self, inside: WorkerNode | None = None) -> ClientNode:
        """A client comes: a user's, or that of the tasks of a worker."""
        name = self._name("c") if inside is None else f"{inside.name}-c"
        client = ClientNode(self, name)
        if inside is None:
            self.clients[name] = client
        else:
            inside.client = client
        self._connect(client)
        return client

    def down(self, node: WorkerNode | ClientNode) -> Wire | None:
        """The link from the scheduler to ``node``, if it is whole."""
        return self._down.get(node.name)

    def fill(self, client: ClientNode, seconds: float, slice: int) -> bool:
        """A client does not read for a while; then it is told what it was owed, so many keys at a time."""
        known = ClientId(client.name) in self.scheduler.state.clients  # else nothing can be owed to it
        if client.name in self.full or self.down(client) is None or not known:
            return False
        self.scheduler.owing.keys_a_turn = slice
        self.tell_scheduler(LinkFull(client.name, 1))
        self.full.add(client.name)

        def drain() -> None:
            self.full.discard(client.name)
            owed = self.scheduler.state.clients.get(ClientId(client.name))
            self.counters["keys whose news waited"] += len(owed.owed.keys) if owed is not None and owed.owed else 0
            self.tell_scheduler(LinkDrained(client.name))

        self.after(seconds, drain)
        return True

    def _hang_up(self, name: str, reason: str) -> None:
        """The scheduler closes a link: the other end hears of it."""
        wire = self._down.pop(name, None)
        node = self.workers.get(name) or self.clients.get(name) or self.nannies.get(name)
        if wire is None or node is None:
            return
        late = 1.0 if wire.swallows else 0.0
        seconds = self.random.uniform(*self.options.delay) + late
        self.after(seconds, lambda: node.tell(LinkLost("scheduler", "s", reason)))

    def crash(self, worker: WorkerNode, reason: str, clean: bool = False) -> None:
        """A worker process ends; the scheduler hears of it a little later, and so does its nanny."""
        if not worker.alive:
            return
        self.note(f"{worker.name} ends: {reason}")
        self.oracle.excuse(worker)
        worker.alive = False
        del self.workers[worker.name]
        self._wakes.pop(worker, None)
        for put in worker.puts.values():
            put(False)
        if worker.client is not None:
            self.vanish(worker.client)
        if worker.nanny is not None and worker.nanny.worker is worker:
            worker.nanny.exited(worker.incarnation, [] if clean else worker.running)
        self.after(self.random.uniform(*self.options.delay) * 2, lambda: self.lose(worker.name, "worker", reason))

    def leave(self, nanny: NannyNode, suddenly: bool = True) -> None:
        """A nanny ends, and its worker with it; if not suddenly, all that it said is heard first."""
        if nanny.alive:
            nanny.alive = False
            if not suddenly and nanny.up is not None:
                nanny.up.send(Bye("closed"))
                self.nannies.pop(nanny.name, None)
                return
            self.nannies.pop(nanny.name, None)
            if nanny.worker is not None:
                self.crash(nanny.worker, "its nanny ended")
            self.after(self.random.uniform(*self.options.delay), lambda: self.lose(nanny.name, "nanny", "ended"))

    def end_machine(self, name: str) -> None:
        """The machine on which a worker or nanny of this name stood ends, with all that is on it."""
        nanny, worker = self.nannies.get(name), self.workers.get(name)
        if nanny is not None:
            self.count("machines that ended late")
            self.leave(nanny)
        elif worker is not None:
            self.count("machines that ended late")
            self.crash(worker, "its machine ended")

    def vanish(self, client: ClientNode) -> None:
        """A client is gone without a word."""
        client.alive = False
        self.clients.pop(client.name, None)
        self.lose(client.name, "client", "vanished")

    def sever(self, worker: WorkerNode) -> None:
        """Nothing arrives any more on the link of ``worker``."""
        assert worker.up is not None
        worker.up.break_off()
        wire = self._down.pop(worker.name, None)
        if wire is not None:
            wire.break_off()

    def lose(self, name: str, role: str, reason: str) -> None:
        """The scheduler hears that a link broke."""
        self._down.pop(name, None)
        if name in self.workers:
            self.oracle.excuse(self.workers[name])
        self.note(f"the scheduler hears that {name} is gone")
        self.oracle.gone.add(name)
        self.tell_scheduler(LinkLost(role, name, reason))

    def silence(self, node: WorkerNode | ClientNode | NannyNode, rng: Random) -> bool:
        """Nothing gets from the machine of ``node`` to the scheduler's, or back, and nobody is told."""
        down = self._down.get(node.name)
        if node.up is None or down is None or any(w.interrupted or w.swallows or w.cut for w in (node.up, down)):
            return False
        Silence(self, node, node.up, down, rng)
        return True

    def bereave(self, node: WorkerNode | ClientNode | NannyNode) -> None:
        """A process finds that the scheduler's machine is gone: it ends, and says so to its user."""
        self.note(f"{node.name} finds that the scheduler is gone")
        if isinstance(node, ClientNode):
            node.alive = False
            self.clients.pop(node.name, None)
        else:
            node.tell(LinkLost("scheduler", "s", "nothing was heard of its machine"))

    def transfer(self, worker: WorkerNode, fetch: Fetch) -> None:
        """Bring copies from a peer, or the news that it cannot be had."""
        self.count("transfers")
        seconds = self.random.uniform(*self.options.delay)
        self.after(seconds, lambda: self._ask_peer(worker, fetch))

    def _ask_peer(self, worker: WorkerNode, fetch: Fetch) -> None:
        peer = self.workers.get(fetch.peer)
        if self.partings.are_apart(worker.name, fetch.peer):
            self.count("transfers over a cut")
            failed = FetchFailed(fetch.peer, fetch.keys, "nothing was heard of its machine")
            self.after(TIMEOUT, lambda: self.answer(worker, failed, {}))
            return
        if peer is not None and peer.stopped_until > self.now:  # no answer, until it goes on or its end is known
            self.after(0.05, lambda: self._ask_peer(worker, fetch))
            return
        if peer is None or peer.deaf_until > self.now:
            self.count("unreachable peers")
            answer: FetchDone | FetchFailed = FetchFailed(fetch.peer, fetch.keys, "no answer")
            values: dict[str, bytes] = {}
        else:
            answer = peer.serve(fetch)
            values = {key: peer.values[key] for key, _, _ in answer.got}
        self.after(self.random.uniform(*self.options.delay), lambda: self.answer(worker, answer, values))

    def answer(self, worker: WorkerNode, answer: FetchDone | FetchFailed, values: dict[str, bytes]) -> None:
        if worker.alive:
            if self.validate:
                self.note(f"{worker.name} hears {answer}")
            for key in worker.core.fetcher.in_flight.get(answer.peer, ()):
                self.counters["resumed fetches"] += worker.core.keys[key].goal is Goal.COMPUTE
            for key in values:
                self.oracle.arrives(worker, key)
            worker.values.update(values)
            worker.tell(answer)

    # -------------------------------------------------------------------------------------------- tasks

    def submit(
        self,
        client: ClientNode,
        tasks: dict[str, list[str]],
        wants: list[str],
        options: TaskOptions,
        payloads: dict[str, bytes] | None = None,
    ) -> None:
        """A client submits a graph, and holds futures of ``wants``."""
        self.fates.asked(tasks, options)
        missing = [key for key in tasks if key not in self.oracle.tasks]
        if missing:  # submitted from within a task
            self.oracle.expects(tasks, self.fates.sequential(tasks))
        self.oracle.redefined.update(payloads or ())
        client.submit(tasks, wants, options, payloads or {})

    def _do(self, act: Act) -> None:
        perform(self, act)
        self.acts_done += act is not self.acts[0]

    # -------------------------------------------------------------------------------------------- a run

    def _make_peace(self) -> None:
        """From now on nothing goes wrong, and there is a worker on each host."""
        self.note("-- peace")
        self.beating, self.peaceful = False, True
        ttl = self.scheduler.settings.worker_ttl
        for name, since in self.silent_since.items():
            kept = ttl is not None and self.now > since + 2 * ttl and WorkerId(name) in self.scheduler.state.workers
            self.require(not kept, f"{name} has been silent since {since}, and is kept")
        self.scheduler.settings.worker_ttl = None
        self.options = replace(self.options, bad_starts=0.0)
        for worker in list(self.workers.values()):
            worker.deaf_until = 0.0
            wire = self._down.get(worker.name)
            if worker.up is not None and wire is not None and (worker.up.swallows or wire.swallows):
                self.sever(worker)
                self.lose(worker.name, "worker", "silent")
                worker.tell(LinkLost("scheduler", "s", "silent"))
        for nanny in list(self.nannies.values()):
            if nanny.wanted == "kill":
                nanny.tell(Command("start"))
        for host in HOSTS:
            known = [node for node in self.workers.values() if WorkerId(node.name) in self.scheduler.state.workers]
            there = any(node.host == host for node in (self.nannies.values() or known))
            if self.shrunk or self.options.resources or not there:
                self.join(host)

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
        self.run_until_rest(TROUBLE + 1.0)
        self._make_peace()
        check(self.scheduler.state)
        self.run_until_rest()
        check(self.scheduler.state)
        self.oracle.check_wishes()
        self.oracle.check_values()
        if self.options.calm:
            self.oracle.check_calm()
        for client in list(self.clients.values()):
            client.release_all()
        self.run_until_rest()
        self.oracle.check_nothing_left()
        self._end_all()

    def _end_all(self) -> None:
        """Everybody goes: what is left of it in the cores is what is remembered on purpose."""
        for worker in self.workers.values():
            new = WorkerCore(worker.name, worker.nthreads, worker.resources, executors=worker.executors)
            left = grown(worker.core, new)
            self.require(not left, f"{worker.name} is not as small as a new one: {left}")
        for peer, role in tuple(self.scheduler._roles.items()):
            self.tell_scheduler(LinkLost(role, peer, "the end"))
        left = grown(self.scheduler, SchedulerCore("scheduler", self.scheduler.settings))
        self.require(not left, f"the scheduler is not as small as a new one: {left}")


def run(options: Options, skip: frozenset[int] = frozenset(), validate: bool | None = None) -> tuple[World, str]:
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
