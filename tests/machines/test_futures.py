"""Clients, a scheduler and workers, joined by queues whose order Hypothesis draws, against a model of each future.

The model is a dictionary of what each future may say once everything is delivered. Where only its own client had to
do with it, that is one thing; where the order of messages decides (another client cancels by force, the cluster is
restarted), a few. Nothing may be pending, and what users do themselves shows at once.

``pytest tests/machines/test_futures.py --hypothesis-profile=explore`` tries new orders, and more of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from shoal.core.client.future import FutureRecord, FutureStatus
from shoal.core.client.reactor import ClientCore
from shoal.core.effects import Answered, Effect, Send, Settled
from shoal.core.events import LinkLost, LinkOpened, PutDone, Received, Released, Said
from shoal.messages import (
    Bye,
    Cancel,
    FireAndForget,
    Meet,
    Options,
    RegisterClient,
    Retry,
    Submit,
    TaskSpec,
    Took,
    Unwant,
    Want,
)
from tests.machines.harness import Cluster

#: What each key is made of: "x" fails while it is broken, and what is made of it with it.
DEPS: dict[str, list[str]] = {"a": [], "b": ["a"], "c": ["a", "b"], "x": [], "y": ["x", "a"], "z": ["y"]}
FAILING = {"x", "y", "z"}
#: Keys that values are put under.
PUT = ["p", "q"]
NAMES = ["one", "two"]

clients = st.sampled_from("CD")
some_keys = st.lists(st.sampled_from(list(DEPS)), min_size=1, max_size=3)


def ancestors(key: str) -> set[str]:
    """``key`` and all that it is made of."""
    return {key}.union(*(ancestors(dep) for dep in DEPS.get(key, [])))


class Future:
    """One future of a user's, and what it may say in the end."""

    def __init__(self, client: str, record: FutureRecord, adopted: bool = False) -> None:
        self.client, self.record, self.key = client, record, record.key
        self.held = True
        #: Whether it may be that nobody knew of its key by the time that the scheduler heard of it.
        self.maybe_unknown = adopted
        #: What it must say, where that is known.
        self.must = ""
        #: Whether somebody else's doing may have cancelled it.
        self.maybe_cancelled = False

    def allowed(self) -> set[str]:
        if self.must:
            return {self.must}
        found = {"finished", "error"} if self.key in FAILING else {"finished"}
        if self.maybe_unknown or self.maybe_cancelled:
            found.add("cancelled")
        return found

    def __repr__(self) -> str:
        return f"<{self.key} of {self.client}: {self.record.status.label}, may be {sorted(self.allowed())}>"


class System(Cluster):
    """The harness, with clients that have cores of their own."""

    def __init__(self, seed: int) -> None:
        super().__init__(2, seed, allowed_failures=1)
        self.cores = {name: ClientCore(name) for name in "CD"}
        self.asked: dict[tuple[str, int], Callable[[Any, str | None], None]] = {}
        self.put_then: dict[int, Callable[[], None]] = {}
        self.rid = 0
        for name in self.cores:
            self.roles[name] = "client"
            self.feed(LinkOpened("client", name))
            self.line(name, "s").append(RegisterClient())

    def turn(self, name: str, *events: Any) -> None:
        """Hand events to a client's core, and do what it asks for."""
        for effect in self.cores[name].handle(events, self.now):
            if isinstance(effect, Send):
                self.line(name, "s").append(effect.message)
            elif isinstance(effect, Answered):
                then = self.asked.pop((name, effect.rid), None)
                if then is not None:
                    then(effect.value, effect.error)
            elif isinstance(effect, Settled):
                assert all(not record.pending for record in effect.records)

    def request(self, name: str, make: Callable[[int], Any], then: Callable[[Any, str | None], None]) -> None:
        self.rid += 1
        self.asked[name, self.rid] = then
        self.turn(name, Said(make(self.rid)))

    def hear(self, name: str, messages: list[Any]) -> None:
        if name in self.cores and not self.cores[name].closed:
            self.turn(name, Received("s", messages))

    def other(self, name: str, effect: Effect) -> None:
        if isinstance(effect, Answered):
            self.put_then.pop(effect.rid, lambda: None)()


class FutureMachine(RuleBasedStateMachine):
    """Users who do whatever there is with a few keys. In the end each future says what the model says."""

    def __init__(self) -> None:
        super().__init__()
        self.futures: list[Future] = []
        self.published: set[str] = set()
        self.broken = True
        self.closed: set[str] = set()
        #: What each client cancelled by force, as long as it is on its way.
        self.forced: dict[str, set[str]] = {"C": set(), "D": set()}

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        self.system = System(seed)
        self.system.failing["x"] = 1 << 30

    # ---------------------------------------------------------------------------------------- the model

    def of(self, client: str, key: str) -> list[Future]:
        return [future for future in self.futures if (future.client, future.key) == (client, key)]

    def open(self, client: str) -> bool:
        return client not in self.closed

    def wish(self, client: str, wants: list[str], message: Any, adopted: bool = False) -> list[Future]:
        """As a connection does: records and message in one step."""
        core = self.system.cores[client]
        made = [Future(client, core.hold(key), adopted) for key in wants]
        for future in made:
            # A future of the key that is there already knows it: what becomes of the one becomes of the other.
            others = [one for one in self.of(client, future.key) if one.record is future.record and one.held]
            if others:
                future.maybe_unknown = future.maybe_unknown and others[0].maybe_unknown
                future.maybe_cancelled, future.must = others[0].maybe_cancelled, others[0].must
            if not adopted:
                for one in others:
                    one.maybe_unknown = False
        for other, forced in self.forced.items():
            if not self.system.line(other, "s"):
                forced.clear()
            for future in made:
                future.maybe_cancelled |= other != client and bool(forced & ancestors(future.key))
        self.futures += made
        self.system.turn(client, Said(message, [future.record for future in made]))
        return made

    def cancelled(self, client: str, keys: set[str], force: bool) -> None:
        """What is made of ``keys`` may be cancelled: by force, for everybody."""
        for future in self.futures:
            if keys & ancestors(future.key) and (force or future.client == client):
                future.maybe_cancelled = True

    # ---------------------------------------------------------------------------------------- what users do

    @rule(client=clients, wants=some_keys)
    def submit(self, client: str, wants: list[str]) -> None:
        """A graph, with whatever the keys are made of; a key may be wanted twice."""
        if not self.open(client):
            return
        needed = [key for key in DEPS if any(key in ancestors(want) for want in wants)]
        specs = [TaskSpec(key, "f", b"", DEPS[key], order) for order, key in enumerate(needed)]
        self.wish(client, wants, Submit(specs, {"f": b"F"}, Options(), wants))

    @rule(client=clients, key=st.sampled_from([*DEPS, *PUT, "nobody's"]), times=st.integers(1, 2))
    def adopt(self, client: str, key: str, times: int) -> None:
        """A future out of a pickle, or made by hand."""
        if self.open(client):
            self.wish(client, [key] * times, Want([key] * times), adopted=True)

    @rule(client=clients, keys=st.lists(st.sampled_from(PUT), min_size=1, max_size=3), several=st.booleans())
    def scatter(self, client: str, keys: list[str], several: bool) -> None:
        """As a client does: hold the keys, put the values, wish for them, and let go of what was held meanwhile."""
        if not self.open(client):
            return
        system = self.system
        unique = list(dict.fromkeys(keys))
        holding = [system.cores[client].hold(key) for key in unique]
        workers = list(system.workers)[: 1 + several]
        left = len(workers)

        def noted() -> None:
            nonlocal left
            left -= 1
            if left or not self.open(client):
                return
            self.wish(client, keys, Want(unique), adopted=True)
            for record in holding:
                record.handles.pop()
                system.turn(client, Released(record))

        for worker in workers:
            system.rid += 1
            system.put_then[system.rid] = noted
            core = system.workers[worker]
            taken = [key for key in unique if core.takes(key)]
            system.data[worker] |= set(taken)
            refused = [key for key in unique if key not in taken]
            system.tell(worker, PutDone(client, [(key, 8, "int") for key in taken], refused, system.rid))

    @precondition(lambda self: any(future.held for future in self.futures))
    @rule(data=st.data(), by_hand=st.booleans())
    def release(self, data: st.DataObject, by_hand: bool) -> None:
        """Of a future; the last of its key says so at once."""
        future = data.draw(st.sampled_from([one for one in self.futures if one.held]))
        self.let_go(future, by_hand)

    def let_go(self, future: Future, by_hand: bool = True) -> None:
        future.held = False
        future.record.handles.pop()
        if self.open(future.client):
            if by_hand:
                self.system.cores[future.client].forsake(future.record)
            self.system.turn(future.client, Released(future.record))
        if not future.record.handles and self.open(future.client):
            assert future.record.over
            for one in self.of(future.client, future.key):
                if one.record is future.record:
                    one.must = future.record.status.label

    @precondition(lambda self: self.futures)
    @rule(data=st.data(), force=st.sampled_from([False, False, True]), twice=st.booleans())
    def cancel(self, data: st.DataObject, force: bool, twice: bool) -> None:
        """Cancelled at once for its own client, with what is made of it; by force for others, too."""
        future = data.draw(st.sampled_from(self.futures))
        if not self.open(future.client):
            return
        core = self.system.cores[future.client]
        core.cancel([future.key], "so")
        current = core.futures.get(future.key)
        assert current is None or current.over
        for one in self.of(future.client, future.key):
            if one.record is current:
                one.must = current.status.label
        self.cancelled(future.client, {future.key}, force)
        if force:
            self.forced[future.client].add(future.key)
        self.system.turn(future.client, Said(Cancel([future.key] * (1 + twice), force)))

    @precondition(lambda self: self.futures)
    @rule(data=st.data(), count=st.integers(1, 2))
    def retry(self, data: st.DataObject, count: int) -> None:
        """No old error is seen from now on; where nothing is broken any more, the new value will be."""
        future = data.draw(st.sampled_from(self.futures))
        if not self.open(future.client):
            return
        core = self.system.cores[future.client]
        current = core.futures.get(future.key)
        failed = current is not None and current.status is FutureStatus.ERROR
        records = core.retry([future.key] * count)
        assert current is None or current.status is not FutureStatus.ERROR
        if records:
            self.system.turn(future.client, Said(Retry([record.key for record in records]), records))
        if failed and not self.broken:
            for one in self.futures:
                if one.record is current and one.held and not one.maybe_cancelled:
                    one.must = "finished"

    @rule()
    def mend(self) -> None:
        """What failed would succeed now."""
        self.broken, self.system.failing["x"] = False, 0

    @rule()
    def break_again(self) -> None:
        """What succeeded would fail now, if it were to run again."""
        self.broken, self.system.failing["x"] = True, 1 << 30
        for future in self.futures:
            if future.key in FAILING and future.must == "finished":
                future.must = ""

    @precondition(lambda self: self.futures)
    @rule(data=st.data(), twice=st.booleans())
    def fire_and_forget(self, data: st.DataObject, twice: bool) -> None:
        future = data.draw(st.sampled_from(self.futures))
        if self.open(future.client):
            self.system.turn(future.client, Said(FireAndForget([future.key] * (1 + twice))))

    @precondition(lambda self: self.futures)
    @rule(data=st.data(), name=st.sampled_from(NAMES), what=st.sampled_from(["dataset", "variable", "queue"]))
    def leave_with_the_scheduler(self, data: st.DataObject, name: str, what: str) -> None:
        """A future, twice in one value; it may be that nobody knows of it any more."""
        future = data.draw(st.sampled_from(self.futures))
        if not self.open(future.client):
            return
        keys, args = [future.key] * 2, {"override": True}
        ask = {"dataset": "dataset-publish", "variable": "variable-set", "queue": "queue-put"}[what]
        if what == "queue":
            args = {"most": 0, "timeout": None}
        made = lambda rid: Meet(rid, ask, f"{what}-{name}", args, b"", keys)  # noqa: E731
        self.system.request(future.client, made, lambda value, error: None)

    @rule(client=clients, name=st.sampled_from(NAMES), what=st.sampled_from(["dataset", "variable", "queue"]))
    def take_from_the_scheduler(self, client: str, name: str, what: str) -> None:
        """What is there is this client's as well."""
        if not self.open(client):
            return
        ask = {"dataset": "dataset-get", "variable": "variable-get", "queue": "queue-get"}[what]
        args: dict[str, Any] = {} if what == "dataset" else {"timeout": 1.0}
        if what == "queue":
            args |= {"most": 0, "count": None}
        number = self.system.rid + 1

        def took(items: Any, error: str | None) -> None:
            if error is not None or not items or not self.open(client):
                return
            for _, keys in items:
                self.wish(client, keys, Want(keys), adopted=True)
            self.system.turn(client, Said(Took(number)))

        self.system.request(client, lambda rid: Meet(rid, ask, f"{what}-{name}", args, None, []), took)

    @rule(client=clients, name=st.sampled_from(NAMES), what=st.sampled_from(["dataset", "variable", "queue"]))
    def forget_with_the_scheduler(self, client: str, name: str, what: str) -> None:
        if self.open(client):
            self.forget(client, name, what)

    def forget(self, client: str, name: str, what: str) -> None:
        ask = {"dataset": "dataset-delete", "variable": "variable-delete", "queue": "queue-close"}[what]
        self.system.request(client, lambda rid: Meet(rid, ask, f"{what}-{name}", {}, None, []), lambda *_: None)

    @precondition(lambda self: not self.closed and len(self.futures) > 3)
    @rule(client=clients, seldom=st.integers(0, 3))
    def close(self, client: str, seldom: int) -> None:
        """In the middle of everything: what is not here yet is cancelled."""
        if seldom:
            return
        self.closed.add(client)
        self.system.turn(client, LinkLost("scheduler", "s", "closed by its user"))
        self.system.line(client, "s").append(Bye("closed by its user"))
        for future in self.futures:
            if future.client == client:
                assert not future.record.pending
                future.must = future.record.status.label

    @rule(steps=st.integers(1, 12))
    def deliver(self, steps: int) -> None:
        for _ in range(steps):
            if not self.system.step():
                return

    # ---------------------------------------------------------------------------------------- in the end

    def teardown(self) -> None:
        """Everything is delivered: each future says what it must; when all are let go of, nothing is left."""
        if not hasattr(self, "system"):
            return
        system = self.system
        system.settle()
        wrong = [future for future in self.futures if future.record.status.label not in future.allowed()]
        assert not wrong, wrong
        for name, core in system.cores.items():
            client = system.scheduler.state.clients.get(name)  # type: ignore[call-overload]
            wanted = {task.key for task in client.wants} if client is not None else set()
            held = {key for key, record in core.futures.items() if not record.over}
            assert not self.open(name) or wanted == held, f"{name} holds {held}, and is said to want {wanted}"
        for future in self.futures:
            if future.held:
                self.let_go(future)
        for name in NAMES:
            for what in ("dataset", "variable", "queue"):
                self.forget("C" if self.open("C") else "D", name, what)
        system.settle()
        assert not system.scheduler.state.tasks, list(system.scheduler.state.tasks.values())
        assert not any(core.futures for name, core in system.cores.items() if self.open(name))
        assert not any(system.data.values()), system.data


TestFutures = FutureMachine.TestCase


def _displaced() -> tuple[ClientCore, FutureRecord, FutureRecord]:
    """A future that was let go of, of which its core has not heard, and another of the same key."""
    core = ClientCore("C")
    old = core.hold("k")
    core.handle([Said(Want(["k"]), [old])], 0.0)
    old.handles.pop()
    new = core.hold("k")
    assert new is not old
    return core, old, new


def test_a_release_that_is_heard_late_takes_no_newer_wish_along() -> None:
    """The scheduler wants the key for the newer future by then."""
    core, old, new = _displaced()
    effects = core.handle([Said(Want(["k"]), [new]), Released(old)], 0.0)
    assert effects == [Send("", Want(["k"], 2)), Settled([old])]
    assert new.concerned(2)


def test_a_release_is_told_before_the_wish_that_follows_it() -> None:
    """So that another definition of the key may come with that."""
    core, old, new = _displaced()
    effects = core.handle([Released(old), Said(Want(["k"]), [new])], 0.0)
    assert effects == [Send("", Unwant(["k"])), Send("", Want(["k"], 2)), Settled([old])]
    assert new.concerned(2)
