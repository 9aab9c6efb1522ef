"""Dumps of a cluster's state: written to a file, and read without the cluster."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from shoal import private
from shoal.core.scheduler import explain, snapshot
from shoal.core.scheduler.state import SchedulerState
from shoal.errors import UsageError
from shoal.ids import key_to_wire

#: Formats of dumps, with the endings of their files.
FORMATS = {"msgpack": ".msgpack.gz", "yaml": ".yaml"}


def write(filename: str, state: dict[str, Any], exclude: list[str], format: str) -> str:
    """Write ``state``; return the name of the file.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    for side in [state["scheduler"], *state["workers"].values()]:
        for name in exclude:
            side.pop(name, None)
        for task in side.get("tasks", {}).values():
            for name in exclude:
                task.pop(name, None)
    ending = FORMATS[format]
    path = filename if filename.endswith(ending) else filename + ending
    if format == "msgpack":
        with private.replacing(path) as target, gzip.GzipFile("", "wb", 4, target) as file:
            file.write(msgspec.msgpack.encode(state))
    else:
        private.write(path, msgspec.yaml.encode(state))
    return path


class DumpArtefact(Mapping[str, Any]):
    """A dump of a cluster's state, as plain values under ``scheduler`` and ``workers`` (by address).

    >>> dump = DumpArtefact.from_url("dask-cluster-dump.msgpack.gz")  # doctest: +SKIP
    >>> print(dump.why("sum-3f2a"))  # doctest: +SKIP
    'sum-3f2a' waits, for 12.0 s, for 1 of 2 inputs: ...
    """

    def __init__(self, state: dict[str, Any]) -> None:
        self.dump = state
        self._state: SchedulerState | None = None

    @classmethod
    def from_url(cls, url: str | Path) -> Self:
        """Read the file that :meth:`Client.dump_cluster_state` wrote.

        Raises
        ------
        UsageError
            If its name has no ending of a dump, or it holds something else.
        """
        name = str(url)
        try:
            if name.endswith(FORMATS["msgpack"]):
                state = msgspec.msgpack.decode(gzip.decompress(Path(name).read_bytes()))
            elif name.endswith(FORMATS["yaml"]):
                state = msgspec.yaml.decode(Path(name).read_bytes())
            else:
                raise UsageError(f"{name} is no dump: their names end in {' or '.join(FORMATS.values())}")
        except (msgspec.DecodeError, gzip.BadGzipFile, EOFError) as error:
            raise UsageError(f"{name} cannot be read as a dump: {error}") from error
        if not isinstance(state, dict) or set(state) != {"scheduler", "workers"}:
            raise UsageError(f"{name} holds something else than the dump of a cluster")
        return cls(state)

    def __getitem__(self, key: str) -> Any:
        return self.dump[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.dump)

    def __len__(self) -> int:
        return len(self.dump)

    def __repr__(self) -> str:
        return f"<DumpArtefact: {len(self.dump['scheduler'].get('tasks', ()))} tasks, {len(self['workers'])} workers>"

    def state(self) -> SchedulerState:
        """The scheduler's state as it was, with its records and indexes.

        Raises
        ------
        UsageError
            If fields that it takes were left out of the dump.
        """
        if self._state is None:
            try:
                self._state = snapshot.load(self.dump["scheduler"])
            except KeyError as error:
                raise UsageError(f"this dump was written without {error}, so the state cannot be restored") from error
        return self._state

    def why(self, key: Any) -> str:
        """As :meth:`Client.why`, at the time of the dump."""
        state = self.state()
        return explain.why(state, key_to_wire(key), state.now)

    def scheduler_tasks_in_state(self, state: str | None = None) -> dict[str, Any]:
        """Tasks, as the scheduler saw them, in one state or all."""
        return _in_state(self.dump["scheduler"]["tasks"], state)

    def worker_tasks_in_state(self, state: str | None = None) -> dict[str, Any]:
        """Tasks, as the workers saw them, in one state or all."""
        found: dict[str, Any] = {}
        for worker in self.dump["workers"].values():
            found |= _in_state(worker.get("tasks", {}), state)
        return found

    def scheduler_story(self, *key_or_stimulus_id: str) -> dict[str, list[Any]]:
        """The scheduler's transitions of each key, or those that each stimulus caused."""
        return _stories(self.dump["scheduler"]["story"], key_or_stimulus_id)

    def worker_story(self, *key_or_stimulus_id: str) -> dict[str, list[Any]]:
        """The workers' transitions of each key, or those that each stimulus caused."""
        rows = [[address, *row] for address, worker in self.dump["workers"].items() for row in worker.get("story", ())]
        return _stories(rows, key_or_stimulus_id)

    def missing_workers(self) -> list[str]:
        """Addresses of workers that the scheduler knew and that did not answer."""
        return [address for address, worker in self.dump["workers"].items() if "error" in worker]


def _in_state(tasks: dict[str, Any], state: str | None) -> dict[str, Any]:
    return {key: task for key, task in tasks.items() if state is None or task["state"] == state}


def _stories(rows: list[list[Any]], wanted: tuple[str, ...]) -> dict[str, list[Any]]:
    return {name: [row for row in rows if name in row] for name in wanted}
