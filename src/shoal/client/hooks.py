"""What a client hooks into the cluster: plugins, files, events."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from shoal import checks, config
from shoal.client.copies import CopyCalls
from shoal.core.effects import EventLogged
from shoal.errors import UsageError
from shoal.messages import RegisterPlugin, Restart, Subscribe
from shoal.plugins.base import NannyPlugin, SchedulerPlugin, WorkerPlugin, kind_of
from shoal.plugins.builtin import Callback, ForwardLoggingPlugin, SchedulerUploadFile, UploadFile
from shoal.shell import doors, serialize
from shoal.shell.current import process
from shoal.shell.serialize import event_of

logger = logging.getLogger("shoal.client")


class Hooks(CopyCalls):
    """Plugins, files, events."""

    # -------------------------------------------------------------------------------------------- plugins

    def register_plugin(self, plugin: Any, name: str | None = None, idempotent: bool | None = None) -> Any:
        """Install a plugin in the workers, the nannies or the scheduler, now and in those that join later.

        Parameters
        ----------
        plugin
            A :class:`WorkerPlugin`, :class:`NannyPlugin` or :class:`SchedulerPlugin`: its class says where it goes.
        name
            One of that name that is there is torn down and replaced; ``plugin.name``, or a new one, by default.
        idempotent
            Whether one of that name that is there stays instead; ``plugin.idempotent`` by default.

        Returns
        -------
        dict
            ``{"status": "OK"}`` for each worker (by address) or nanny (by name) that installed it.

        Raises
        ------
        Exception
            What its set-up raised, wherever that was.
        TypeError
            If it is none of the three.
        """
        kind = _kind(plugin)
        name = name or getattr(plugin, "name", None) or f"{type(plugin).__name__}-{uuid4().hex}"
        name = checks.name(name, "name")
        stays = checks.flag(getattr(plugin, "idempotent", False) if idempotent is None else idempotent, "idempotent")
        payload = serialize.dumps(plugin, f"the plugin {name!r}")
        checks.payload(serialize.payload_nbytes(payload), f"the plugin {name!r}", "it is too large")
        return self._sync(self._change_plugin(kind, name, payload, stays))

    def register_worker_callbacks(self, setup: Callable[..., Any] | None = None) -> Any:
        """Call ``setup`` on each worker, now and when one joins; a parameter ``dask_worker`` receives the worker."""
        if setup is None:
            return self._said()
        if not callable(setup):
            raise UsageError(f"setup must be callable, got {setup!r}")
        return self.register_plugin(Callback(setup))

    def unregister_worker_plugin(self, name: str, nanny: bool | None = None) -> Any:
        """Remove a plugin from all workers (or nannies), which tear it down.

        Raises
        ------
        UsageError
            If there is none of that name.
        """
        name = checks.name(name, "name")
        return self._sync(self._change_plugin("nanny" if nanny else "worker", name, None, False))

    def unregister_scheduler_plugin(self, name: str) -> Any:
        """Remove a plugin from the scheduler, which closes it."""
        return self._sync(self._change_plugin("scheduler", checks.name(name, "name"), None, False))

    async def _change_plugin(self, kind: str, name: str, payload: Any, idempotent: bool) -> dict[str, Any]:
        self._check_open()
        answer = await self._connection.request(lambda rid: RegisterPlugin(rid, kind, name, payload, idempotent))
        if isinstance(answer, dict):
            return self._results(answer, "raise")
        self._result(answer)
        return {}

    def upload_file(self, filename: str | Path, load: bool = True) -> Any:
        """Send a file to the scheduler and to all workers, there now or later, and import it there.

        Parameters
        ----------
        filename
            A ``.py``, ``.egg`` or ``.zip`` file, which is imported (anew, if one of its name was before), or another.
        load
            False only stores it.
        """
        on_workers, on_scheduler = UploadFile(filename, load), SchedulerUploadFile(filename, load)
        return self._sync(self._upload(on_workers, on_scheduler))

    async def _upload(self, on_workers: UploadFile, on_scheduler: SchedulerUploadFile) -> dict[str, Any]:
        name = on_workers.name
        data = serialize.dumps(on_scheduler, "the file")
        await self._change_plugin("scheduler", name, data, False)
        return await self._change_plugin("worker", name, serialize.dumps(on_workers, "the file"), False)

    def forward_logging(self, logger_name: str | None = None, level: int = logging.INFO) -> Any:
        """Have what a logger of every worker is told handled by the logger of that name here, too.

        Parameters
        ----------
        logger_name
            All loggers by default.
        level
            From which level on.
        """
        logger_name = checks.name(logger_name, "logger_name", 1000) if logger_name else None
        topic = f"forwarded-log-{logger_name or 'root'}"
        plugin = ForwardLoggingPlugin(logger_name or "", level, topic)

        async def begin() -> dict[str, Any]:
            self._subscribe(topic, _handle_record)
            return await self._change_plugin("worker", topic, serialize.dumps(plugin, "the plugin"), False)

        return self._sync(begin())

    def unforward_logging(self, logger_name: str | None = None) -> Any:
        """Undo :meth:`forward_logging`."""
        topic = f"forwarded-log-{logger_name or 'root'}"
        self._handlers.pop(topic, None)
        return self._sync(self._change_plugin("worker", topic, None, False))

    # -------------------------------------------------------------------------------------------- restarts

    def restart_workers(self, workers: Sequence[str], timeout: Any = None, raise_for_error: bool = True) -> Any:
        """Replace the processes of some workers; what they held and ran is computed again elsewhere.

        Parameters
        ----------
        workers
            Their addresses or names.
        timeout
            Seconds to wait for each to be back (60).
        raise_for_error
            Whether one that is not back is an error.

        Returns
        -------
        dict
            For each of ``workers``: ``"OK"``, ``"removed"``, ``"timed out"``, or why it could not be restarted.

        Raises
        ------
        TimeoutError
            If one is not back in time.
        UsageError
            If one is not there, or has no nanny.
        """
        named = checks.workers(workers) or []
        return self._sync(self._restart_some(named, config.seconds(timeout, "timeout") or 60.0, raise_for_error))

    async def _restart_some(self, workers: list[str], timeout: float, raise_for_error: bool) -> dict[str, str]:
        found: dict[str, str] = await self._connection.request(lambda rid: Restart(rid, timeout, True, workers))
        if raise_for_error:
            bad = {name: what for name, what in found.items() if what not in ("OK", "removed")}
            if any(what == "timed out" for what in bad.values()):
                late = ", ".join(name for name, what in bad.items() if what == "timed out")
                raise TimeoutError(f"workers that were not back after {timeout:g} s: {late}")
            if bad:
                raise UsageError("; ".join(f"{name!r} cannot be restarted: {what}" for name, what in bad.items()))
        return found

    # -------------------------------------------------------------------------------------------- events

    def log_event(self, topic: str | Sequence[str], msg: Any) -> Any:
        """Log an event under one or more topics.

        Raises
        ------
        TypeError
            If ``msg`` is not of plain values, which msgpack can carry.
        """
        event = event_of(topic, msg)
        return self._tell(event, len(msgspec.msgpack.encode(event.msg)))

    def get_events(self, topic: str | None = None) -> Any:
        """Events of a topic, the last of them, as (seconds since 1970, message); or of all topics, by topic."""

        topic = checks.optional_name(topic, "topic")

        async def ask() -> Any:
            found = await self._connection.ask("events", topic=topic)
            if topic is not None:
                return tuple((when, msg) for when, msg in found)
            return {name: tuple((when, msg) for when, msg in kept) for name, kept in found.items()}

        self._check_open()
        return self._sync(ask())

    def subscribe_topic(self, topic: str, handler: Callable[[tuple[float, Any]], Any]) -> Any:
        """Have ``handler((seconds since 1970, message))`` called for each event of a topic from now on.

        A coroutine function is awaited on the client's event loop, any other is called in a thread of its own; one
        that raises is logged. One handler for a topic: another takes its place.
        """
        if not callable(handler):
            raise UsageError(f"handler must be callable, got {handler!r}")
        topic = checks.name(topic, "topic")
        self._check_open()
        self._subscribe(topic, handler)
        return self._said()

    def _subscribe(self, topic: str, handler: Callable[[tuple[float, Any]], Any]) -> None:
        self._connection.on_event = self._on_event
        self._handlers[topic] = handler
        self._connection.say(Subscribe(topic))

    def unsubscribe_topic(self, topic: str) -> Any:
        """Stop what :meth:`subscribe_topic` began.

        Raises
        ------
        UsageError
            If there was no such subscription.
        """
        if self._handlers.pop(topic, None) is None:
            raise UsageError(f"there is no subscription of topic {topic!r}")
        return self._tell(Subscribe(topic, on=False))

    def _listen(self) -> None:
        """Hear of what tasks print and warn of for all clients."""
        self._subscribe("print", _on_print)
        self._subscribe("warn", _on_warn)

    def _on_event(self, event: EventLogged) -> None:
        handler = self._handlers.get(event.topic)
        if handler is None:
            return
        told = (event.when, event.msg)
        if inspect.iscoroutinefunction(handler):
            task = asyncio.get_running_loop().create_task(doors.wait("handler", handler, told))
            self._handling.add(task)
            task.add_done_callback(self._handling.discard)
        else:
            self._run_callback(handler, told, "handler")


#: What was printed or warned of last: other clients of this process hear of it, too.
_told: deque[str] = deque(maxlen=1000)


def _is_news(told: dict[str, Any]) -> bool:
    """Whether this process has not printed it yet, as the one that sent it or for another client."""
    if told["from"] == process() or told["id"] in _told:
        return False
    _told.append(told["id"])
    return True


def _on_print(event: tuple[float, Any]) -> None:
    """A task has printed something for all clients."""
    told = event[1]
    if _is_news(told):
        file = sys.stderr if told["file"] == 2 else sys.stdout
        if file is None or file.closed:
            return  # this program has closed it, and wants to see nothing
        file.write(told["text"])
        if told["flush"]:
            file.flush()


def _on_warn(event: tuple[float, Any]) -> None:
    """A task has warned all clients."""
    told = event[1]
    if _is_news(told):
        text, kind = serialize.loads_text(told["warning"])
        warnings.warn(text, kind, stacklevel=2)


def _handle_record(event: tuple[float, Any]) -> None:
    """Have a log record of a worker handled here."""
    _, fields = event
    logging.getLogger(fields["name"]).handle(logging.makeLogRecord(fields))


def _kind(plugin: Any) -> str:
    try:
        return kind_of(plugin)
    except TypeError:
        if isinstance(plugin, type) or not hasattr(plugin, "setup"):
            raise
    bases = f"{WorkerPlugin.__name__}, {NannyPlugin.__name__} or {SchedulerPlugin.__name__}"
    text = f"{type(plugin).__name__} is taken for a plugin of workers; derive it from shoal's {bases}"
    warnings.warn(text, DeprecationWarning, stacklevel=4)
    return "worker"
