"""What stands around the cores in the simulated cluster: threads, stores and transfers of workers; users of clients."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from shoal.core.client.future import FutureRecord, FutureStatus
from shoal.core.client.reactor import ClientCore
from shoal.core.effects import (
    Answered,
    CancelRun,
    Drop,
    Effect,
    Fetch,
    HandOver,
    Log,
    Registered,
    Run,
    Send,
    Settled,
    Stop,
    TakeOver,
)
from shoal.core.events import (
    Event,
    FetchDone,
    Offered,
    Outcome,
    Outcomes,
    Pressure,
    Received,
    Rejoined,
    Released,
    Said,
    Seceded,
)
from shoal.core.worker.reactor import WorkerCore
from shoal.messages import (
    Cancel,
    Given,
    Heartbeat,
    Options,
    RegisterClient,
    RegisterWorker,
    Restart,
    Retired,
    Retry,
    Submit,
    TaskError,
    TaskSpec,
    Unwant,
    Want,
)

if TYPE_CHECKING:
    from shoal.sim.nannies import NannyNode
    from shoal.sim.network import Wire
    from shoal.sim.world import World

#: Seconds between two heartbeats.
BEAT = 0.2


class WorkerNode:
    """A worker process: the core, threads that take time, values, and transfers that may fail."""

    role = "worker"

    def __init__(self, world: World, name: str, nthreads: int, host: str, nanny: NannyNode | None = None) -> None:
        self.world, self.name, self.nthreads, self.host, self.nanny = world, name, nthreads, host, nanny
        self.incarnation = nanny.core.incarnation if nanny is not None else 0
        self.resources = world.fates.resources(name, world.peaceful)
        self.executors = {"io": 1} if world.options.executors else None
        self.core = WorkerCore(name, nthreads, self.resources, validate=world.validate, executors=self.executors)
        self.values: dict[str, bytes] = {}
        self.alive = True
        #: Whether its resources were changed: what was on its way by then may wait.
        self.offered = False
        #: How many times longer its tasks take.
        self.slowness = 1.0
        #: Until when it answers no peer, and until when nothing at all happens in it (SIGSTOP).
        self.deaf_until = self.stopped_until = 0.0
        self.beats = True
        self._later: deque[Callable[[], None]] = deque()
        #: How many keys that peers ask for it will say not to have.
        self.forgets = 0
        #: Keys whose values can no longer be read, though the core may not have heard of it.
        self.broken: set[str] = set()
        self.up: Wire | None = None
        self._queues: dict[str, deque[Run]] = {pool: deque() for pool in ("", *(self.executors or ()))}
        self._free = {"": nthreads, **(self.executors or {})}
        self._cancelled: set[str] = set()
        #: What its threads hold of its resources, by key.
        self.holds: dict[str, dict[str, float]] = {}
        self._inside: dict[str, Run] = {}
        #: Executions whose process was ended: what they would have done later is void.
        self._ended: list[Run] = []
        self._outside: dict[str, None] = {}
        self._inputs: dict[str, list[bytes]] = {}
        #: What happens once the scheduler has heard of data that was put here, by the number of the request.
        self.puts: dict[int, Callable[[bool], None]] = {}
        #: The client of the tasks that launch tasks.
        self.client: ClientNode | None = None

    def register(self) -> None:
        """Say hello to the scheduler."""
        assert self.up is not None
        name = slot = self.name
        if self.nanny is not None:
            name = slot = self.nanny.name
        addresses = [f"sim://{self.name}"]
        resources, executors = self.resources, self.executors
        room = self.world.options.room
        self.up.send(RegisterWorker(name, slot, addresses, self.nthreads, room, 1, self.host, "", resources, executors))
        self._beat()

    def _beat(self) -> None:
        if self.alive and self.world.beating:
            if self.beats and self.stopped_until <= self.world.now and self.up is not None:
                self.up.send(Heartbeat({}))
            self.world.after(BEAT, self._beat)

    @property
    def running(self) -> list[str]:
        """Keys that its threads are in, as a nanny could read them after its death."""
        return list(self._inside)

    def tell(self, *events: Event) -> None:
        """Hand events to the core, and do what it asks for."""
        if not self.alive or self._put_off(lambda: self.tell(*events)):
            return
        for effect in self.core.handle(events, self.world.now):
            self._perform(effect)
        if self.resources is not None and self.world.validate and not self.offered:
            self.world.oracle.waits_for_nothing(self)
        if any(isinstance(said, Retired) for event in events if isinstance(event, Received) for said in event.messages):
            self.world.require(not self.values, f"{self.name} holds on to {list(self.values)}, and was let go of")
        self.world.wake_at(self.core.deadline(), self)

    def _put_off(self, action: Callable[[], None]) -> bool:
        """Whether nothing happens in this process now; ``action`` follows when it goes on."""
        if self.stopped_until <= self.world.now and not self._later:
            return False
        self._later.append(action)
        if len(self._later) == 1:
            self.world.at(self.stopped_until, self._go_on)
        return True

    def _go_on(self) -> None:
        if self.stopped_until > self.world.now:  # it was stopped again
            self.world.at(self.stopped_until, self._go_on)
            return
        later, self._later = self._later, deque()
        for action in later:
            action()

    def offer(self, resources: dict[str, float]) -> None:
        """It has other resources from now on."""
        if not self._put_off(lambda: self.offer(resources)) and self.alive:
            self.resources = {**(self.resources or {}), **resources}
            self.offered = True
            self.tell(Offered(resources))

    def pause(self, seconds: float) -> None:
        """Its memory is short for a while."""
        self.tell(Pressure(True, "memory is short"))
        self.world.after(seconds, lambda: self.tell(Pressure(False, "there is memory again")))

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send():
                assert self.up is not None
                self.up.send(effect.message)
            case Run():
                spec = self.core.keys[effect.key].spec
                self.holds[effect.key] = dict((spec.resources if spec is not None else None) or {})
                self.world.oracle.starts(self, effect.key)
                slots = self.core.slots
                right = slots.pool_of(effect.key) is slots.pools[effect.executor]
                self.world.require(right, f"{effect.key} does not take a thread of the pool that runs it")
                missing = set(effect.deps) - set(self.values)
                if missing and missing <= self.broken:  # the thread finds out
                    del self.holds[effect.key]
                    again = Outcomes([Outcome(effect.key, "reschedule")])
                    self.world.after(0.0, lambda: self.tell(again))
                    return
                self.world.require(not missing, f"{self.name} was to run {effect.key} without {missing}")
                self._queues[effect.executor].append(effect)
                self._inputs[effect.key] = [self.values[dep] for dep in effect.deps]
                self._next(effect.executor)
            case CancelRun():
                self._cancelled |= set(effect.keys)
                if effect.kill:
                    self._kill(effect.keys)
            case Fetch():
                self.world.transfer(self, effect)
            case HandOver():
                assert self.up is not None
                self.world.count("values by way of the scheduler")
                done = self.serve(Fetch(self.name, [], effect.keys, effect.max_bytes))
                items = {key: self.values[key] for key, _, _ in done.got}
                self.up.send(Given(effect.rid, items, done.missing, {}, done.editions))
            case TakeOver():
                got = [(key, 8, "bytes") for key in effect.items]
                answer = FetchDone(effect.peer, got, effect.missing, effect.errors, effect.editions)
                values = effect.items
                self.world.after(0.0, lambda: self.world.answer(self, answer, values))
            case Drop():
                for key in effect.keys:
                    self.values.pop(key, None)
            case Answered():
                put = self.puts.pop(effect.rid, None)
                if put is not None:
                    put(True)
            case Stop():
                self.world.crash(self, effect.reason, clean=True)

    def _next(self, pool: str) -> None:
        queue = self._queues[pool]
        while queue and self._free[pool]:
            run = queue.popleft()
            if run.key in self._cancelled:
                self._cancelled.discard(run.key)
                self._inputs.pop(run.key)
                self.holds.pop(run.key)
                self.world.after(0.0, lambda run=run: self.tell(Outcomes([Outcome(run.key, "skipped")])))  # type: ignore[misc]
                continue
            self._free[pool] -= 1
            self._inside[run.key] = run
            self.world.oracle.executed[run.key] += 1
            fates = self.world.fates
            seconds = fates.duration(run.key) * self.slowness
            if kids := fates.kids(run.key):
                self.world.after(seconds, lambda run=run, kids=kids: self._launch(run, kids))  # type: ignore[misc]
                continue
            if fates.secedes(run.key):
                self.world.after(seconds / 2, lambda run=run: self._secede(run))  # type: ignore[misc]
            self.world.after(seconds, lambda run=run, seconds=seconds: self._end(run, seconds))  # type: ignore[misc]

    def _launch(self, run: Run, kids: dict[str, list[str]]) -> None:
        """The task submits others, and waits for them outside of the pool."""
        if not self.alive or self._put_off(lambda: self._launch(run, kids)):
            return
        self.world.count("tasks that launch tasks")
        self._secede(run, stay=True)
        client = self.client
        if client is None:
            client = self.client = self.world.enter(inside=self)
        waiting = dict.fromkeys(kids)

        def done(key: str, failed: bool) -> None:
            waiting.pop(key, None)
            if not waiting or failed:
                waiting.clear()
                for kid in kids:
                    client.waiting.get(kid, {}).pop(run.key, None)
                    client.release(kid)
                self._end(run, 0.0, failed)

        def soon(key: str, failed: bool) -> None:
            self.world.after(0.0, lambda: done(key, failed) if waiting else None)

        for key in kids:
            client.waiting.setdefault(key, {})[run.key] = partial(soon, key)
        self.world.submit(client, kids, list(kids), Options(retries=self.world.options.retries))

    def _secede(self, run: Run, stay: bool = False) -> None:
        if self._put_off(lambda: self._secede(run, stay)):
            return
        if self.alive:
            self.world.count("seceded tasks")
            self._free[run.executor] += 1
            self._outside[run.key] = None
            self.tell(Seceded(run.key))
            if not stay and self.world.random.random() < 0.3 and self._free[run.executor]:
                self.world.count("rejoined tasks")
                self._free[run.executor] -= 1
                del self._outside[run.key]
                self.tell(Rejoined(run.key))
            self._next(run.executor)

    def _was_ended(self, run: Run) -> bool:
        return any(run is ended for ended in self._ended)

    def _kill(self, keys: list[str]) -> None:
        """End the processes of those that have one of their own."""
        fates = self.world.fates
        for key in keys:
            run = self._inside.get(key)
            if run is None or run.apart is None or fates.kids(key) or fates.secedes(key) or self._was_ended(run):
                continue
            self.world.count("tasks whose process was ended")
            self.world.oracle.executed[key] -= 1
            self._ended.append(run)
            self.world.after(0.0, lambda run=run: self._end(run, 0.0, killed=True))  # type: ignore[misc]

    def _end(self, run: Run, seconds: float, failed: bool = False, killed: bool = False) -> None:
        if not self.alive or (not killed and self._was_ended(run)):
            return
        if self._put_off(lambda: self._end(run, seconds, failed, killed)):
            return
        if run.key in self._outside:
            del self._outside[run.key]
        else:
            self._free[run.executor] += 1
        self._inside.pop(run.key, None)
        self.holds.pop(run.key)
        self._cancelled.discard(run.key)
        inputs = self._inputs.pop(run.key)
        now = self.world.now
        if failed:
            self.world.oracle.let_down.add(run.key)
        fate = "killed" if killed else "error" if failed else self.world.fates.outcome(run.key)
        if fate == "killed":
            outcome = Outcome(run.key, "killed", 0, "", now, now)
        elif fate == "error":
            self.world.count("tasks that raise")
            error = TaskError(None, None, f"ValueError: {run.key}")
            outcome = Outcome(run.key, "error", 0, "", now - seconds, now, None, error)
        elif fate == "reschedule":
            self.world.count("reschedules")
            outcome = Outcome(run.key, "reschedule", 0, "", now - seconds, now)
        else:
            self.broken.discard(run.key)
            value = self.values[run.key] = self.world.fates.value(run.key, inputs, run.payload)
            sent = value if run.inline else None
            outcome = Outcome(run.key, "ok", len(value), "bytes", now - seconds, now, sent)
        self.tell(Outcomes([outcome]))
        self._next(run.executor)

    def serve(self, fetch: Fetch) -> FetchDone:
        """Answer a peer."""
        got = [key for key in fetch.keys if key in self.values and key in self.core.keys]
        if got and self.forgets:
            self.forgets -= 1
            self.world.count("values that were forgotten")
            lost = got.pop()
            self.world.oracle.excused.add(lost)
            return self._answer(got, [lost])
        missing = [key for key in fetch.keys if key not in got]
        if len(got) > 1 and self.world.random.random() < 0.2:
            got = got[: len(got) // 2]  # an answer may hold a part only
            self.world.count("partial answers")
        return self._answer(got, missing)

    def _answer(self, got: list[str], missing: list[str]) -> FetchDone:
        editions = {key: self.core.keys[key].edition for key in got}
        return FetchDone(self.name, [(key, 8, "bytes") for key in got], missing, {}, editions)


class ClientNode:
    """A client and its user: what was asked for, let go of, and heard."""

    role = "client"

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.core = ClientCore(name)
        self.up: Wire | None = None
        self.alive = True
        #: What waits for keys here, by key and by who waits: called with whether it failed.
        self.waiting: dict[str, dict[str, Callable[[bool], None]]] = {}
        #: Data of which the user was not told yet that it is there.
        self.scattering: set[str] = set()
        #: Requests that the scheduler has not answered.
        self.asked: set[int] = set()
        self._rid = 0
        self._then: dict[int, Callable[[Any], None]] = {}

    def register(self) -> None:
        assert self.up is not None
        self.up.send(RegisterClient())

    def tell(self, *events: Event) -> None:
        if not self.alive:
            return
        for effect in self.core.handle(events, self.world.now):
            match effect:
                case Send():
                    assert self.up is not None
                    self.up.send(effect.message)
                case Settled():
                    for record in effect.records:
                        self.world.oracle.settled(self, record)
                        for call in list(self.waiting.get(record.key, {}).values()):
                            call(record.status is not FutureStatus.FINISHED)
                case Answered():
                    self.asked = self.asked - {effect.rid} if effect.rid else set()
                    then = self._then.pop(effect.rid, None)
                    if then is not None and effect.error is None:
                        then(effect.value)
                case Registered() | Log():
                    pass

    def hold(self, key: str) -> FutureRecord:
        """One more future of a key."""
        record = self.core.hold(key)
        record.held = self.world.oracle.tick()  # when it was wished for last
        return record

    def submit(
        self, tasks: dict[str, list[str]], wants: list[str], options: Options, payloads: dict[str, bytes]
    ) -> None:
        """Submit a graph, with the arguments of those tasks that have any; hold futures of ``wants``."""
        records = [self.hold(key) for key in wants]
        specs = [
            TaskSpec(key, "f", payloads.get(key, b""), deps, order) for order, (key, deps) in enumerate(tasks.items())
        ]
        self.tell(Said(Submit(specs, {"f": b"F"}, options, wants), records))

    def want(self, key: str) -> None:
        """Wish for a key that is held, and was not wished for yet."""
        record = self.core.futures.get(key)
        if record is not None:
            self.tell(Said(Want([key]), [record]))

    def release(self, key: str, by_hand: bool = False) -> None:
        """Let go of one future; by hand, the user may look at it afterwards."""
        record = self.core.futures.get(key)
        if record is not None and record.handles:
            record.handles.pop()
            if by_hand:
                self.core.forsake(record)
                self.world.require(record.over or bool(record.handles), f"{key} was released, and is {record}")
            self.tell(Released(record))

    def give_up(self, key: str) -> None:
        """Let go of all futures of a key."""
        record = self.core.futures.get(key)
        for _ in range(record.refs if record is not None else 0):
            self.release(key)

    def let_go(self, key: str) -> None:
        """Let go of data that was put in vain, as ``Client.scatter`` does: the scheduler may have heard of a copy."""
        self.give_up(key)
        if key not in self.core.futures:
            self.tell(Said(Unwant([key])))

    def release_all(self) -> None:
        for key in list(self.core.futures):
            self.give_up(key)

    def cancel(self, keys: list[str], force: bool) -> None:
        self.world.oracle.cancels(self, keys, force)
        self.core.cancel(keys, "cancelled by its user")
        self.tell(Said(Cancel(keys, force)))

    def retry(self, keys: list[str]) -> None:
        records = self.core.retry(keys)
        for record in records:
            self.world.require(record.pending, f"{record} is to run again, and is not pending")
        if records:
            self.tell(Said(Retry([record.key for record in records]), records))

    def restart(self, workers: list[str] | None = None) -> None:
        """Forget all tasks and restart all workers; or restart some, and forget nothing."""
        if workers is None:
            self.world.oracle.restarts()
        self.request(lambda rid: Restart(rid, 5.0, True, workers))

    def request(self, make: Callable[[int], Any], then: Callable[[Any], None] | None = None) -> None:
        """Ask the scheduler for something; ``then`` is called with its answer."""
        self._rid += 1
        self.asked.add(self._rid)
        if then is not None:
            self._then[self._rid] = then
        self.tell(Said(make(self._rid)))
