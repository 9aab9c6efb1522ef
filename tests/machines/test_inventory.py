"""Each table of a core has a bound, or an owner whose end empties it."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from shoal.core.client.reactor import ClientCore
from shoal.core.events import LinkLost, LinkOpened, Received, Released, Said
from shoal.core.scheduler import topics as topics_module
from shoal.core.scheduler import waiting
from shoal.core.scheduler.boxes import Boxes
from shoal.core.scheduler.queues import OpenWorkers
from shoal.core.scheduler.reactor import SchedulerCore
from shoal.core.scheduler.settings import Settings
from shoal.core.scheduler.state import SchedulerState
from shoal.core.scheduler.tables import PREFIXES
from shoal.core.scheduler.topics import EXPIRING, TOPICS, Topics
from shoal.core.worker.reactor import WorkerCore
from shoal.errors import UsageError
from shoal.messages import (
    DropFunctions,
    KeysDone,
    LogEvent,
    Meet,
    Options,
    RegisterClient,
    Submit,
    Subscribe,
    TaskSpec,
    Unwant,
)
from shoal.sim.inventory import grown, sizes
from tests.machines.harness import Cluster


class Open(Cluster):
    """A cluster that guests come to, who do not look at what they are told."""

    def line(self, source: str, target: str) -> deque[Any]:
        return deque() if target.startswith("guest") else super().line(source, target)


class Guest:
    """A client of a cluster's core that does a bit of everything, and leaves."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name, self.rid = cluster, name, 0
        cluster.roles[name] = "client"
        cluster.feed(LinkOpened("client", name))

    def say(self, *messages: Any) -> None:
        self.cluster.feed(Received(self.name, list(messages)))

    def meet(self, what: str, name: str, payload: Any = None, **args: Any) -> None:
        self.rid += 1
        self.say(Meet(self.rid, what, name, args, payload))


def comings_and_goings(cluster: Cluster, number: int) -> None:
    """One round: a client and a worker come, do what has names, and go."""
    guest = Guest(cluster, f"guest{number}")
    guest.say(RegisterClient())
    worker = cluster.join()
    cluster.settle()
    name = f"thing-{number}"
    keys = [f"prefix{number}-{n}" for n in range(3)]
    span = Options(span=["s", name], span_ids=["outer", name], workers=[name, worker], allow_other_workers=True)
    guest.say(Submit([TaskSpec(key, f"f{number}", b"", []) for key in keys], {f"f{number}": b"F"}, span, keys))
    cluster.settle()
    guest.meet("semaphore-acquire", name, most=1, lease=name)
    guest.meet("lease-release", name, lease=name)
    guest.meet("semaphore-acquire", name + "-held", most=1, lease=name + "-held", timeout=3600.0)
    guest.meet("several-acquire", "", names=[name, "b"], count=2, lease=name + "-several")
    guest.meet("queue-put", name, payload=b"1", most=0)
    guest.meet("queue-get", name, most=0, count=1)
    guest.meet("queue-get", name, most=0, count=1, timeout=3600.0)
    guest.meet("variable-set", name, payload=b"1")
    guest.meet("variable-delete", name)
    guest.meet("variable-get", name, timeout=3600.0)
    guest.meet("event-set", name)
    guest.meet("event-clear", name)
    guest.meet("event-wait", name, timeout=3600.0)
    guest.say(Subscribe("topic"), LogEvent([name], 1, 1.0))
    cluster.settle()
    cluster.kill(worker)
    cluster.settle()
    cluster.feed(LinkLost("client", guest.name, "it left"))
    cluster.settle()


def test_a_scheduler_that_all_have_left_is_as_small_as_a_new_one() -> None:
    cluster = Open(1)
    cluster.settle()
    for number in range(40):
        comings_and_goings(cluster, number)
    core = cluster.scheduler
    worker = cluster.workers["w1"]
    left = grown(worker, WorkerCore("w1", 1))
    assert not left
    gone = [peer for peer in worker.fetcher.peers if peer not in cluster.workers]
    assert len(gone) <= 1, "a worker is told of those that left with the next that it is told of"
    for peer, role in list(core._roles.items()):
        cluster.feed(LinkLost(role, peer, "the end"))
    assert grown(core, SchedulerCore("s", Settings())) == []


def test_the_inventory_sees_a_table_that_grows() -> None:
    core = SchedulerCore("s", Settings())
    core._roles["x"] = "client"
    assert grown(core, SchedulerCore("s", Settings())) == ["SchedulerCore._roles: 1 instead of 0"]
    assert sizes(core)["SchedulerCore._roles"] == 1


def test_workers_let_go_of_functions_that_nobody_refers_to() -> None:
    cluster = Cluster(1)
    cluster.submit({"a": []}, ["a"])
    cluster.settle()
    record = cluster.scheduler.state.workers["w1"]
    assert record.functions == {"f"}
    cluster.client(Unwant(["a"]))
    cluster.client(DropFunctions(["f"]))
    cluster.settle()
    assert record.functions == set()
    assert cluster.scheduler.state.functions == {}
    cluster.submit({"a": []}, ["a"])
    cluster.settle()
    assert cluster.states()["a"] == "memory"


def test_prefixes_topics_and_those_that_left_are_remembered_up_to_a_number() -> None:
    cluster = Cluster(1)
    cluster.settle()
    state, topics = cluster.scheduler.state, cluster.scheduler.topics
    for number in range(PREFIXES + 10):
        state._group_of(f"name{number}-0")
        state.groups.clear()
    assert len(state.prefixes) <= PREFIXES
    for number in range(TOPICS + 10):
        topics.log(f"topic-{number}", 1)
    assert len(topics.events) <= TOPICS
    assert "all" in topics.events
    for number in range(EXPIRING + 10):
        topics.expire(f"topic-{number}")
    assert len(topics._expiring) == EXPIRING


def test_events_are_kept_up_to_a_number_of_them_all_together(monkeypatch) -> None:
    monkeypatch.setattr(topics_module, "EVENTS", 50)
    topics = Topics(SchedulerState(Settings()), 20, 0.0, 10.0)
    for number in range(30):
        for event in range(25):
            topics.log(["all", f"topic-{number}"], event)
            assert topics.kept == sum(map(len, topics.events.values())) <= 50
    assert set(topics.events) == {"all", "topic-29"}
    topics.expire("topic-29")
    topics._state.now = 11.0
    topics.log("all", 1)
    assert topics.kept == len(topics.events["all"]) == 20


def test_names_that_clients_leave_with_the_scheduler_are_refused_beyond_a_number(monkeypatch) -> None:
    monkeypatch.setattr(waiting, "NAMES", 3)
    boxes: Boxes = SchedulerCore("s", Settings()).boxes
    for number in range(3):
        boxes.event_set(f"e{number}")
        boxes.variable_set(f"v{number}", (b"", []))
        boxes.publish(f"d{number}", (b"", []), False)
        boxes.set_metadata([f"m{number}"], 1)
    boxes.event_set("e0")
    boxes.variable_set("v0", (b"", []))
    for more in (
        lambda: boxes.event_set("e"),
        lambda: boxes.variable_set("v", (b"", [])),
        lambda: boxes.publish("d", (b"", []), False),
        lambda: boxes.set_metadata(["m"], 1),
    ):
        with pytest.raises(UsageError, match=r"there are 3 .* already"):
            more()


def test_a_client_that_let_go_of_all_is_as_small_as_a_new_one() -> None:
    core = ClientCore("c")
    for number in range(50):
        record = core.hold(f"k{number}")
        core.handle([Said(Submit([TaskSpec(record.key, "f", b"", [])], {}, Options(), [record.key]), [record])], 1.0)
        if number % 2:
            core.handle([Received("", [KeysDone([], number + 1)])], 1.0)
        record.handles.pop()
        core.handle([Released(record)], 1.0)
    assert [line for line in grown(core, ClientCore("c")) if "_effects" not in line] == []


def test_workers_that_are_noted_again_and_again_do_not_fill_the_heap_of_open_ones() -> None:
    cluster = Cluster(2)
    cluster.settle()
    state = cluster.scheduler.state
    idle, busy = state.workers["w1"], state.workers["w2"]
    idle.heap_load = busy.heap_load = None
    open_ = OpenWorkers(10.0)
    open_.note(idle)
    for _ in range(1000):
        for seconds in (8.0, 3.0, 1.0):
            busy.occupancy = seconds
            open_.note(busy)
        busy.heap_load = None  # as when it was full meanwhile
    busy.occupancy = 1.0
    open_.note(busy)
    assert len(open_._heap) <= 100
    assert open_.best() is idle
    open_.forget(idle)
    assert open_.best() is busy
    open_.forget(busy)
    assert open_.best() is None
