"""Event orders told by hand: a scheduler, workers and a client whose messages wait until the script delivers them.

A scenario reads as a list of what happened::

    s = Script("A", "B")
    s.submit("x", on="A")
    s.flow()                  # all messages that wait arrive; x begins on A, and runs until the script ends it
    s.release("x")
    s.flow("K>s")             # the scheduler has heard of it, A has not
    s.ends("A", "x")
    s.finish()                # everything that is left happens, and all that is wanted must be there

After every event the invariants of the machine that it went to are checked.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from shoal.core.client.future import FutureStatus
from shoal.core.client.reactor import ClientCore
from shoal.core.effects import CancelRun, CloseLink, Drop, Effect, Fetch, HandOver, Log, Run, Send, Stop, TakeOver
from shoal.core.events import (
    Due,
    Event,
    FetchDone,
    FetchFailed,
    LinkLost,
    LinkOpened,
    Offered,
    Outcome,
    Outcomes,
    Pressure,
    PutDone,
    Received,
    Rejoined,
    Released,
    Said,
    Seceded,
)
from shoal.core.framing import Codec
from shoal.core.scheduler.reactor import SchedulerCore
from shoal.core.scheduler.settings import Settings
from shoal.core.worker.reactor import WorkerCore
from shoal.errors import InvariantViolation
from shoal.messages import (
    CANCELLED,
    INBOUND,
    OUTBOUND,
    Answer,
    Cancel,
    Given,
    Options,
    RegisterClient,
    RegisterNanny,
    RegisterWorker,
    Retire,
    Retry,
    Submit,
    TaskError,
    TaskSpec,
)
from shoal.sim.workload import value_of

_MOST_ROUNDS = 10_000


class _Worker:
    """A worker's core, and what its threads and transfers are at."""

    def __init__(self, name: str, nthreads: int, resources: dict[str, float] | None) -> None:
        self.core = WorkerCore(name, nthreads, resources, validate=True)
        self.values: dict[str, bytes] = {}
        self.runs: dict[str, tuple[Run, list[bytes]]] = {}
        self.cancelled: set[str] = set()
        self.fetches: dict[str, Fetch] = {}


class Script:
    """A cluster in which nothing happens by itself.

    Parameters
    ----------
    workers
        Names of workers that are there from the start.
    nthreads, resources
        Of each worker.
    settings
        As for :class:`~shoal.core.scheduler.settings.Settings`.
    """

    def __init__(
        self, *workers: str, nthreads: int = 1, resources: dict[str, float] | None = None, **settings: Any
    ) -> None:
        self.now = 0.0
        self.scheduler = SchedulerCore("s", Settings(validate=True, **{"amm_running": False, **settings}))
        self.workers: dict[str, _Worker] = {}
        self.clients: dict[str, ClientCore] = {}
        #: Messages on their way, by sender and receiver.
        self.lines: dict[tuple[str, str], deque[Any]] = {}
        #: Messages that arrived, by who heard them.
        self.heard: dict[str, list[Any]] = {}
        self.logs: list[str] = []
        #: How often each key began to run.
        self.began: dict[str, int] = {}
        self._roles: dict[str, str] = {}
        self._dead: set[str] = set()
        #: Pairs of workers that cannot reach each other, and workers to which nothing comes.
        self._apart: set[frozenset[str]] = set()
        self.stopped: set[str] = set()
        self._rid = 0
        self.enter("K")
        for name in workers:
            self.join(name, nthreads, resources)
        self.flow()

    # -------------------------------------------------------------------------------------------- who is there

    def enter(self, name: str) -> None:
        """A client comes."""
        self.clients[name] = ClientCore(name)
        self._open(name, "client")
        self._say(name, RegisterClient())

    def join(
        self,
        name: str,
        nthreads: int = 1,
        resources: dict[str, float] | None = None,
        slot: str = "",
        address: str = "",
    ) -> None:
        """A worker comes."""
        self.workers[name] = _Worker(name, nthreads, resources)
        self._open(name, "worker")
        where = [address or f"sim://{name}"]
        self._say(name, RegisterWorker(name, slot or name, where, nthreads, 0, 1, "host", resources=resources))

    def nanny(self, name: str) -> None:
        """A nanny comes, of which only the messages count; workers with its name as their slot are its own."""
        self._dead.add(name)
        self._open(name, "nanny")
        self._feed(Received(name, [RegisterNanny(name, "host", 1)]))

    def says(self, name: str, message: Any) -> None:
        """Have anybody say something; it arrives at once."""
        self._feed(Received(name, [message]))

    def retire(self, workers: str, client: str = "K", **options: Any) -> None:
        """A client wants workers to go."""
        self._rid += 1
        self._tell(client, Said(Retire(self._rid, workers.split(), **options)))

    def answer(self, client: str = "K") -> dict[str, Any]:
        """What a client was answered last."""
        found: dict[str, Any] = [message.value for message in self.heard[client] if isinstance(message, Answer)][-1]
        return found

    def dies(self, name: str, known: bool = True) -> None:
        """A worker or client is gone; the scheduler hears of it at once, or when :meth:`learns` says so."""
        self._dead.add(name)
        self.workers.pop(name, None)
        self.clients.pop(name, None)
        self.lines.pop(("s", name), None)
        if known:
            self.learns(name)

    def learns(self, name: str) -> None:
        """The scheduler hears that ``name`` is gone."""
        self._feed(LinkLost(self._roles[name], name, "it died"))

    def _open(self, name: str, role: str) -> None:
        self._roles[name] = role
        self._feed(LinkOpened(role, name))

    # -------------------------------------------------------------------------------------------- clients

    def submit(self, graph: str, want: str = "", client: str = "K", payload: bytes = b"", **options: Any) -> None:
        """Submit tasks as ``"x; y < x; z < x y"``; the last is wanted, or those named. ``on`` names workers."""
        tasks: dict[str, list[str]] = {}
        for part in graph.split(";"):
            key, _, deps = part.partition("<")
            tasks[key.strip()] = deps.split()
        wants = want.split() or [list(tasks)[-1]]
        if "on" in options:
            options["workers"] = options.pop("on").split()
        core = self.clients[client]
        records = [core.hold(key) for key in wants]
        specs = [TaskSpec(key, "f", payload, deps, order) for order, (key, deps) in enumerate(tasks.items())]
        self._tell(client, Said(Submit(specs, {"f": b"F"}, Options(**options), wants), records))

    def computes(self, worker: str, keys: str, **options: Any) -> None:
        """A worker computes tasks without inputs, and the scheduler has heard of it."""
        self.submit("; ".join(keys.split()), keys, on=worker, **options)
        self.flow()
        for key in keys.split():
            self.ends(worker, key)
        self.flow()

    def release(self, keys: str, client: str = "K") -> None:
        """Let go of all futures of these keys."""
        for key in keys.split():
            record = self.clients[client].futures[key]
            for _ in range(record.refs):
                record.handles.pop()
                self._tell(client, Released(record))

    def cancel(self, keys: str, client: str = "K", force: bool = False) -> None:
        self.clients[client].cancel(keys.split(), CANCELLED)
        self._tell(client, Said(Cancel(keys.split(), force)))

    def retry(self, keys: str, client: str = "K") -> None:
        records = self.clients[client].retry(keys.split())
        self._tell(client, Said(Retry(keys.split()), records))

    def future(self, key: str, client: str = "K") -> str:
        """How a key stands, as the client was told."""
        record = self.clients[client].futures.get(key)
        return "released" if record is None else record.status.label

    # -------------------------------------------------------------------------------------------- messages

    def flow(self, *lines: str) -> None:
        """Let what waits arrive, on lines as ``"A>s"``, or on all until nothing waits any more."""
        for _ in range(_MOST_ROUNDS):
            waiting = [
                pair
                for pair, line in self.lines.items()
                if line and (not lines or ">".join(pair) in lines) and pair[1] not in self.stopped
            ]
            if not waiting:
                return
            for pair in waiting:
                self._arrive(pair, len(self.lines.get(pair, ())))
        raise InvariantViolation("messages go to and fro without end")

    def one(self, line: str) -> None:
        """Let one message arrive."""
        source, _, target = line.partition(">")
        self._arrive((source, target), 1)

    def together(self, *names: str) -> None:
        """All that these have said arrives in one turn of the scheduler."""
        self._feed(*(Received(name, list(self.lines.pop((name, "s"), ()))) for name in names))

    def waiting(self, line: str) -> list[Any]:
        """What is on its way."""
        source, _, target = line.partition(">")
        return list(self.lines.get((source, target), ()))

    def _say(self, source: str, message: Any, target: str = "s") -> None:
        self.lines.setdefault((source, target), deque()).append(message)

    def _arrive(self, pair: tuple[str, str], count: int) -> None:
        source, target = pair
        line = self.lines.get(pair, deque())
        messages = [line.popleft() for _ in range(min(count, len(line)))]
        codec = Codec(INBOUND[self._roles[source]] if target == "s" else OUTBOUND[self._roles[target]])
        body, buffers = codec.encode(messages)
        messages = codec.decode(body, [memoryview(bytes(buffer)) for buffer in buffers])
        self.heard.setdefault(target, []).extend(messages)
        if target == "s":
            self._feed(Received(source, messages))
        elif target not in self._dead:
            self._tell(target, Received("", messages))

    def _feed(self, *events: Event) -> None:
        self.now += 0.001
        for effect in self.scheduler.handle(events, self.now):
            if isinstance(effect, Send) and self._roles[effect.to] == "nanny":
                self.heard.setdefault(effect.to, []).append(effect.message)
            elif isinstance(effect, Send) and effect.to not in self._dead:
                self._say("s", effect.message, effect.to)
            elif isinstance(effect, Log):
                self.logs.append(effect.text)
            elif isinstance(effect, CloseLink) and effect.to not in self._dead:
                self.dies(effect.to, known=False)

    def _tell(self, name: str, *events: Event) -> None:
        self.now += 0.001
        node = self.workers.get(name)
        core = self.clients[name] if node is None else node.core
        for effect in core.handle(events, self.now):
            if isinstance(effect, Send):
                self._say(name, effect.message)
            elif node is not None:
                self._perform(name, node, effect)
            elif isinstance(effect, Log):
                self.logs.append(effect.text)

    def _perform(self, name: str, node: _Worker, effect: Effect) -> None:
        if isinstance(effect, Run):
            self.began[effect.key] = self.began.get(effect.key, 0) + 1
            node.runs[effect.key] = (effect, [node.values[dep] for dep in effect.deps])
        elif isinstance(effect, CancelRun):
            node.cancelled |= set(effect.keys)
        elif isinstance(effect, Fetch):
            node.fetches[effect.peer] = effect
        elif isinstance(effect, HandOver):
            items = {key: node.values[key] for key in effect.keys if key in node.values}
            missing = [key for key in effect.keys if key not in items]
            editions = {key: node.core.keys[key].edition for key in items}
            self._say(name, Given(effect.rid, items, missing, {}, editions))
        elif isinstance(effect, TakeOver):
            node.values.update(effect.items)
            got = [(key, 8, "bytes") for key in effect.items]
            self._tell(name, FetchDone(effect.peer, got, effect.missing, effect.errors, effect.editions))
        elif isinstance(effect, Drop):
            for key in effect.keys:
                node.values.pop(key, None)
        elif isinstance(effect, Stop):
            self.dies(name)

    # -------------------------------------------------------------------------------------------- workers

    def runs(self, worker: str) -> list[str]:
        """Keys that the threads of a worker are in."""
        return list(self.workers[worker].runs)

    def ends(self, worker: str, key: str, how: str = "ok") -> None:
        """A thread ends: ``"ok"``, ``"error"``, ``"reschedule"``, or ``"skipped"`` where it had not begun."""
        node = self.workers[worker]
        run, inputs = node.runs.pop(key)
        node.cancelled.discard(key)
        value = error = None
        if how == "ok":
            value = node.values[key] = value_of(key, inputs, run.payload)
        elif how == "error":
            error = TaskError(None, None, f"ValueError: {key}")
        outcome = Outcome(key, how, 8, "bytes", 1.0, 1.01, value if run.inline else None, error)
        self._tell(worker, Outcomes([outcome]))

    def secedes(self, worker: str, key: str) -> None:
        self._tell(worker, Seceded(key))

    def rejoins(self, worker: str, key: str) -> None:
        self._tell(worker, Rejoined(key))

    def pauses(self, worker: str) -> None:
        self._tell(worker, Pressure(True, "memory is short"))

    def resumes(self, worker: str) -> None:
        self._tell(worker, Pressure(False, "there is memory"))

    def offers(self, worker: str, resources: dict[str, float]) -> None:
        """A worker has other resources from now on."""
        self._tell(worker, Offered(resources))

    def scatters(self, worker: str, key: str, client: str = "K") -> None:
        """A client puts a value on a worker."""
        core = self.clients[client]
        core.hold(key).wanted = True  # the scheduler wants it in the client's name from the moment it hears of it
        node = self.workers[worker]
        if node.core.takes(key):
            node.values[key] = value_of(key, [])
            self._tell(worker, PutDone(client, [(key, 8, "bytes")]))
        else:
            self._tell(worker, PutDone(client, [], [key]))

    def fetches(self, worker: str) -> dict[str, list[str]]:
        """The transfers that are under way to a worker: keys by peer."""
        return {peer: fetch.keys for peer, fetch in self.workers[worker].fetches.items()}

    def arrives(self, worker: str, peer: str, only: str | None = None, broken: str = "") -> None:
        """A peer answers with what it has (or of that, with ``only`` these); ``broken`` keys cannot be read."""
        node = self.workers[worker]
        fetch = node.fetches.pop(peer)
        source = self.workers.get(peer)
        if source is None or frozenset((worker, peer)) in self._apart:
            self._tell(worker, FetchFailed(peer, fetch.keys, "no answer"))
            return
        bad = [key for key in broken.split() if key in fetch.keys]
        here = [key for key in fetch.keys if key in source.values and key in source.core.keys and key not in bad]
        got = [key for key in here if only is None or key in only.split()]
        missing = [key for key in fetch.keys if key not in here and key not in bad]
        for key in got:
            node.values[key] = source.values[key]
        editions = {key: source.core.keys[key].edition for key in got}
        items = [(key, 8, "bytes") for key in got]
        self._tell(worker, FetchDone(peer, items, missing, dict.fromkeys(bad, "cannot be read"), editions))

    def fails_to_reach(self, worker: str, peer: str) -> None:
        """A transfer ends without an answer."""
        fetch = self.workers[worker].fetches.pop(peer)
        self._tell(worker, FetchFailed(peer, fetch.keys, "no answer"))

    def parts(self, *pair: str) -> None:
        """Two workers cannot reach each other any more; both reach the scheduler."""
        self._apart.add(frozenset(pair))

    def forgets(self, worker: str, key: str) -> None:
        """A worker loses a value, and does not know."""
        del self.workers[worker].values[key]

    # -------------------------------------------------------------------------------------------- time, questions

    def later(self, seconds: float) -> None:
        """Time passes; who has something to do then does it."""
        self.now += seconds
        for name, node in list(self.workers.items()):
            due = node.core.deadline()
            if due is not None and due <= self.now:
                self._tell(name, Due())
        due = self.scheduler.deadline()
        if due is not None and due <= self.now:
            self._feed(Due())

    def state(self, key: str) -> str:
        """The state of a task, as the scheduler sees it."""
        task = self.scheduler.state.tasks.get(key)
        return "forgotten" if task is None else task.state.label

    def label(self, worker: str, key: str) -> str:
        """The state of a key, as a worker sees it."""
        record = self.workers[worker].core.keys.get(key)
        return "forgotten" if record is None else record.label

    def on(self, key: str) -> list[str]:
        """Workers that a task is assigned to, or that hold its result, as the scheduler sees it."""
        task = self.scheduler.state.tasks[key]
        return [task.worker.id] if task.worker is not None else [worker.id for worker in task.who_has or ()]

    def finish(self) -> None:
        """Let everything happen that is left; then all that is wanted is there, with the right value.

        Raises
        ------
        InvariantViolation
            If something is still pending, or wrong.
        """
        for _ in range(_MOST_ROUNDS):
            self.flow()
            busy = [(name, node) for name, node in self.workers.items() if node.runs or node.fetches]
            if not busy:
                before = self.now
                self.later(5.0)
                if not any(self.lines.values()) and self._next_due() > before + 3600:
                    break
                if not any(self.lines.values()) and self._is_done():
                    break
                continue
            name, node = busy[0]
            if node.fetches:
                self.arrives(name, next(iter(node.fetches)))
            else:
                self.ends(name, next(iter(node.runs)))
        for client, core in self.clients.items():
            for key, record in core.futures.items():
                if record.pending:
                    raise InvariantViolation(f"{key} of {client} is still {self.state(key)}: {self.why(key)}")
                if record.status is FutureStatus.FINISHED:
                    self._check_value(key, record.value)

    def _is_done(self) -> bool:
        return not any(record.pending for core in self.clients.values() for record in core.futures.values())

    def _next_due(self) -> float:
        due = [node.core.deadline() for node in self.workers.values()] + [self.scheduler.deadline()]
        return min((at for at in due if at is not None), default=float("inf"))

    def why(self, key: str) -> str:
        """What the scheduler says of a key."""
        from shoal.core.scheduler.explain import why

        return why(self.scheduler.state, key, self.now)

    def _check_value(self, key: str, told: Any) -> None:
        task = self.scheduler.state.tasks[key]
        expected = self._value(key)
        held = [self.workers[worker.id].values.get(key) for worker in task.who_has or ()]
        if any(value != expected for value in held) or not held or (told is not None and told != expected):
            raise InvariantViolation(f"{key} should be {expected!r}; held are {held}, told was {told!r}")

    def _value(self, key: str) -> bytes:
        task = self.scheduler.state.tasks[key]
        return value_of(key, [self._value(dep.key) for dep in task.deps], task.payload or b"")
