"""What code in the scheduler's own process can ask of it: the methods of ``Scheduler``, beside starting and closing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from shoal.core.scheduler import info
from shoal.errors import UsageError
from shoal.ids import ClientId, key_from_wire, key_to_wire
from shoal.messages import Rebalance, Replicate, Restart
from shoal.programs.calls import call_function
from shoal.programs.scheduler import SchedulerProgram


class SchedulerCalls:
    """Questions and orders, as clients have them too."""

    program: SchedulerProgram

    # -------------------------------------------------------------------------------------------- questions

    def identity(self, n_workers: int = -1) -> dict[str, Any]:
        """Who it is, and (up to ``n_workers`` of) its workers by address."""
        return {**info.identity(self.program.core, n_workers), "address": self.program.addresses[0]}

    def workers_list(self, workers: Iterable[str] | None) -> list[str]:
        """Addresses of the workers that answer to these names, addresses or hosts; of all by default."""
        named = None if workers is None else [str(worker) for worker in workers]
        return [
            worker.address
            for worker in self.program.core.state.workers.values()
            if named is None or any(worker.answers_to(name) for name in named)
        ]

    def adaptive_target(self, target_duration: Any = None) -> int:
        """How many workers there should be for the work that is there to be done within ``target_duration``."""
        return self.program.adaptive_target(target_duration)

    def workers_to_close(
        self,
        memory_ratio: float | None = None,
        n: int | None = None,
        key: Any = None,
        minimum: int | None = None,
        target: int | None = None,
        attribute: str = "address",
    ) -> list[Any]:
        """The workers that are needed least; criteria as for :meth:`Client.retire_workers`."""
        criteria = {"memory_ratio": memory_ratio, "n": n, "key": key, "minimum": minimum, "target": target}
        return self.program.workers_to_close(
            attribute=attribute, **{name: value for name, value in criteria.items() if value is not None}
        )

    def get_events(self, topic: str | None = None) -> Any:
        """Events of a topic, as (seconds since 1970, message); or of all topics, by topic."""
        found = info.events(self.program.core, topic)
        if topic is not None:
            return tuple((when, msg) for when, msg in found)
        return {name: tuple((when, msg) for when, msg in kept) for name, kept in found.items()}

    def get_logs(self, start: int = 0, n: int | None = None, timestamps: bool = False) -> list[Any]:
        """Lines that it logged: level and text, from number ``start`` on, the last ``n`` of them.

        The texts begin with their time anyway, so ``timestamps`` changes nothing.
        """
        found = self.program.logs.last(None)[start:]
        return found if n is None else found[max(0, len(found) - n) :]

    def get_task_stream(
        self, start: Any = None, stop: Any = None, count: int | None = None, start_index: int | None = None
    ) -> list[dict[str, Any]]:
        """Executions that ended lately, oldest first, as :meth:`Client.get_task_stream` has them.

        ``start_index`` leaves out so many of those that are kept.
        """
        rows = info.task_stream(self.program.core, start, stop, None)[start_index or 0 :]
        names = ("key", "worker", "thread", "status", "start", "stop", "nbytes", "type", "peak_memory")
        found = [dict(zip(names, row, strict=True)) for row in rows]
        for row in found:
            row["key"] = key_from_wire(row["key"])
            row["startstops"] = [{"action": "compute", "start": row.pop("start"), "stop": row.pop("stop")}]
        return found if count is None else found[max(0, len(found) - count) :]

    def story(self, *keys_or_tasks_or_stimuli: Any) -> list[Any]:
        """The transitions of keys, or those that stimuli caused."""
        wires = [
            getattr(one, "key", None) or key_to_wire(one) if not isinstance(one, str) else one
            for one in keys_or_tasks_or_stimuli
        ]
        return self.program.core.state.story_of(*wires)

    async def get_cluster_state(self, exclude: Iterable[str] = ()) -> dict[str, Any]:
        """All that it knows, as plain values, without the fields of tasks and workers that ``exclude`` names."""
        found = info.snapshot(self.program.core)
        left_out = set(exclude)
        for table in ("tasks", "workers"):
            found[table] = {
                name: {field: value for field, value in row.items() if field not in left_out}
                for name, row in found[table].items()
            }
        return {name: value for name, value in found.items() if name not in left_out}

    # -------------------------------------------------------------------------------------------- plugins, events

    async def add_plugin(
        self, plugin: Any, *, idempotent: bool = False, name: str | None = None, **kwargs: Any
    ) -> None:
        """Install a plugin here; one of its name is replaced, or stays if ``idempotent``.

        Raises
        ------
        Exception
            What its ``start`` raised.
        """
        await self.program.add_plugin(plugin, name, idempotent)

    async def register_scheduler_plugin(
        self, plugin: Any, name: str | None = None, idempotent: bool | None = None
    ) -> None:
        """As :meth:`add_plugin`; idempotent by default if the plugin says so."""
        stays = bool(getattr(plugin, "idempotent", False)) if idempotent is None else idempotent
        await self.program.add_plugin(plugin, name, stays)

    async def remove_plugin(self, name: str | None = None) -> None:
        """Remove a plugin, which is closed.

        Raises
        ------
        UsageError
            If no name is given.
        KeyError
            If there is none of that name.
        """
        if name is None:
            raise UsageError("name the plugin that is to be removed")
        await self.program.remove_plugin(name)

    def subscribe_topic(self, topic: str, client: str) -> None:
        """Tell the client of that id of each event of a topic from now on."""
        self.program.core.topics.subscribe(ClientId(client), topic, True)

    # -------------------------------------------------------------------------------------------- workers and copies

    async def retire_workers(
        self,
        workers: Sequence[str] | None = None,
        names: Sequence[Any] | None = None,
        close_workers: bool = False,
        remove: bool = True,
        stimulus_id: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Have workers leave, once all that only they hold is on others: which left, which stay and why, which died.

        Criteria (``kwargs``) as for :meth:`Client.retire_workers`; there is ``force``, ``timeout`` and ``reason``, too.
        """
        named = None if workers is None and names is None else [*(workers or ()), *(names or ())]
        return await self.program.retire_workers(named, close_workers=close_workers, remove=remove, **kwargs)

    async def close_worker(self, worker: str) -> None:
        """Have a worker leave and end, once all that only it holds is on others."""
        await self.program.retire_workers([worker], close_workers=True, reason="close_worker was called")

    async def remove_worker(
        self, address: str, stimulus_id: str | None = None, expected: bool = False, close: bool = True
    ) -> dict[str, Any]:
        """Have a worker go at once, whatever only it holds: that is computed anew, or lost if it was scattered."""
        return await self.program.retire_workers(
            [address], close_workers=close, force=True, timeout=0.0, reason="remove_worker was called"
        )

    async def replicate(
        self,
        keys: Sequence[Any],
        n: int | None = None,
        workers: Sequence[str] | None = None,
        branching_factor: int = 2,
        delete: bool = True,
        stimulus_id: str | None = None,
    ) -> dict[str, Any]:
        """Have each key on ``n`` of ``workers``; returns what could not be done. ``delete`` has no effect."""
        wires = [key_to_wire(key) for key in keys]
        named = None if workers is None else list(workers)
        told: dict[str, Any] = await self.program.ask(lambda rid: Replicate(rid, wires, n, named, branching_factor))
        return told

    async def rebalance(
        self, keys: Sequence[Any] | None = None, workers: Sequence[str] | None = None, stimulus_id: str | None = None
    ) -> dict[str, Any]:
        """Move results between workers until each holds about its share; returns what could not be done."""
        wires = None if keys is None else [key_to_wire(key) for key in keys]
        named = None if workers is None else list(workers)
        told: dict[str, Any] = await self.program.ask(lambda rid: Rebalance(rid, wires, named))
        return told

    async def restart(
        self, client: Any = None, timeout: float = 30, wait_for_workers: bool = True, stimulus_id: str | None = None
    ) -> None:
        """Forget all tasks and restart every worker process.

        Raises
        ------
        UsageError
            If workers are not back in time, naming them.
        """
        await self.program.ask(lambda rid: Restart(rid, float(timeout), wait_for_workers))

    async def restart_workers(
        self,
        workers: Sequence[str] | None = None,
        client: Any = None,
        timeout: float = 30,
        wait_for_workers: bool = True,
        on_error: str = "raise",
        stimulus_id: str | None = None,
    ) -> dict[str, str]:
        """Replace the processes of some workers: what came of it, by their names.

        Raises
        ------
        UsageError
            If one is not back, unless ``on_error`` is ``"return"``.
        """
        named = self.workers_list(None) if workers is None else [str(worker) for worker in workers]
        told: dict[str, str] = await self.program.ask(lambda rid: Restart(rid, float(timeout), wait_for_workers, named))
        bad = {name: what for name, what in told.items() if what not in ("OK", "removed")}
        if bad and on_error == "raise":
            raise UsageError("; ".join(f"{name!r} was not restarted: {what}" for name, what in bad.items()))
        return told

    async def run_function(
        self,
        comm: Any,
        function: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        wait: bool = True,
    ) -> Any:
        """Call a function here; a parameter ``dask_scheduler`` receives this object. ``comm``, ``wait``: no effect."""
        return await call_function(function, tuple(args), kwargs or {}, dask_scheduler=self)
