"""The nanny program: its core, a worker process, a link to the scheduler."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final
from uuid import uuid4

from shoal import config, private
from shoal.checks import text
from shoal.core.effects import CallUser, Effect, InstallPlugin, Log, Send, Signal, Spawn, Stop
from shoal.core.events import (
    CallDone,
    ChildExited,
    ChildFailed,
    ChildReady,
    Command,
    Event,
    LinkLost,
    MemorySample,
    Received,
)
from shoal.core.nanny.child import ChildState
from shoal.core.nanny.reactor import NannyCore
from shoal.errors import StartError
from shoal.messages import AskRetirement, Bye, Leave, NannyRegistered, RegisterNanny, ToNanny
from shoal.programs.calls import call_function, call_user
from shoal.programs.incarnation import Incarnation
from shoal.programs.orders import Orders
from shoal.programs.plugins import Plugins
from shoal.programs.processes import Child, Starter, start_method
from shoal.security import pack
from shoal.shell import doors
from shoal.shell.addresses import Listening
from shoal.shell.driver import Driver
from shoal.shell.link import Identity, Link
from shoal.shell.logs import LogKeeper
from shoal.shell.loops import first_of, in_thread
from shoal.shell.network import dial_lasting, local_address
from shoal.shell.scratch import Scratch, remove_tree
from shoal.shell.serialize import event_of
from shoal.shell.stories import Ending
from shoal.shell.tasks import Tasks, limited

logger = logging.getLogger("shoal.nanny")

#: Seconds that each step of an end may take.
_CLOSING: Final = 8.0


class NannyMemory:
    """What the nanny looks at: the limit, and the fraction of it at which the worker is ended."""

    def __init__(self, limit: int) -> None:
        self.memory_limit = limit
        name = "distributed.worker.memory.terminate"
        self.memory_terminate_fraction = config.fraction(config.get(name, 0.95), name)
        name = "distributed.worker.memory.monitor-interval"
        self.memory_monitor_interval = config.seconds(config.get(name, 0.1), name) or 0.1


class NannyProgram:
    """Runs a :class:`NannyCore` on the current event loop.

    Parameters
    ----------
    scheduler
        Addresses of the scheduler.
    secret
        The cluster's secret.
    name, memory_limit, nthreads
        Of the worker.
    listen
        Where the worker listens: addresses to try, and what others are told, if that is another.
    worker_options
        Further arguments of the worker.
    env
        Environment of the worker, over all else.
    overlay
        Configuration of the worker, over the nanny's own.
    local_directory
        Where scratch directories are made.
    reconnect
        Whether a worker that ended by itself is followed by another.
    start_timeout
        Seconds that a worker process may take to be ready; ``shoal.nanny.start-timeout`` by default.
    worker_class
        Pickled class of the worker, in hexadecimal digits; empty for :class:`Worker`.
    listen_self
        Where the nanny itself listens; where only this machine reaches it, by default.
    public
        What users' functions and plugins get as the nanny; this object by default.
    """

    def __init__(
        self,
        scheduler: list[str],
        secret: bytes,
        name: str,
        listen: tuple[list[str], str] | Listening,
        *,
        memory_limit: int = 0,
        nthreads: int = 1,
        worker_options: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        overlay: dict[str, Any] | None = None,
        local_directory: str | None = None,
        reconnect: bool = True,
        start_timeout: float | None = None,
        worker_class: str = "",
        listen_self: Listening | None = None,
        public: Any = None,
    ) -> None:
        self.id = f"Nanny-{uuid4().hex}"
        self.name, self.nthreads = name, nthreads
        self.scheduler, self.listen = scheduler, Listening(*listen)
        self.env = config.effective_environment(env or {}, overlay)
        self.memory_manager = NannyMemory(memory_limit)
        self.ending = Ending()
        self.finished = self.ending.finished
        self._starter = Starter(start_method())
        self._overlay = overlay
        self._secret = secret
        self._options = {"nthreads": nthreads, "memory_limit": memory_limit, **(worker_options or {})}
        self._worker_class = worker_class
        self._identity = Identity("nanny", self.id, secret, {"scheduler": ToNanny})
        self._link: Link | None = None
        self._orders = Orders(self, secret, listen_self or Listening([local_address()]))
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks(f"the nanny of worker {name}")
        self._registered = asyncio.Event()
        self._up = asyncio.Event()
        #: Set when the scheduler could not let the worker go.
        self._stays = asyncio.Event()
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        #: The worker process that there is, or was last.
        self._incarnation: Incarnation | None = None
        self._scratch = Scratch("nanny", local_directory)
        self.local_directory = str(self._scratch.path)
        #: Where the files of the worker are; empty where there is none.
        self.worker_dir = ""
        #: Where the worker listens now.
        self.worker_address = ""
        if start_timeout is None:
            given = config.get("shoal.nanny.start-timeout", 60.0)
            start_timeout = config.seconds(given, "shoal.nanny.start-timeout") or 60.0
        self.core = NannyCore(
            name,
            memory_limit,
            self.memory_manager.memory_terminate_fraction,
            start_timeout,
            int(config.get("shoal.nanny.crash-limit", 5)),
            reconnect,
        )
        self._public = public if public is not None else self
        self._hooks = Plugins("nanny", self._public)
        self.logs = LogKeeper(config.log_length(), f"worker {name} ")
        self.logs.attach("shoal.nanny")
        self.driver = Driver(self.core, self._perform, self._loop, self._on_crash)

    @property
    def reason(self) -> str:
        """Why it ends."""
        return self.ending.reason

    def _on_crash(self, error: BaseException) -> None:
        """The core failed: its story is written, and its worker ends with it."""
        self.ending.broke("nanny", error, self.driver.turn, ())

    @property
    def pid(self) -> int | None:
        """Process id of the worker."""
        return self.process.pid if self.process is not None and self.process.alive else None

    @property
    def process(self) -> Child | None:
        """The worker process that there is, or was last."""
        return None if self._incarnation is None else self._incarnation.child

    def is_alive(self) -> bool:
        """Whether there is a worker process."""
        return self.process is not None and self.process.alive

    @property
    def address(self) -> str:
        """Where it answers calls (see :class:`shoal.rpc`)."""
        return self._orders.address

    @property
    def memory_limit(self) -> int:
        """Bytes that the worker may use; 0 is no limit."""
        return self.memory_manager.memory_limit

    @property
    def plugins(self) -> dict[str, Any]:
        """The plugins that are installed, by name."""
        return self._hooks.installed

    # -------------------------------------------------------------------------------------------- life

    async def start(self, timeout: float = 30.0) -> None:
        """Listen, connect to the scheduler, register, install plugins, and begin to start the worker process.

        Raises
        ------
        ConnectError
            If the scheduler cannot be reached within ``timeout`` seconds.
        StartError
            If it did not answer in that time.
        """
        await self._orders.start()
        self._link = await dial_lasting(self.scheduler, self._identity, self._on_messages, self._on_closed, timeout)
        self._link.send(RegisterNanny(self.name, text(socket.gethostname()), os.getpid(), self.address))
        await first_of(timeout, self._registered, self.finished)
        if not self._registered.is_set():
            raise StartError(
                self.reason
                or f"was not accepted within {timeout:g} s, or the set-up of a plugin takes longer than that"
            )
        self._push(Command("start"))

    async def wait_until_up(self) -> None:
        """Wait until the scheduler knows the worker process.

        Raises
        ------
        StartError
            If the nanny gave up, or is closed, or there is to be none.
        """
        core = self.core
        await self._until(
            lambda: self._is_up() or self.finished.is_set() or (core.state is ChildState.DOWN and not core.wish_is_up)
        )
        if not self._is_up():
            raise StartError(self.reason or core.failure or "the worker was killed meanwhile")

    def _is_up(self) -> bool:
        return self.core.state is ChildState.UP and self._up.is_set()

    async def instantiate(self, timeout: float | None = None) -> str:
        """Start the worker process, unless there is one, and wait until the scheduler knows it.

        Returns
        -------
        str
            ``"running"``, or ``"timed out"`` after ``timeout`` seconds.

        Raises
        ------
        StartError
            If it cannot be started, with its reason.
        """
        self._push(Command("start"))
        try:
            async with asyncio.timeout(timeout):
                await self.wait_until_up()
        except TimeoutError:
            return "timed out"
        return "running"

    async def kill(self, timeout: float = 2.0, reason: str = "") -> None:
        """End the worker process: it is asked to, and killed after 0.8 of ``timeout`` seconds. No other is started.

        Returns once it is gone and joined, and the scheduler was told.
        """
        core, before = self.core, self.core.incarnation
        self._push(Command("kill", reason, _seconds(timeout)))
        gone = (ChildState.DOWN, ChildState.BACKOFF, ChildState.GIVEN_UP)
        await self._until(lambda: core.state in gone or core.incarnation > before)

    async def restart(self, timeout: float = 30.0, reason: str = "") -> Any:
        """Replace the worker process.

        Returns
        -------
        str or Exception
            ``"OK"``, ``"timed out"`` after ``timeout`` seconds (it goes on all the same), or why it cannot be.
        """
        before = self.core.incarnation
        deadline = monotonic() + _seconds(timeout)
        self._push(Command("restart", reason, _seconds(timeout)))
        try:
            async with asyncio.timeout(max(0.0, deadline - monotonic())):
                await self._until(
                    lambda: (
                        (self.core.incarnation > before and self._is_up())
                        or self.finished.is_set()
                        or (self.core.state is ChildState.DOWN and not self.core.wish_is_up)
                    )
                )
        except TimeoutError:
            return "timed out"
        return "OK" if self._is_up() else StartError(self.reason or "the worker was killed meanwhile")

    async def close_gracefully(self, reason: str = "") -> None:
        """When the worker goes, close; do not start another."""
        self._push(Command("leave", reason))

    async def retire(self, reason: str, timeout: float, restart: bool = False) -> bool:
        """Have the scheduler move what only the worker holds, and let both go; return whether it has.

        Running tasks have half of ``timeout`` seconds to end; then they run elsewhere.
        """
        self._stays.clear()
        self._send(AskRetirement(reason, timeout / 2, restart))
        await first_of(timeout, self.finished, self._stays)
        return self.finished.is_set()

    def end(self, reason: str) -> None:
        """Begin to end: the worker process first."""
        self._push(Command("close", reason, 2.5))

    async def close(self, reason: str = "closed", timeout: float = 2.5) -> None:
        """End the worker process and all else that there is. Whoever calls it returns once that is done."""
        self._push(Command("close", reason, _seconds(timeout)))
        # Each step has a limit of its own: whatever one of them waits for in vain, the others are made.
        await limited(f"the end of worker {self.name}", self.finished.wait, _seconds(timeout) + _CLOSING)
        self.finished.set()
        if self._link is not None:
            self._link.send(Bye(text(self.reason or reason)))
            self._link.close(reason)
        self._orders.close()
        await limited("the teardown of plugins", self._hooks.close, _CLOSING)
        await self._tasks.end(_CLOSING)
        self.driver.close()
        await limited("the end of the process that forks workers", self._starter.close, _CLOSING)
        self.logs.close()
        await limited("the removal of scratch files", partial(in_thread, self._scratch.close), _CLOSING)

    def _push(self, event: Event) -> None:
        """Tell the core, and whoever waits for what may have come of it."""
        self.driver.push(event)
        for condition, future in tuple(self._waiting):
            if not future.done() and condition():
                future.set_result(None)

    async def _until(self, condition: Callable[[], bool]) -> None:
        if condition():
            return
        entry = (condition, self._loop.create_future())
        self._waiting.append(entry)
        try:
            await entry[1]
        finally:
            self._waiting.remove(entry)

    # -------------------------------------------------------------------------------------------- the scheduler

    def _on_messages(self, link: Link, messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, NannyRegistered):
                self._tasks.spawn(self._install(message.plugins))
            elif isinstance(message, Leave) and not message.on:
                self._stays.set()
        self._push(Received("", [message for message in messages if not isinstance(message, NannyRegistered)]))

    async def _install(self, plugins: dict[str, Any]) -> None:
        await self._hooks.install_all(plugins)
        self._registered.set()

    def _on_closed(self, link: Link, reason: str) -> None:
        self._push(LinkLost("scheduler", link.peer_id, reason))

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Spawn():
                self._tasks.spawn(self._run(effect.incarnation))
            case Signal():
                # SIGTERM from elsewhere means that the machine ends: a worker retires then.
                self._signal(signal.SIGKILL if effect.hard else signal.SIGINT)
            case Send():
                self._send(effect.message)
            case Log():
                logger.log(effect.level, "%s", effect.text)
            case CallUser():
                self._tasks.spawn(self._call(effect))
            case InstallPlugin():
                self._tasks.spawn(self._change_plugin(effect))
            case Stop():
                self.ending.stop(effect.reason, effect.failed)

    def _send(self, message: Any) -> None:
        if self._link is not None:
            self._link.send(message)

    async def _call(self, effect: CallUser) -> None:
        payload = await call_user(effect.payload, dask_worker=self._public, dask_nanny=self._public)
        self._push(CallDone(effect.rid, effect.to, payload))

    async def _change_plugin(self, effect: InstallPlugin) -> None:
        payload = await self._hooks.change(effect.name, effect.payload)
        plugin = self._hooks.installed.get(effect.name)
        if effect.payload is not None and getattr(plugin, "restart", False):
            await self.restart(reason=f"was restarted for the plugin {effect.name}")
        self._push(CallDone(effect.rid, effect.to, payload))

    async def plugin_add(self, plugin: Any, name: str | None = None) -> str:
        """Install a plugin in this nanny alone; return its name. The worker is restarted if it asks for that."""
        name = await self._hooks.add(plugin, name)
        if getattr(plugin, "restart", False) and self.is_alive():
            await self.restart(reason=f"was restarted for the plugin {name}")
        return name

    async def plugin_remove(self, name: str) -> None:
        """Tear a plugin down and forget it."""
        await self._hooks.remove(name)

    def log_event(self, topic: str | Sequence[str], msg: Any) -> None:
        """Log an event under one or more topics; callable in any thread.

        Raises
        ------
        TypeError
            If the message cannot travel.
        """
        self._loop.call_soon_threadsafe(self._send, event_of(topic, msg))

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function, plain or async, here; a parameter ``dask_worker`` or ``dask_nanny`` receives the nanny."""
        return await call_function(function, args, kwargs, dask_worker=self._public, dask_nanny=self._public)

    def get_logs(self, n: int | None = None) -> list[tuple[str, str]]:
        """Level and text of the last lines that it logged; the last words of workers that died are among them."""
        return self.logs.last(n)

    # -------------------------------------------------------------------------------------------- the process

    def _signal(self, number: int) -> None:
        if self._incarnation is not None:
            self._incarnation.signal(number)

    def _supervision(self, directory: str) -> dict[str, Any]:
        return {
            "scheduler": self.scheduler, "secret": pack(self._secret), "listen": self.listen, "slot": self.id,
            "directory": directory, "nanny_directory": self.local_directory,
        }  # fmt: skip

    async def _run(self, number: int) -> None:
        """Follow one process from its start to its exit. Whatever fails on the way is a start that failed."""
        directory = Path(self.local_directory) / f"worker-{number}"
        one = self._incarnation = Incarnation(number, self._starter)
        self._up.clear()
        try:
            self._scratch.renew()
            private.Directory(directory)
            self.worker_dir = str(directory)
            options = {
                "config": config.export(self._overlay),
                "sys_path": config.import_path(),
                "supervision": self._supervision(str(directory)),
                "worker_class": self._worker_class,
                "worker": {"name": self.name, **self._options},
            }
            threads = self.nthreads + sum((self._options.get("executors") or {}).values())
            exited = await one.run(
                options,
                self.env,
                threads,
                lambda data: self._on_report(data, number),
                lambda resident: self._on_memory(resident, number),
                bool(config.get("distributed.worker.daemon", True)),
            )
        except BaseException as error:
            if doors.is_for_us(error, awaiting=True):
                raise
            self._push(ChildFailed(number, text(str(error) if isinstance(error, StartError) else _no_start(error))))
            exited = ChildExited(number, None, None, [])
        self._up.clear()
        self.worker_address = self.worker_dir = ""
        self._push(exited)
        await in_thread(remove_tree, directory)

    def _on_memory(self, resident: int, number: int) -> float:
        """Have the core judge what the process holds; return the seconds until the next look."""
        longest = self.memory_manager.memory_monitor_interval
        if resident:
            self._push(MemorySample(number, resident))
        return self.core.sample_interval(resident, longest) if resident else longest

    def _on_report(self, data: bytes, number: int) -> None:
        for line in data.splitlines():
            said = json.loads(line)
            if "error" in said:
                self._push(ChildFailed(number, text(said["error"])))
            elif "registered" in said:
                self._up.set()
                self._push(Received("", []))  # somebody may wait for this
            else:
                self.worker_address = said["address"]
                self._push(ChildReady(number, said["id"], said["address"], said["pid"]))


def _no_start(error: BaseException) -> str:
    return f"could not be started: {error if isinstance(error, OSError) else doors.text_of(error)}"


def _seconds(value: Any) -> float:
    return config.seconds(value, "timeout") or 0.0
