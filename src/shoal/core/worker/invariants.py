"""Re-derive what the worker's records imply, and compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.core.amounts import offered
from shoal.core.worker.attempt import PENDING, RUNNING, AttemptState
from shoal.core.worker.key import Goal, KeyRecord
from shoal.core.worker.replica import ReplicaState
from shoal.core.worker.slots import PASSED_OVER_MOST
from shoal.errors import InvariantViolation

if TYPE_CHECKING:
    from shoal.core.worker.reactor import WorkerCore


def check(core: WorkerCore) -> None:
    """Compare all records and accounts.

    Raises
    ------
    InvariantViolation
        At the first disagreement.
    """
    running = set(core.slots.running_keys())
    for key, record in core.keys.items():
        _require(record.key == key, core, record, "is filed under another key")
        _check_record(core, record)
        _require((record.attempt in RUNNING) == (key in running), core, record, "runs, or takes no slot")
    for key in running:
        if key not in core.keys:
            raise InvariantViolation(f"{key!r} takes a slot and has no record")
    flying = {key for records in core.fetcher.in_flight.values() for key in records}
    for record in core.keys.values():
        if record.replica is ReplicaState.FLIGHT and record.key not in flying:
            raise InvariantViolation(f"{record!r} is in flight and no transfer carries it")
    expected = sum(core.fetcher._bytes.values())
    if core.fetcher.bytes_in_flight != expected or set(core.fetcher._bytes) != set(core.fetcher.in_flight):
        raise InvariantViolation(f"{core.fetcher.bytes_in_flight} bytes are counted in flight, not {expected}")
    taken = core.slots.taken()
    for name, total in core.slots.total.items():
        left = core.slots.free_units(name)
        if left + taken[name] != offered(total):
            raise InvariantViolation(f"resource {name}: {left} left and {taken[name]} taken of {total}")


def _check_record(core: WorkerCore, record: KeyRecord) -> None:
    _require(record.passed_over <= PASSED_OVER_MOST, core, record, f"was passed over {record.passed_over} times")
    if record.attempt in PENDING:
        _require(not core.paused, core, record, "waits at a paused worker")
        _require(not core.leaving, core, record, "waits at a worker that is to go")
        missing = sum(dep.replica is not ReplicaState.HELD for dep in record.deps)
        _require(record.n_missing == missing, core, record, f"counts {record.n_missing} missing, there are {missing}")
        _require(record.goal is Goal.COMPUTE, core, record, "is pending and not to be computed")
        for dep in record.deps:
            _require(record in dep.waiters, core, record, f"is no waiter of {dep.key}")
            _require(core.keys.get(dep.key) is dep, core, record, f"needs {dep.key}, whose record is gone")
    else:
        _require(not record.deps, core, record, "holds on to inputs")
    if record.waiters and record.replica is not ReplicaState.HELD:
        # A failed attempt was reported: the scheduler will take back what was assigned ahead of it.
        told = record.attempt is AttemptState.FAILED
        on_its_way = told or record.busy or record.attempt in PENDING or record.replica is not ReplicaState.ABSENT
        _require(on_its_way, core, record, "is needed here and nothing brings it")
    if record.goal is Goal.DROP and not record.waiters:
        _require(record.busy, core, record, "is kept for nothing")
    _require((record.replica is ReplicaState.MISSING) == (record in core._missing), core, record, "missing, or not")


def _require(truth: bool, core: WorkerCore, record: KeyRecord, what: str) -> None:
    if not truth:
        told = "".join(f"\n  {row}" for row in core.story if row[0] == record.key)
        raise InvariantViolation(f"{record!r} {what}{told}")
