"""What a worker tells of itself when it is asked: functions that clients have run there, outside of scheduling."""

from __future__ import annotations

import platform
import struct
import sys
import traceback
from typing import Any

from shoal.shell.profiler import frames_of


def story(wires: list[str], dask_worker: Any = None) -> list[Any]:
    """The transitions of keys, or those that a stimulus caused."""
    return [row for row in dask_worker.core.story if row[0] in wires or row[4] in wires]


def logs(count: int | None, dask_worker: Any = None) -> list[tuple[str, str]]:
    """The last lines that a worker, or a nanny, logged."""
    found: list[tuple[str, str]] = dask_worker.logs.last(count)
    return found


def scheduler_logs(count: int | None, dask_scheduler: Any = None) -> list[tuple[str, str]]:
    """The last lines that the scheduler logged."""
    return logs(count, dask_scheduler)


def call_stacks(wires: list[str] | None, dask_worker: Any = None) -> dict[str, list[str]]:
    """The lines of the stack of each running task, outermost first, without shoal's own."""
    running = dask_worker.running()
    wanted = {thread: key for thread, key in running.items() if wires is None or key in wires}
    found = {}
    for thread, frame in frames_of(wanted).items():
        lines = traceback.format_stack(frame)
        found[wanted[thread]] = [line for line in lines if "/shoal/shell/" not in line and "threading.py" not in line]
    return found


def dump_worker(dask_worker: Any = None) -> dict[str, Any]:
    """All that the core of a worker knows, as plain values."""
    core = dask_worker.core
    return {
        "id": core.id,
        "name": dask_worker.name,
        "paused": core.paused,
        "metrics": dask_worker.metrics(),
        "running": core.slots.running_keys(),
        "resources": {"total": core.slots.total, "available": core.slots.available},
        "transfers": {peer: list(records) for peer, records in core.fetcher.in_flight.items()},
        "tasks": {key: _describe(record) for key, record in core.keys.items()},
        "story": [list(row) for row in core.story],
    }


def _describe(record: Any) -> dict[str, Any]:
    return {
        "state": record.label,
        "goal": record.goal.name.lower(),
        "attempt": record.attempt.name.lower(),
        "replica": record.replica.name.lower(),
        "number": record.spec.attempt if record.spec is not None else None,
        "priority": list(record.priority),
        "dependencies": [dep.key for dep in record.deps],
        "dependents": [waiter.key for waiter in record.waiters],
        "holders": list(record.holders),
        "nbytes": record.nbytes,
        "type": record.type,
    }


def profile(prefix: str | None, start: float | None, stop: float | None, dask_worker: Any = None) -> dict[str, Any]:
    """What a worker's profiler saw."""
    found: dict[str, Any] = dask_worker.profiler.profile(prefix, start, stop)
    return found


#: Packages of which everybody wants to know the version.
_PACKAGES = ("shoal", "dask", "msgspec", "cloudpickle", "numpy", "pandas", "uvloop")


def versions(packages: list[str] | None = None) -> dict[str, Any]:
    """Versions of Python and packages in this process."""
    from importlib import metadata

    found: dict[str, Any] = {"python": platform.python_version()}
    for name in (*_PACKAGES, *(packages or ())):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    host = {"OS": platform.system(), "OS-release": platform.release(), "machine": platform.machine()}
    return {"host": {**host, "python-bits": struct.calcsize("P") * 8, "byteorder": sys.byteorder}, "packages": found}


def differences(found: dict[str, Any]) -> str:
    """Which packages are of different versions in different places, a line for each."""
    places = {"client": found["client"], "scheduler": found["scheduler"], **found["workers"]}
    lines = []
    for package in found["client"]["packages"]:
        told = {place: one["packages"].get(package) for place, one in places.items()}
        if len(set(told.values())) > 1:
            lines.append(f"{package}: " + ", ".join(f"{version} at {place}" for place, version in told.items()))
    return "\n".join(lines)
