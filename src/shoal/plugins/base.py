"""What plugins derive from: the kind says where a plugin runs. Every hook may be plain or async where that is said."""

from __future__ import annotations

from typing import Any


class WorkerPlugin:
    """Hooked into every worker that is there, and into each that joins later before it runs a task.

    Examples
    --------
    >>> class Counter(WorkerPlugin):
    ...     def setup(self, worker):
    ...         self.finished = 0
    ...
    ...     def transition(self, key, start, finish, **kwargs):
    ...         self.finished += finish == "held"
    """

    #: Whether registering another under the same name changes nothing.
    idempotent = False

    def setup(self, worker: Any) -> Any:
        """Called with the worker; may be async."""

    def teardown(self, worker: Any) -> Any:
        """Called when the plugin is removed or the worker closes; may be async."""

    def transition(self, key: str, start: str, finish: str, **kwargs: Any) -> None:
        """An execution or a copy went from one state to another (docs/machines.md has them)."""


class NannyPlugin:
    """Hooked into every nanny that is there, and into each that joins later before it starts its worker."""

    #: Whether registering another under the same name changes nothing.
    idempotent = False
    #: Whether the worker is restarted after the set-up.
    restart = False

    def setup(self, nanny: Any) -> Any:
        """Called with the nanny; may be async."""

    def teardown(self, nanny: Any) -> Any:
        """Called when the plugin is removed or the nanny closes; may be async."""


class SchedulerPlugin:
    """Hooked into the scheduler. Hooks that a plugin does not define cost nothing."""

    #: Whether registering another under the same name changes nothing.
    idempotent = False

    async def start(self, scheduler: Any) -> None:
        """Called when it is registered."""

    async def before_close(self) -> None:
        """Called before the scheduler begins to close."""

    async def close(self) -> None:
        """Called when it is removed or the scheduler closes."""

    def update_graph(
        self,
        scheduler: Any,
        *,
        client: str,
        keys: set[Any],
        tasks: list[Any],
        annotations: dict[str, dict[Any, Any]],
        priority: dict[Any, Any],
        stimulus_id: str,
        **kwargs: Any,
    ) -> None:
        """Tasks arrived, ``keys`` of which the client wants."""

    def restart(self, scheduler: Any) -> None:
        """All tasks were forgotten and all workers are restarted."""

    def transition(self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str, **kwargs: Any) -> None:
        """A task went from one state to another."""

    def add_worker(self, scheduler: Any, worker: str) -> Any:
        """A worker joined; may be async."""

    def retire(self, scheduler: Any, worker: str, reason: str) -> Any:
        """A worker is to leave, and what only it holds is being moved; may be async.

        ``remove_worker`` follows with ``safe=True``, unless it dies, or stays for want of another that can have it.
        """

    def remove_worker(self, scheduler: Any, worker: str, *, stimulus_id: str, **kwargs: Any) -> Any:
        """A worker left; may be async.

        ``kwargs`` has ``reason``, ``expected`` and ``safe``: whether it retired, and nothing was lost by it.
        """

    def worker_died(self, scheduler: Any, death: dict[str, Any]) -> Any:
        """A nanny tells how its worker process ended; may be async.

        ``death`` has ``worker`` (its address), ``name``, ``cause``, ``reason``, ``exitcode``, ``signal``, ``running``
        (the keys in its threads), ``peak`` (bytes), ``output`` (its last words) and ``restarting``.
        """

    def add_client(self, scheduler: Any, client: str) -> None:
        """A client connected."""

    def remove_client(self, scheduler: Any, client: str) -> None:
        """A client left."""

    def valid_workers_downscaling(self, scheduler: Any, workers: list[Any]) -> list[Any]:
        """Those of ``workers`` that may be removed when the cluster shrinks."""
        return workers

    def log_event(self, topic: str, msg: Any) -> None:
        """An event was logged under a topic."""


#: The hooks that are called while a scheduler runs.
HOOKS = (
    "update_graph", "restart", "transition", "add_worker", "retire", "remove_worker", "worker_died", "add_client",
    "remove_client", "valid_workers_downscaling", "log_event",
)  # fmt: skip


def kind_of(plugin: Any) -> str:
    """``"worker"``, ``"nanny"`` or ``"scheduler"``.

    Raises
    ------
    TypeError
        If it derives from none of the three.
    """
    for name, base in (("worker", WorkerPlugin), ("nanny", NannyPlugin), ("scheduler", SchedulerPlugin)):
        if isinstance(plugin, base):
            return name
    raise TypeError(
        f"{plugin!r} is no plugin: derive its class from shoal.WorkerPlugin, shoal.NannyPlugin or shoal.SchedulerPlugin"
    )


def hooks_of(plugin: SchedulerPlugin) -> list[str]:
    """The hooks that a plugin of the scheduler's defines itself."""
    base = SchedulerPlugin
    return [hook for hook in HOOKS if getattr(type(plugin), hook, None) is not getattr(base, hook)]
