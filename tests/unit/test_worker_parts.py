"""Slots and the plan of transfers, record by record."""

from __future__ import annotations

from shoal.core.worker.attempt import AttemptState
from shoal.core.worker.fetching import BYTES_IN_FLIGHT, MESSAGE_BYTES, TRANSFERS, Fetcher
from shoal.core.worker.key import KeyRecord
from shoal.core.worker.replica import ReplicaState
from shoal.core.worker.slots import AHEAD, PASSED_OVER_MOST, Slots
from shoal.messages import ComputeTask


def ready(key: str, order: int = 0, **resources: float) -> KeyRecord:
    record = KeyRecord(key)
    record.spec = ComputeTask(key, 1, "f", b"", [], (0, 0, order), False, resources or None)
    record.priority = record.spec.priority
    record.attempt = AttemptState.CONSTRAINED if resources else AttemptState.READY
    return record


def start(slots: Slots, record: KeyRecord) -> None:
    record.attempt = AttemptState.EXECUTING
    slots.take(record)


def test_threads_are_given_by_priority() -> None:
    """One each, while it is not known how long tasks take."""
    slots = Slots(2, {})
    records = [ready(f"k-{n}", order=9 - n) for n in range(4)]
    for record in records:
        slots.push(record)
    for expected in (records[3], records[2]):
        assert slots.pop() is expected
        start(slots, expected)
    assert slots.pop() is None
    slots.give(records[3], 1.0)
    assert slots.pop() is records[1]


def test_very_short_tasks_are_handed_out_ahead_of_time() -> None:
    """A few milliseconds of them."""
    slots = Slots(1, {})
    first = ready("k-first")
    slots.push(first)
    assert slots.pop() is first
    start(slots, first)
    slots.give(first, AHEAD / 10)
    handed = 0
    for number in range(50):
        slots.push(ready(f"k-{number}"))
    while (record := slots.pop()) is not None:
        start(slots, record)
        handed += 1
    assert 2 < handed < 20


def test_resources_are_accounted_for() -> None:
    """What does not fit waits, and lets others pass."""
    slots = Slots(4, {"GPU": 1})
    one, two, plain = ready("one", 0, GPU=1), ready("two", 1, GPU=1), ready("plain", 2)
    for record in (one, two, plain):
        slots.push(record)
    assert slots.pop() is one
    start(slots, one)
    assert slots.available == {"GPU": 0}
    assert slots.pop() is plain
    start(slots, plain)
    assert slots.pop() is None
    slots.give(one, 0.1)
    assert slots.pop() is two


def test_who_left_the_line_is_passed_over() -> None:
    """Dropped, or put in line anew."""
    slots = Slots(1, {})
    gone, stays = ready("gone", 0), ready("stays", 1)
    slots.push(gone)
    slots.push(stays)
    gone.attempt = AttemptState.NONE
    assert slots.pop() is stays


def wanted(key: str, nbytes: int, *holders: str) -> KeyRecord:
    record = KeyRecord(key)
    record.replica, record.nbytes = ReplicaState.FETCH, nbytes
    record.holders = dict.fromkeys(holders)
    return record


def plan(fetcher: Fetcher, now: float = 0.0) -> list[tuple[str, list[str]]]:
    found = []
    for fetch, records in fetcher.plan(now):
        for record in records:
            record.replica = ReplicaState.FLIGHT
        found.append((fetch.peer, fetch.keys))
    return found


def test_keys_of_one_peer_are_asked_for_together() -> None:
    """Up to a size; a peer that is busy is asked again when it has answered."""
    fetcher = Fetcher()
    records = [wanted(f"k-{n}", MESSAGE_BYTES // 2, "p") for n in range(3)]
    for record in records:
        fetcher.want(record)
    assert plan(fetcher) == [("p", ["k-0", "k-1"])]
    assert plan(fetcher) == []
    fetcher.ended("p")
    assert plan(fetcher) == [("p", ["k-2"])]


def test_a_key_with_several_holders_is_asked_of_one() -> None:
    """And is no longer wanted of the others."""
    fetcher = Fetcher()
    fetcher.want(wanted("k", 10, "p", "q"))
    assert plan(fetcher) == [("p", ["k"])]


def test_peers_on_this_host_are_asked_first() -> None:
    """Whoever was named first."""
    fetcher = Fetcher()
    fetcher.hosts = frozenset({"here"})
    fetcher.peers = {"far": ["tcp://there:1"], "near": ["tcp://here:2", "unix://@x"]}
    fetcher.want(wanted("k", 10, "far", "near"))
    assert plan(fetcher) == [("near", ["k"])]


def test_bytes_in_flight_are_limited() -> None:
    """Over all peers; one more transfer may go over it."""
    fetcher = Fetcher()
    for number in range(20):
        fetcher.want(wanted(f"k-{number}", BYTES_IN_FLIGHT // 4, f"p-{number:02}"))
    assert len(plan(fetcher)) == 4
    fetcher.ended("p-00")
    assert len(plan(fetcher)) == 1


def test_transfers_are_limited() -> None:
    """Over all peers."""
    fetcher = Fetcher()
    for number in range(TRANSFERS + 5):
        fetcher.want(wanted(f"k-{number}", 10, f"p-{number}"))
    assert len(plan(fetcher)) == TRANSFERS


def test_a_peer_that_cannot_be_reached_is_left_alone_for_a_growing_while() -> None:
    """And a deadline says until when."""
    fetcher = Fetcher()
    pauses = []
    now = 0.0
    for number in range(4):
        fetcher.want(wanted(f"k-{number}", 10, "p"))
        assert plan(fetcher, now) != []
        fetcher.unreachable("p", now)
        fetcher.ended("p")
        fetcher.want(wanted(f"again-{number}", 10, "p"))
        assert plan(fetcher, now) == []
        due = fetcher.deadline()
        assert due is not None
        pauses.append(due - now)
        now = due
        plan(fetcher, now)
        fetcher.ended("p")
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[-1]


def needing(key: str, order: int, *deps: KeyRecord) -> KeyRecord:
    record = ready(key, order)
    record.deps = deps
    return record


def test_while_memory_is_short_what_needs_no_disk_is_first() -> None:
    """Of the same priority; in order again when there is memory."""
    slots = Slots(1, {})
    spilled, held = KeyRecord("spilled"), KeyRecord("held")
    spilled.on_disk = True
    records = [needing("a", 0, held, spilled), needing("b", 1, held), needing("c", 2, spilled), needing("d", 3, held)]
    for record in records:
        slots.push(record)
    slots.short = True
    assert slots.pop() is records[1]
    slots.short = False
    assert slots.pop() is records[0]
    slots.short = True
    assert slots.pop() is records[3]
    assert slots.pop() is records[2]
    assert slots.pop() is None


def test_nobody_is_passed_over_for_ever() -> None:
    """However many come that need nothing from disk; and what is more important never is."""
    slots = Slots(1, {})
    slots.short = True
    spilled = KeyRecord("spilled")
    spilled.on_disk = True
    first = needing("first", 0, spilled)
    slots.push(first)
    count = 0
    while True:
        slots.push(ready(f"k-{count}", 1 + count))
        record = slots.pop()
        if record is first:
            break
        count += 1
    assert count == PASSED_OVER_MOST
    urgent = needing("urgent", 0, spilled)
    urgent.priority = (-1, 0, 0)
    slots.push(urgent)
    assert slots.pop() is urgent
