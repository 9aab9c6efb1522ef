"""The worker program: its core, a driver, threads, a store, a link to the scheduler and links among peers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from shoal import checks, config
from shoal.checks import text
from shoal.core.effects import (
    Answered,
    CallUser,
    CancelRun,
    Drop,
    Effect,
    Fetch,
    Functions,
    HandOver,
    InstallPlugin,
    Notify,
    Run,
    Send,
    Stop,
    TakeOver,
)
from shoal.core.events import (
    CallDone,
    FetchDone,
    FetchFailed,
    LinkLost,
    Offered,
    Outcome,
    Outcomes,
    Pressure,
    Received,
    Rejoined,
    Seceded,
    Spilling,
    ValuesLost,
)
from shoal.core.worker.fetching import hosts_of
from shoal.core.worker.reactor import WorkerCore
from shoal.errors import LinkError, StartError
from shoal.messages import (
    AskRetirement,
    Bye,
    FromPeer,
    Heartbeat,
    Leave,
    RegisterWorker,
    Retired,
    ToPeer,
    ToWorker,
    Unknown,
    WorkerRegistered,
)
from shoal.programs.calls import call_user
from shoal.programs.lifetime import Lifetime
from shoal.programs.plugins import Plugins
from shoal.programs.serving import Serving
from shoal.shell import doors
from shoal.shell.actors import Actors
from shoal.shell.addresses import Listening, listen_at_one
from shoal.shell.areas import AREAS
from shoal.shell.cells import Cells
from shoal.shell.current import Home
from shoal.shell.driver import Driver
from shoal.shell.executor import ThreadExecutor
from shoal.shell.link import Identity, Link
from shoal.shell.logs import LogKeeper
from shoal.shell.loops import first_of, in_thread
from shoal.shell.memory_manager import MemoryManager, give_back
from shoal.shell.network import Server, dial_lasting, listen, local_address
from shoal.shell.peers import PeerPool
from shoal.shell.profiler import Profiler
from shoal.shell.recorder import SECEDED, Recorder
from shoal.shell.scratch import Scratch
from shoal.shell.serialize import check_plain, event_of
from shoal.shell.speech import Speech
from shoal.shell.spill import Disk
from shoal.shell.store import ValueStore
from shoal.shell.stories import Ending
from shoal.shell.tasks import Every, Tasks

logger = logging.getLogger("shoal.worker")


#: Bytes of what one metric of a user's says.
MOST_METRIC = 64 * 1024


class Supervision(NamedTuple):
    """What a worker process gets from its nanny."""

    scheduler: list[str]
    secret: bytes
    listen: tuple[list[str], str]
    slot: str
    #: Descriptors: what it says of itself is written to one; its threads note in the other what they run.
    report: int
    recorder: int
    directory: str
    nanny_directory: str


class WorkerProgram(Serving):
    """Runs a :class:`WorkerCore` on the current event loop.

    Parameters
    ----------
    scheduler
        Addresses of the scheduler, the preferred one first.
    secret
        The cluster's secret.
    name, nthreads, memory_limit, resources, executors, local_directory, validate
        As for ``Worker``.
    lifetime
        How long it lives.
    heartbeat_interval, metrics
        As for ``Worker``.
    supervision
        What its nanny gave it, where there is one.
    public
        What users' functions and plugins get as their worker; this object by default.
    """

    def __init__(
        self,
        scheduler: list[str],
        secret: bytes,
        *,
        name: str | None = None,
        nthreads: int = 1,
        memory_limit: int = 0,
        resources: dict[str, float] | None = None,
        executors: dict[str, int] | None = None,
        local_directory: str | None = None,
        supervision: Supervision | None = None,
        validate: bool = False,
        lifetime: Lifetime | None = None,
        heartbeat_interval: float | None = None,
        metrics: dict[str, Callable[[Any], Any]] | None = None,
        public: Any = None,
    ) -> None:
        super().__init__(memory_limit)
        loop = asyncio.get_running_loop()
        if memory_limit:
            AREAS.most_idle = min(AREAS.most_idle, memory_limit // 20)
        self.id = f"Worker-{uuid4().hex}"
        self.name = name or self.id
        self._supervision = supervision
        self.slot = self.id if supervision is None else supervision.slot
        self.nthreads, self.memory_limit = nthreads, memory_limit
        self.resources = resources or {}
        self.addresses: list[str] = []
        self.ending = Ending()
        self.finished = self.ending.finished
        self._registered = asyncio.Event()
        #: Set when the scheduler could not let it go.
        self._stays = asyncio.Event()
        #: Whether the scheduler has let go of it; it is idle then.
        self.retired = False
        self._scratch = Scratch("worker", local_directory) if supervision is None else None
        #: Where its own files are: what is spilled, and what users upload.
        self.local_directory = supervision.directory if self._scratch is None else str(self._scratch.path)  # type: ignore[union-attr]
        self.executors = executors or {}
        self.core = WorkerCore(self.id, nthreads, self.resources, validate=validate, executors=self.executors)
        most = config.get("distributed.worker.memory.max-spill", False)
        disk = Disk(Path(self.local_directory) / "spilled", config.nbytes(most, "max-spill") if most else 0)
        self.store = ValueStore(disk if memory_limit else None)
        self.memory_manager = MemoryManager(self.store, memory_limit, self._on_pressure)
        total = nthreads + sum(self.executors.values())
        written = None if supervision is None else Recorder(supervision.recorder, total)
        inline = config.nbytes(config.get("shoal.worker.inline-bytes", 8192), "shoal.worker.inline-bytes")
        numbers = list(range(total + SECEDED))[::-1]
        self._public = public if public is not None else self
        home = Home(self._public, scheduler, secret)
        self.actors = Actors(home)
        prefix = "distributed.worker.profile."
        self.profiler = Profiler(
            self.running,
            bool(config.get(prefix + "enabled", True)),
            config.seconds(config.get(prefix + "interval", 0.01), prefix + "interval") or 0.01,
            config.seconds(config.get(prefix + "cycle", 1.0), prefix + "cycle") or 1.0,
        )
        self._cells = Cells(
            lambda: (self.id, self.name, self.address, scheduler, secret, config.export(), config.import_path())
        )
        #: Threads that ended which should not have.
        self.incidents = 0
        self._pools = {
            pool: ThreadExecutor(
                size,
                self.store,
                loop,
                self._on_outcomes,
                self._on_left,
                self._on_lost,
                inline,
                written,
                home,
                numbers,
                self.memory_manager.make_room if memory_limit else None,
                self.profiler,
                self._cells,
                self._on_incident,
            )
            for pool, size in {"": nthreads, **self.executors}.items()
        }
        self.driver = Driver(self.core, self._perform, loop, self._on_crash)
        self._hooks = Plugins("worker", self._public)
        self._every, self._metrics = heartbeat_interval, metrics or {}
        #: What the scheduler said while plugins that came first are being installed.
        self._held: list[Any] | None = None
        self.logs = LogKeeper(config.log_length())
        self.logs.attach("shoal.worker", "shoal.link", "shoal.driver", "shoal.plugins")
        self.lifetime = lifetime or Lifetime()
        self._scheduler = scheduler
        self._up = Identity("worker", self.id, secret, {"scheduler": ToWorker})
        self._listening = Identity("worker", self.id, secret, {"worker": FromPeer, "client": FromPeer})
        self._peers = PeerPool(Identity("worker", self.id, secret, {"worker": ToPeer}))
        self._link: Link | None = None
        self._speech = Speech(lambda: self._link)
        self._servers: list[Server] = []
        self._inbound: set[Link] = set()
        self._tasks = Tasks(f"worker {self.name}")
        self._loop = loop
        self._heartbeat: Every | None = None
        self._figures: dict[str, Any] = {}

    @property
    def reason(self) -> str:
        """Why it ends."""
        return self.ending.reason

    def _on_crash(self, error: BaseException) -> None:
        """The core failed: its story is written, and the scheduler is told what happened."""
        self.ending.broke("worker", error, self.driver.turn, self.core.story)
        if self._link is not None:
            self._link.send(Bye(self.reason, True))
            self._link.close(self.reason)

    @property
    def address(self) -> str:
        """Where peers reach it."""
        return self.addresses[0] if self.addresses else "not running"

    @property
    def plugins(self) -> dict[str, Any]:
        """The plugins that are installed, by name."""
        return self._hooks.installed

    @property
    def has_nanny(self) -> bool:
        """Whether a nanny watches this process."""
        return self._supervision is not None

    @property
    def nanny_directory(self) -> str:
        """Where the files of its nanny are; empty where there is none."""
        return "" if self._supervision is None else self._supervision.nanny_directory

    async def start(self, where: Listening, timeout: float = 30.0, also: Sequence[str] = ()) -> None:
        """Listen (at ``also`` too), connect to the scheduler and register with it.

        Raises
        ------
        ConnectError
            If the scheduler cannot be reached within ``timeout`` seconds.
        ConfigurationError
            If none of the addresses is free.
        StartError
            If the scheduler refused this worker, with its reason.
        """
        self._servers, self.addresses = await listen_at_one(where, self._make_inbound, self._listening.secret)
        for address in also or [local_address()]:
            server, actual = await listen(address, self._make_inbound, self._listening.secret)
            self._servers.append(server)
            self.addresses.append(actual)
        self.core.fetcher.hosts = hosts_of(self.addresses)
        self._link = await dial_lasting(self._scheduler, self._up, self._on_messages, self._on_closed, timeout)
        self._tell_nanny({"id": self.id, "address": self.addresses[0], "pid": os.getpid()})
        self._link.send(self._registration())
        await first_of(timeout, self._registered, self.finished)
        if not self._registered.is_set() and not self.finished.is_set():
            raise StartError(f"was not accepted within {timeout:g} s, or the set-up of a plugin takes longer than that")
        if not self._registered.is_set():
            raise StartError(self.reason)
        self.memory_manager.start()
        self.lifetime.start(self._send)
        self._tell_nanny({"registered": True})

    def _registration(self) -> RegisterWorker:
        return RegisterWorker(
            self.name,
            self.slot,
            self.addresses,
            self.nthreads,
            self.memory_limit,
            os.getpid(),
            text(socket.gethostname()),
            text(self.local_directory),
            self.resources,
            self.executors,
        )

    async def retire(self, reason: str, timeout: float, restart: bool = False) -> bool:
        """Have the scheduler move what only this worker holds, and let it go; return whether it has.

        Running tasks have half of ``timeout`` seconds to end; then they run elsewhere.
        """
        self._stays.clear()
        self._send(AskRetirement(text(reason), timeout / 2, restart))
        await first_of(timeout, self.finished, self._stays)
        return self.finished.is_set()

    def _tell_nanny(self, what: dict[str, Any]) -> None:
        if self._supervision is not None:
            try:
                os.write(self._supervision.report, json.dumps(what).encode() + b"\n")
            except BrokenPipeError:
                pass  # the nanny is gone, and this process is about to be

    def _on_pressure(self, paused: bool, why: str) -> None:
        self.driver.push(Pressure(paused, why))

    async def set_resources(self, **resources: float) -> None:
        """Have other amounts of some resources from now on. A nanny that starts this worker anew gives it the first.

        What runs goes on; where less is there than is in use, nothing that needs it starts before that has ended.

        Raises
        ------
        UsageError
            If a name or an amount makes no sense.
        """
        given = checks.amounts(resources) or {}
        self.resources.update(given)
        self.driver.push(Offered(given))

    def log_event(self, topic: str | Sequence[str], msg: Any) -> None:
        """Log an event under one or more topics; callable in any thread.

        A thread waits here while the scheduler does not read.

        Raises
        ------
        TypeError
            If the message cannot travel.
        """
        self._speech.say(event_of(topic, msg), self._loop)

    def _send(self, message: Any) -> None:
        if self._link is not None:
            self._link.send(message)

    def _make_inbound(self) -> Link:
        return Link(
            self._listening,
            False,
            self._inbound.add,
            self._on_peer_messages,
            self._on_peer_closed,
            on_room=self._on_room,
        )

    def _on_peer_closed(self, link: Link, reason: str) -> None:
        self._inbound.discard(link)
        self._forget_lent(link)

    def _on_messages(self, link: Link, messages: list[Any]) -> None:
        for number, message in enumerate(messages):
            if isinstance(message, WorkerRegistered):
                interval = self._every or message.heartbeat_interval
                self._beat(interval)
                self._heartbeat = Every(interval, partial(self._beat, interval), "the heartbeat")
                if not message.plugins:
                    self._registered.set()
                    continue
                self.driver.push(Received("", messages[: number + 1]))
                self._held = messages[number + 1 :]
                self._spawn(self._install(message.plugins))
                return
            if isinstance(message, Unknown):
                self._send(self._registration())
            elif isinstance(message, Leave) and not message.on:
                self._stays.set()
                self.lifetime.stays()
            elif isinstance(message, Retired) and not message.close and not self.retired:
                self.retired = True
                logger.info("retired: %s; idle from now on", message.reason)
        if self._held is not None:
            self._held += messages
        else:
            self.driver.push(Received("", messages))

    async def _install(self, plugins: dict[str, Any]) -> None:
        """Install the plugins that were there before this worker; nothing runs until then."""
        await self._hooks.install_all(plugins)
        self._watch_transitions()
        held, self._held = self._held, None
        self._registered.set()
        if held:
            self.driver.push(Received("", held))

    def _watch_transitions(self) -> None:
        self.core.watched = [] if self._hooks.watch_transitions else None

    async def _change_plugin(self, effect: InstallPlugin) -> None:
        payload = await self._hooks.change(effect.name, effect.payload)
        self._watch_transitions()
        self.driver.push(CallDone(effect.rid, effect.to, payload))

    def _on_closed(self, link: Link, reason: str) -> None:
        self.driver.push(LinkLost("scheduler", link.peer_id, reason))

    def _on_outcomes(self, items: list[Outcome]) -> None:
        self._limit_transfers()
        short = self.memory_manager.over_target
        if self.store.moved or short != self.core.slots.short:
            self.driver.push_all([Outcomes(items), Spilling(short, *self.store.moves())])
        else:
            self.driver.push(Outcomes(items))

    def _on_left(self, key: str, outside: bool) -> None:
        self.driver.push(Seceded(key) if outside else Rejoined(key))

    def _on_lost(self, key: str, reason: str) -> None:
        logger.error("the spilled value of %r is lost: %s; it is computed again", key, reason)
        self.driver.push(ValuesLost([key]))

    def _on_incident(self, text: str) -> None:
        """Something of this process ended that should not have, and was replaced."""
        logger.error("%s; another has taken its place", text)
        self.incidents += 1
        told = {"action": "incident", "worker": self.address, "name": self.name, "what": text}
        self._send(event_of(["all", self.address], told))

    def _beat(self, interval: float) -> float | None:
        if self._link is None or self._link.closed:
            return None
        for pool in self._pools.values():
            doors.call("program", pool.watch)
        if not self._link.full:  # it would be old by the time it is read
            # Where a figure cannot be had (descriptors have run out), the last ones are told: it is alive all the same.
            self._figures = doors.call("program", self.metrics, otherwise=self._figures)
            self._link.send(Heartbeat(self._figures))
        AREAS.trim()
        return interval

    def metrics(self) -> dict[str, Any]:
        """How this worker is, for the heartbeat."""
        users = {name: self._metric(name, metric) for name, metric in self._metrics.items()}
        return users | {
            "memory": self.memory_manager.metrics(),
            "executing": self.core.slots.n_running,
            "in_memory": len(self.store),
            "executed": self.core.executed,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "incidents": self.incidents,
            "failures_outside_of_tasks": doors.COUNTS.total(),
        }

    def _metric(self, name: str, metric: Callable[[Any], Any]) -> Any:
        value = doors.call("metric", metric, self._public)
        try:
            return check_plain(value, f"what the metric {name!r} says", MOST_METRIC)
        except TypeError as error:
            doors.report("metric", error, f"the metric {name!r} gave no plain value, which")
            return None

    async def plugin_add(self, plugin: Any, name: str | None = None) -> str:
        """Install a plugin here; return its name."""
        name = await self._hooks.add(plugin, name)
        self._watch_transitions()
        return name

    async def plugin_remove(self, name: str) -> None:
        """Remove one."""
        await self._hooks.remove(name)
        self._watch_transitions()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send():
                if self._link is not None:
                    self._link.send(effect.message)
            case Run():
                self._pools[effect.executor].submit(effect)
            case Functions():
                for pool in self._pools.values():
                    pool.functions(effect.functions)
            case Drop():
                self.store.drop(effect.keys)
                self.actors.drop(effect.keys)
                if self.core.leaving:  # those of this machine that take over what it had use the memory again
                    give_back()
            case CancelRun():
                for pool in self._pools.values():
                    pool.cancel(effect.keys, effect.kill)
            case Fetch():
                self._spawn(self._fetch(effect), lambda error: self._fetch_failed(effect, doors.text_of(error)))
            case HandOver():
                self._hand_over(effect)
            case TakeOver():
                got = self._keep(effect.items)
                self.driver.push(FetchDone(effect.peer, got, effect.missing, effect.errors, effect.editions))
            case CallUser():
                self._spawn(self._call(effect))
            case InstallPlugin():
                self._spawn(self._change_plugin(effect))
            case Answered():
                self._answer_put(effect.rid, "OK")
            case Notify():
                for key, before, after in effect.args:
                    self._hooks.notify(effect.hook, key, before, after)
            case Stop():
                self.ending.stop(effect.reason, effect.failed)

    @property
    def executor(self) -> ThreadExecutor:
        """The pool of tasks that ask for no other."""
        return self._pools[""]

    def running(self) -> dict[int, str]:
        """The key that each thread is in, by the identity of the thread."""
        return {thread: key for pool in self._pools.values() for thread, key in pool.running().items()}

    def _spawn(self, coroutine: Any, otherwise: Callable[[BaseException], None] | None = None) -> None:
        self._tasks.spawn(coroutine, otherwise)

    async def _call(self, effect: CallUser) -> None:
        self.driver.push(CallDone(effect.rid, effect.to, await call_user(effect.payload, dask_worker=self._public)))

    def _fetch_failed(self, effect: Fetch, reason: str) -> None:
        self.driver.push(FetchFailed(effect.peer, effect.keys, reason))

    async def _fetch(self, effect: Fetch) -> None:
        try:
            answer = await self._peers.get(effect.peer, effect.addresses, effect.keys, effect.max_bytes)
        except LinkError as error:
            self._fetch_failed(effect, str(error))
            return
        got = self._keep(answer.items)
        self.driver.push(FetchDone(effect.peer, got, answer.missing, answer.errors, answer.editions))

    async def close(self, reason: str = "closed") -> None:
        """Say goodbye and let go of everything."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        self.lifetime.close()
        await self._hooks.close()
        if self._link is not None and not self._link.closed:
            self._link.send(Bye(text(reason)))
            self._link.close(reason)
        self._tasks.cancel()
        self.driver.close()
        for server in self._servers:
            server.close()
        for link in tuple(self._inbound):
            link.close(reason)
        self._peers.close()
        for pool in self._pools.values():
            pool.close()
        self.profiler.close()
        self._cells.close()
        self.actors.close()
        self.logs.close()
        self.memory_manager.close()
        self.store.close()
        if self._scratch is not None:
            await in_thread(self._scratch.close)
        await asyncio.sleep(0)
