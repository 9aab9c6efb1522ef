"""Each machine alone, against whatever Hypothesis thinks of; what breaks is shrunk to the fewest steps.

The same steps are tried in each run. ``pytest tests/machines/test_stateful.py --hypothesis-profile=explore`` tries new
ones, and more of them.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.core.client.future import FutureRecord, FutureStatus
from shoal.core.client.reactor import ClientCore
from shoal.core.effects import (
    CancelRun,
    CloseLink,
    Drop,
    Effect,
    Fetch,
    Run,
    Send,
    Settled,
    Signal,
    Spawn,
    Stop,
    TakeOver,
)
from shoal.core.events import (
    ChildExited,
    ChildFailed,
    ChildReady,
    Command,
    Due,
    FetchDone,
    FetchFailed,
    LinkLost,
    LinkOpened,
    MemorySample,
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
from shoal.core.nanny.child import ChildState
from shoal.core.nanny.reactor import NannyCore, Wish
from shoal.core.scheduler.reactor import SchedulerCore
from shoal.core.scheduler.settings import Settings
from shoal.core.worker.attempt import AttemptState
from shoal.core.worker.reactor import WorkerCore
from shoal.core.worker.replica import ReplicaState
from shoal.messages import (
    AcquireCopies,
    AddKeys,
    Cancel,
    Carry,
    Compute,
    ComputeTask,
    DataPut,
    Dep,
    Done,
    Failed,
    Finished,
    Freed,
    FreeKeys,
    Given,
    GivenBack,
    Heartbeat,
    Holders,
    KeyErred,
    KeyInfo,
    KeysCancelled,
    KeysDone,
    KeysRestarted,
    Leave,
    LongRunning,
    Missing,
    NotCopied,
    Options,
    RegisterClient,
    RegisterWorker,
    Rescheduled,
    RestartWorker,
    Retry,
    Steal,
    StealAnswer,
    Submit,
    TaskDone,
    TaskError,
    TaskSpec,
    Unwant,
    Want,
    WorkerResources,
    WorkerStatus,
)

KEYS = [f"k-{n}" for n in range(6)]
PEERS = ["p", "q"]
keys = st.sampled_from(KEYS)
peers = st.sampled_from(PEERS)
error = TaskError(None, None, "ValueError: no")


class WorkerMachine(RuleBasedStateMachine):
    """A worker, and a scheduler that changes its mind at any time. Each assignment is answered for, once."""

    def __init__(self) -> None:
        super().__init__()
        self.core = WorkerCore("w", 2, {"R": 1}, validate=True)
        self.now = 0.0
        self.attempts = 0
        #: What the scheduler wants: the number of the assignment, by key.
        self.assigned: dict[str, int] = {}
        #: Assignments that were taken back while a thread may have had them.
        self.taken_back: set[int] = set()
        self.running: dict[str, None] = {}
        self.outside: set[str] = set()
        #: Assignments whose tasks left the pool: their threads count no more.
        self.outside_numbers: set[int] = set()
        self.cancelled: set[str] = set()
        self.fetches: dict[str, Fetch] = {}
        self.rounds: list[Carry] = []
        self.asked: list[str] = []
        #: Messages that told of copies, and in which of them each copy was told of that the scheduler counts on.
        self.announced = 0
        self.counted_on: dict[str, int] = {}
        #: Copies that were asked for, and of which nothing was heard.
        self.acquired: set[str] = set()

    def tell(self, *events: Any) -> None:
        self.now += 0.01
        for effect in self.core.handle(list(events), self.now):
            self.perform(effect)

    def perform(self, effect: Effect) -> None:
        if isinstance(effect, Run):
            assert effect.key not in self.running, "it runs twice at the same time"
            self.running[effect.key] = None
        elif isinstance(effect, CancelRun):
            self.cancelled |= set(effect.keys)
        elif isinstance(effect, Fetch):
            assert effect.peer not in self.fetches, "two transfers of one peer"
            self.fetches[effect.peer] = effect
        elif isinstance(effect, TakeOver):
            got = [(key, 8, "int") for key in effect.items]
            self.tell(FetchDone(effect.peer, got, effect.missing, effect.errors, effect.editions))
        elif isinstance(effect, Send):
            self.hear(effect.message)

    def hear(self, message: Any) -> None:
        if isinstance(message, Carry):
            assert message.holder not in self.fetches, "a peer is asked in two ways"
            self.rounds.append(message)
        elif isinstance(message, Finished):
            for item in message.items:
                self.answered(item.key, item.attempt)
        elif isinstance(message, Failed | Rescheduled):
            self.answered(message.key, message.attempt)
        elif isinstance(message, GivenBack):
            for key, attempt in message.items:
                self.answered(key, attempt)
        elif isinstance(message, StealAnswer):
            if message.granted:
                self.answered(message.key, message.attempt)
        elif isinstance(message, LongRunning):
            self.outside_numbers.add(message.attempt)
        elif isinstance(message, Freed):
            self.taken_back -= set(message.attempts)
        elif isinstance(message, Missing):
            self.asked.append(message.key)
        elif isinstance(message, NotCopied):
            self.acquired.discard(message.key)
        elif isinstance(message, AddKeys | DataPut):
            self.announced += 1
            self.acquired -= {item.key for item in message.items}
            self.counted_on.update((item.key, self.announced) for item in message.items if item.nbytes >= 0)

    def answered(self, key: str, attempt: int) -> None:
        self.taken_back.discard(attempt)
        if self.assigned.get(key) == attempt:
            del self.assigned[key]

    @rule(key=keys, deps=st.lists(st.tuples(keys, st.lists(peers, max_size=2)), max_size=2), needs=st.booleans())
    def compute(self, key: str, deps: list[tuple[str, list[str]]], needs: bool) -> None:
        self.attempts += 1
        if key in self.assigned:
            self.free([key])
        found = {dep: Dep(dep, 8, holders) for dep, holders in deps if dep < key}
        task = ComputeTask(
            key, self.attempts, "f", b"", list(found.values()), (0, 0, 0), True, {"R": 1} if needs else None
        )
        self.assigned[key] = self.attempts
        self.acquired.discard(key)
        self.tell(Received("", [Compute([task], {}, {peer: [f"tcp://{peer}"] for peer in PEERS})]))

    @rule(freed=st.lists(keys, min_size=1, max_size=3), late=st.integers(0, 2))
    def free(self, freed: list[str], late: int = 0) -> None:
        seen = max(0, self.announced - late)
        for key in freed:
            self.acquired.discard(key)
            if self.counted_on.get(key, 0) <= seen:
                self.counted_on.pop(key, None)
            attempt = self.assigned.pop(key, None)
            if attempt is not None and attempt not in self.outside_numbers:
                self.taken_back.add(attempt)
        self.tell(Received("", [FreeKeys(freed, seen)]))

    @rule(acquired=st.lists(st.tuples(keys, st.lists(peers, max_size=2)), max_size=3))
    def acquire(self, acquired: list[tuple[str, list[str]]]) -> None:
        items = [Dep(key, 8, holders) for key, holders in acquired if key not in self.assigned]
        self.acquired |= {item.key for item in items}
        self.tell(Received("", [AcquireCopies(items, 1, {peer: [f"tcp://{peer}"] for peer in PEERS})]))

    @rule(on=st.booleans())
    def leave(self, on: bool) -> None:
        self.tell(Received("", [Leave(1, on)]))

    @precondition(lambda self: self.assigned)
    @rule(data=st.data())
    def steal(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.assigned)))
        self.tell(Received("", [Steal(key, self.assigned[key] - data.draw(st.integers(0, 1)))]))

    @rule(key=keys, holders=st.lists(peers, max_size=2))
    def holders(self, key: str, holders: list[str]) -> None:
        self.tell(Received("", [Holders(key, holders, {})]))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), status=st.sampled_from(["ok", "ok", "error", "reschedule"]))
    def ends(self, data: st.DataObject, status: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        if key in self.cancelled and data.draw(st.booleans()):
            status = "skipped"
        self.end(key, status)

    def end(self, key: str, status: str = "ok") -> None:
        del self.running[key]
        self.outside.discard(key)
        self.cancelled.discard(key)
        self.tell(Outcomes([Outcome(key, status, 8, "int", 1.0, 1.01, b"v", error if status == "error" else None)]))

    @precondition(lambda self: set(self.running) - self.outside)
    @rule(data=st.data())
    def secede(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(set(self.running) - self.outside)))
        self.outside.add(key)
        self.tell(Seceded(key))

    @precondition(lambda self: self.outside)
    @rule(data=st.data())
    def rejoin(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.outside)))
        self.outside.discard(key)
        self.tell(Rejoined(key))

    @precondition(lambda self: self.fetches)
    @rule(data=st.data())
    def transfer(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from(sorted(self.fetches)))
        fetch = self.fetches.pop(peer)
        if data.draw(st.booleans()):
            self.tell(FetchFailed(peer, fetch.keys, "no answer"))
            return
        how = {
            key: data.draw(st.sampled_from(["got", "got", "missing", "failed", "left", "stale"])) for key in fetch.keys
        }
        got = [(key, 8, "int") for key in fetch.keys if how[key] in ("got", "stale")]
        editions = {key: 99 for key in fetch.keys if how[key] == "stale"}
        missing = [key for key in fetch.keys if how[key] == "missing"]
        failed = {key: "no" for key in fetch.keys if how[key] == "failed"}
        self.tell(FetchDone(peer, got, missing, failed, editions))

    @precondition(lambda self: self.rounds)
    @rule(data=st.data())
    def by_way_of_the_scheduler(self, data: st.DataObject) -> None:
        carry = self.rounds.pop()
        if data.draw(st.booleans()):
            self.tell(Received("", [Given(carry.rid, reason="no answer")]))
            return
        got = [key for key in carry.keys if data.draw(st.booleans())]
        missing = [key for key in carry.keys if key not in got]
        self.tell(Received("", [Given(carry.rid, dict.fromkeys(got, b""), missing, {}, {})]))
        self.tell(Received("", [Given(carry.rid, dict.fromkeys(got, b""), missing, {}, {})]))  # and late

    @rule(key=keys)
    def put(self, key: str) -> None:
        self.tell(PutDone("c", [(key, 8, "int")]) if self.core.takes(key) else PutDone("c", [], [key]))

    @rule(paused=st.booleans())
    def pressure(self, paused: bool) -> None:
        self.tell(Pressure(paused))

    @rule(seconds=st.sampled_from([0.1, 1.5, 10.0]))
    def later(self, seconds: float) -> None:
        self.now += seconds
        self.tell(Due())

    @invariant()
    def runs_no_more_than_it_has_threads_for(self) -> None:
        inside = [key for key in self.running if key not in self.outside]
        seceded = sum(record.attempt is AttemptState.LONG_RUNNING for record in self.core.keys.values())
        assert seceded == len(self.outside)
        assert len(inside) <= 200

    @invariant()
    def has_what_the_scheduler_counts_on(self) -> None:
        for key in self.counted_on:
            assert self.core.keys[key].replica is ReplicaState.HELD, key

    def teardown(self) -> None:
        """Everything that is under way ends well: every assignment is answered for, and nothing is left when freed."""
        self.tell(Pressure(False), Received("", [Leave(2, on=False)]))
        for _ in range(500):
            if self.running:
                self.end(next(iter(self.running)))
            elif self.fetches:
                peer, fetch = self.fetches.popitem()
                self.tell(FetchDone(peer, [(key, 8, "int") for key in fetch.keys], [], {}))
            elif self.rounds:
                carry = self.rounds.pop()
                self.tell(Received("", [Given(carry.rid, dict.fromkeys(carry.keys, b""))]))
            elif self.asked:
                self.tell(Received("", [Holders(self.asked.pop(), ["p"], {"p": ["tcp://p"]})]))
            elif self.assigned and self.core.deadline() is not None:
                self.now += 10
                self.tell(Due())
            else:
                break
        # Tasks whose input failed here wait for the scheduler, which takes them back.
        stuck = {key for key in self.assigned if self.waits_for_a_failure(key)}
        assert not self.acquired, f"nothing was said of {self.acquired}, which were asked for"
        assert set(self.assigned) == stuck, f"nobody answered for {self.assigned}: {self.core.keys}"
        self.tell(Received("", [FreeKeys(KEYS, self.announced)]))
        assert not self.core.keys
        assert self.core.slots.available == {"R": 1}
        assert not {attempt for attempt in self.taken_back if attempt not in self.assigned.values()}

    def waits_for_a_failure(self, key: str) -> bool:
        record = self.core.keys[key]
        return any(
            dep.attempt is AttemptState.FAILED or self.waits_for_a_failure(dep.key)
            for dep in record.deps
            if dep.key in self.core.keys
        )


class SchedulerMachine(RuleBasedStateMachine):
    """A scheduler, clients that change their mind, and workers that say whatever may come of any order of messages."""

    def __init__(self) -> None:
        super().__init__()
        self.core = SchedulerCore("s", Settings(validate=True, allowed_failures=1, no_workers_timeout=50.0))
        self.now = 0.0
        self.wish = 0
        self.names = 0
        self.workers: dict[str, dict[str, ComputeTask]] = {}
        #: Every assignment that was ever made: worker, key, number.
        self.made: list[tuple[str, str, int]] = [("w0", "k-0", 0)]
        self.gone: list[str] = ["w0"]

    def tell(self, *events: Any) -> None:
        self.now += 0.01
        for effect in self.core.handle(list(events), self.now):
            if isinstance(effect, Send) and effect.to in self.workers:
                self.deliver(effect.to, effect.message)
            elif isinstance(effect, CloseLink):
                self.workers.pop(effect.to, None)

    def deliver(self, worker: str, message: Any) -> None:
        if isinstance(message, Compute):
            for task in message.tasks:
                self.workers[worker][task.key] = task
                self.made.append((worker, task.key, task.attempt))
        elif isinstance(message, FreeKeys):
            for key in message.keys:
                self.workers[worker].pop(key, None)

    def say(self, worker: str, message: Any) -> None:
        self.tell(Received(worker, [message]))

    @initialize()
    def begin(self) -> None:
        self.tell(LinkOpened("client", "c"), LinkOpened("client", "d"))
        for client in "cd":
            self.tell(Received(client, [RegisterClient()]))
        self.join("", False)

    @rule(host=st.sampled_from(["", "h"]), needs=st.booleans())
    def join(self, host: str, needs: bool) -> None:
        self.names += 1
        name = f"w{self.names}"
        self.workers[name] = {}
        self.tell(LinkOpened("worker", name))
        resources = {"R": 1.0} if needs else None
        self.say(name, RegisterWorker(name, name, [f"tcp://{name}"], 1, 0, 1, host, resources=resources))

    @rule(
        client=st.sampled_from("cd"),
        shape=st.lists(st.tuples(keys, st.lists(keys, max_size=3)), min_size=1, max_size=4),
        wants=st.lists(keys, max_size=3),
        host=st.sampled_from([None, None, ["h"]]),
        needs=st.sampled_from([None, None, {"R": 1.0}]),
        payload=st.sampled_from([b"", b"another"]),
    )
    def submit(self, client: str, shape: Any, wants: list[str], host: Any, needs: Any, payload: bytes) -> None:
        tasks = {key: [dep for dep in deps if dep < key] for key, deps in sorted(shape)}
        specs = [TaskSpec(key, "f", payload, deps, n) for n, (key, deps) in enumerate(tasks.items())]
        self.wish += 1
        options = Options(0, 1, host, False, needs)
        self.tell(Received(client, [Submit(specs, {"f": b"F"}, options, wants, self.wish)]))

    @rule(client=st.sampled_from("cd"), chosen=st.lists(keys, min_size=1, max_size=3), what=st.integers(0, 4))
    def change_mind(self, client: str, chosen: list[str], what: int) -> None:
        message = [Unwant(chosen), Cancel(chosen), Cancel(chosen, True), Retry(chosen), Want(chosen, self.wish)][what]
        self.tell(Received(client, [message]))

    @rule(data=st.data(), what=st.integers(0, 12))
    def report(self, data: st.DataObject, what: int) -> None:
        """A worker says something about an assignment: the last, or one of long ago."""
        worker, key, attempt = data.draw(st.sampled_from(self.made))
        if worker not in self.workers:
            worker = data.draw(st.sampled_from([worker, *self.workers]))
        message: Any = [
            Finished([TaskDone(key, attempt, 8, "int", 1.0, 1.1)]),
            Finished([TaskDone(key, attempt, 8, "int", 1.0, 1.1)]),
            Failed(key, attempt, 1.0, 1.1, error),
            Rescheduled(key, attempt),
            LongRunning(key, attempt),
            GivenBack([(key, attempt)]),
            Freed([attempt]),
            StealAnswer(key, attempt, data.draw(st.booleans())),
            AddKeys([KeyInfo(key, 8, "int", data.draw(st.sampled_from(self.editions(key))))]),
            Missing(key, data.draw(st.lists(st.sampled_from([*self.workers, "w0"]), max_size=2)), ["w0"]),
            WorkerStatus(data.draw(st.booleans())),
            WorkerResources(data.draw(st.sampled_from([{}, {"R": 1.0}, {"R": 0.5}, {"R": 2.0, "G": 1.0}]))),
            Heartbeat({}),
        ][what]
        self.say(worker, message)

    def editions(self, key: str) -> list[int]:
        task = self.core.state.tasks.get(key)
        return [0, task.edition if task is not None else 1]

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), key=keys)
    def scatter(self, data: st.DataObject, key: str) -> None:
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        self.say(worker, DataPut(data.draw(st.sampled_from(["c", "d", "nobody"])), [KeyInfo(key, 8, "int")]))

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def dies(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        del self.workers[worker]
        self.tell(LinkLost("worker", worker, "it died"))

    @rule(seconds=st.sampled_from([0.1, 20.0]))
    def later(self, seconds: float) -> None:
        self.now += seconds
        for worker in list(self.workers):
            self.say(worker, Heartbeat({}))

    def teardown(self) -> None:
        """All workers go, and honest ones come: then every task that is wanted is done or failed, and all can go."""
        if "c" not in self.core.state.clients:
            return
        for worker in list(self.workers):
            self.workers.pop(worker, None)
            self.tell(LinkLost("worker", worker, "it died"))
        self.join("h", True)
        for _ in range(500):
            work = [(worker, task) for worker, tasks in self.workers.items() for task in tasks.values()]
            if not work:
                break
            for worker, task in work:
                if all(dep.key not in self.workers[worker] for dep in task.deps):
                    self.workers[worker].pop(task.key)
                    self.say(worker, Finished([TaskDone(task.key, task.attempt, 8, "int", 1.0, 1.1)]))
        for task in self.core.state.tasks.values():
            assert task.state.label in ("memory", "erred", "released"), f"{task} is left"
        for client in "cd":
            self.tell(Received(client, [Unwant(KEYS)]))
        assert not self.core.state.tasks
        assert not self.core.state.groups


class NannyMachine(RuleBasedStateMachine):
    """A nanny, and a process that does what it likes. There is never more than one, and none once it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.core = NannyCore("n", memory_limit=100, start_timeout=10.0, crash_limit=3)
        self.now = 0.0
        self.process = 0
        self.told_to_end = self.stopped = False

    @initialize(reconnect=st.booleans())
    def begin(self, reconnect: bool) -> None:
        self.core.reconnect = reconnect

    def tell(self, event: Any) -> None:
        self.now += 0.01
        for effect in self.core.handle([event], self.now):
            if isinstance(effect, Spawn):
                assert not self.process, "a second process is started"
                assert not self.stopped, "it starts a process after it has ended"
                self.process, self.told_to_end = effect.incarnation, False
            elif isinstance(effect, Signal) and effect.incarnation == self.process:
                self.told_to_end = True
            elif isinstance(effect, Stop):
                assert not self.process, "it ends and leaves a process behind"
                self.stopped = True

    @rule(what=st.sampled_from(["start", "restart", "restart", "kill", "leave", "close"]), timeout=st.floats(0, 50))
    def command(self, what: str, timeout: float) -> None:
        self.tell(Command(what, timeout=timeout))
        if what == "kill":
            assert self.told_to_end or not self.process
        if what in ("start", "restart") and not self.stopped and self.core.wish is Wish.UP:
            assert self.process or self.core.state is ChildState.GIVEN_UP

    @rule(worker=st.sampled_from(["", "n.1", "n.2"]))
    def asked_to_restart(self, worker: str) -> None:
        self.tell(Received("s", [RestartWorker(1, "so", 5.0, True, worker)]))

    @precondition(lambda self: self.process)
    @rule(late=st.integers(0, 1))
    def ready(self, late: int) -> None:
        number = self.process - late
        self.tell(ChildReady(number, f"n.{number}", "tcp://n", 1))

    @precondition(lambda self: self.process)
    @rule(code=st.sampled_from([0, 1, None]), said=st.booleans())
    def exits(self, code: int | None, said: bool) -> None:
        number, self.process = self.process, 0
        if said:
            self.tell(ChildFailed(number, "no such module"))
        wish = self.core.wish
        self.tell(ChildExited(number, code, 9 if code is None else None, ["k"]))
        if wish in (Wish.DOWN, Wish.LEAVE, Wish.CLOSED):
            assert not self.process, "a process that nobody wants is started"
            assert self.stopped or wish is Wish.DOWN

    @rule(rss=st.sampled_from([10, 1000]), late=st.integers(0, 1))
    def sample(self, rss: int, late: int) -> None:
        self.tell(MemorySample(self.core.incarnation - late, rss))

    @rule(seconds=st.sampled_from([0.2, 3.0, 60.0]))
    def later(self, seconds: float) -> None:
        self.now += seconds
        self.tell(Due())

    @invariant()
    def has_a_process_when_it_says_so(self) -> None:
        there = self.core.state in (ChildState.STARTING, ChildState.UP, ChildState.EXITING)
        assert there == bool(self.process)

    def teardown(self) -> None:
        """It closes, whatever it was at."""
        self.tell(Command("close"))
        if self.process:
            assert self.told_to_end
            self.exits(0, False)
        assert self.stopped
        assert self.core.deadline() is None


class ClientMachine(RuleBasedStateMachine):
    """A client's core: futures come and go, news is late. Each key that is let go of is told once, after its wish."""

    def __init__(self) -> None:
        super().__init__()
        self.core = ClientCore("c")
        self.wanted: set[str] = set()
        #: Keys that were cancelled or lost: the scheduler has forgotten that they were wanted.
        self.cancelled: set[str] = set()

    def tell(self, event: Any) -> None:
        for effect in self.core.handle([event], 0.0):
            if isinstance(effect, Send) and isinstance(effect.message, Submit):
                self.wanted |= set(effect.message.wants)
            elif isinstance(effect, Send) and isinstance(effect.message, Want):
                self.wanted |= set(effect.message.keys)
            elif isinstance(effect, Send) and isinstance(effect.message, Unwant):
                for key in effect.message.keys:
                    self.wanted.discard(key)
            elif isinstance(effect, Settled):
                assert all(not record.pending for record in effect.records)
                self.cancelled |= {record.key for record in effect.records if record.over}
            elif isinstance(effect, Drop):
                raise AssertionError("a client holds no values")

    @rule(wants=st.lists(keys, min_size=1, max_size=3), graph=st.booleans())
    def submit(self, wants: list[str], graph: bool) -> None:
        records = [self.core.hold(key) for key in wants]
        self.tell(Said(Submit([], {}, Options(), wants) if graph else Want(wants), records))

    @precondition(lambda self: self.core.futures)
    @rule(data=st.data(), by_hand=st.booleans())
    def release(self, data: st.DataObject, by_hand: bool) -> None:
        self.let_go(self.core.futures[data.draw(st.sampled_from(sorted(self.core.futures)))], by_hand)

    def let_go(self, record: FutureRecord, by_hand: bool = False) -> None:
        record.handles.pop()
        if by_hand:
            self.core.forsake(record)
            assert record.over or record.handles
        self.tell(Released(record))

    @rule(chosen=st.lists(keys, min_size=1, max_size=3))
    def cancel(self, chosen: list[str]) -> None:
        self.core.cancel(chosen, "so")
        assert all(self.core.futures[key].over for key in chosen if key in self.core.futures)
        self.tell(Said(Cancel(chosen)))

    @rule(chosen=st.lists(keys, min_size=1, max_size=3))
    def retry(self, chosen: list[str]) -> None:
        records = self.core.retry(chosen)
        known = [self.core.futures[key] for key in chosen if key in self.core.futures]
        assert not any(record.status is FutureStatus.ERROR for record in known)
        self.tell(Said(Retry([record.key for record in records]), records))

    @rule(key=keys, what=st.integers(0, 4), late=st.integers(0, 2))
    def news(self, key: str, what: int, late: int) -> None:
        wish = max(0, self.core._wish - late)
        message: Any = [
            KeysDone([Done(key, 8, "int", b"v")], wish),
            KeyErred(key, key, error, wish),
            KeysCancelled([key], "so", False, wish),
            KeysCancelled([key], "so", True, wish),
            KeysRestarted([key], wish),
        ][what]
        self.tell(Received("s", [message]))

    @invariant()
    def wants_what_it_holds(self) -> None:
        assert {key for key, record in self.core.futures.items() if not record.over} <= self.wanted

    def teardown(self) -> None:
        """Everything is let go of: nothing is wanted any more, but for what was cancelled."""
        for record in list(self.core.futures.values()):
            for _ in range(record.refs):
                self.let_go(record)
        assert not self.core.futures
        assert self.wanted <= self.cancelled
        self.tell(LinkLost("scheduler", "s", "gone"))
        assert self.core.closed


TestWorker = WorkerMachine.TestCase
TestScheduler = SchedulerMachine.TestCase
TestNanny = NannyMachine.TestCase
TestClient = ClientMachine.TestCase
