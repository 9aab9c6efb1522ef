"""The scheduler program: its core, a driver, and links to clients, workers and nannies."""

from __future__ import annotations

import asyncio
import hmac
import importlib
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from uuid import uuid4

from shoal import config
from shoal.core.effects import Answered, CallUser, CloseLink, Effect, InstallPlugin, Log, Notify, Send, Stop
from shoal.core.events import (
    Asked,
    CallDone,
    Due,
    LinkDrained,
    LinkFull,
    LinkLost,
    LinkOpened,
    PluginOffered,
    PluginsChanged,
    Received,
)
from shoal.core.scheduler import scaling
from shoal.core.scheduler.reactor import SchedulerCore
from shoal.core.scheduler.roster import WorkerRecord
from shoal.core.scheduler.settings import Settings
from shoal.errors import ConfigurationError, UsageError
from shoal.ids import WorkerId, key_from_wire
from shoal.messages import INBOUND, Bye, Close, Retire
from shoal.messages import TaskError as SentError
from shoal.plugins.base import hooks_of
from shoal.programs.calls import call_user
from shoal.programs.plugins import Plugins
from shoal.shell import doors, serialize
from shoal.shell.driver import Driver
from shoal.shell.link import Identity, Link
from shoal.shell.logs import LogKeeper
from shoal.shell.loops import in_thread
from shoal.shell.network import Server, is_refused, listen
from shoal.shell.scratch import Scratch
from shoal.shell.serialize import event_of
from shoal.shell.stories import BROKEN, Ending
from shoal.shell.tasks import Tasks

logger = logging.getLogger("shoal.scheduler")


#: Seconds between two looks at whether the process of a worker is there whose connection broke.
_PROBE = 0.5


def settings() -> Settings:
    """The scheduler's settings, from the configuration."""
    d, s = "distributed.scheduler.", "shoal.scheduler."
    amm, rebalance = d + "active-memory-manager.", "distributed.worker.memory.rebalance."
    return Settings(
        allowed_failures=int(config.get(d + "allowed-failures", 3)),
        saturation=float(config.get(d + "worker-saturation", 1.1)),
        backlog=config.seconds(config.get(s + "backlog", 0.02), s + "backlog") or 0.0,
        bandwidth=float(config.get(d + "bandwidth", 1e8)),
        unknown_duration=config.seconds(config.get(d + "unknown-task-duration", 0.5), "unknown-task-duration") or 0.5,
        worker_ttl=config.seconds(config.get(d + "worker-ttl", 300.0), d + "worker-ttl"),
        heartbeat_interval=config.seconds(config.get(s + "heartbeat", 1.0), s + "heartbeat") or 1.0,
        story_length=int(config.get(s + "story-length", 100_000)),
        no_workers_timeout=config.seconds(config.get(d + "no-workers-timeout", None), d + "no-workers-timeout"),
        stream_length=int(config.get(d + "dashboard.tasks.task-stream-length", 100_000)),
        durations={
            name: config.seconds(value, f"default-task-durations {name}") or 0.0
            for name, value in (config.get(d + "default-task-durations", {}) or {}).items()
        },
        validate=bool(config.get(d + "validate", False)),
        events_length=int(config.get("distributed.admin.low-level-log-length", 1000)),
        epoch=time.time() - time.monotonic(),
        move_timeout=config.seconds(config.get(s + "move-timeout", 30.0), s + "move-timeout") or 30.0,
        fill=float(config.get(s + "fill", 0.8)),
        paused_timeout=config.seconds(config.get(s + "paused-timeout", 300.0), s + "paused-timeout"),
        lease_timeout=config.seconds(config.get(d + "locks.lease-timeout", 30.0), d + "locks.lease-timeout") or 30.0,
        lease_check=config.seconds(
            config.get(d + "locks.lease-validation-interval", 10.0), d + "locks.lease-validation-interval"
        )
        or 10.0,
        idle_timeout=config.seconds(config.get(d + "idle-timeout", None), d + "idle-timeout"),
        amm_running=bool(config.get(amm + "start", True)),
        amm_interval=config.seconds(config.get(amm + "interval", 2.0), amm + "interval") or 2.0,
        rebalance=(
            config.fraction(config.get(rebalance + "sender-min", 0.3), rebalance + "sender-min"),
            config.fraction(config.get(rebalance + "recipient-max", 0.6), rebalance + "recipient-max"),
            config.fraction(config.get(rebalance + "sender-recipient-gap", 0.1), rebalance + "sender-recipient-gap"),
        ),
        patience=config.silence_timeout(),
        events_keep=config.seconds(config.get(d + "events-cleanup-delay", 3600.0), d + "events-cleanup-delay") or 0.0,
    )


def policies() -> list[Any]:
    """The memory manager's policies that the configuration names, beside its own.

    Raises
    ------
    ConfigurationError
        If one cannot be made.
    """
    found = []
    name = "distributed.scheduler.active-memory-manager.policies"
    for wanted in config.get(name, []) or []:
        options = dict(wanted)
        path = str(options.pop("class", ""))
        if path.rpartition(".")[2] in ("ReduceReplicas", "RetireWorker"):
            continue  # they are always there
        try:
            module, _, attribute = path.rpartition(".")
            found.append(getattr(importlib.import_module(module), attribute)(**options))
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise ConfigurationError(f"{name}: {wanted!r} cannot be made: {error}") from error
    return found


class SchedulerProgram:
    """Runs a :class:`SchedulerCore` on the current event loop.

    Parameters
    ----------
    secret
        The cluster's secret.
    public
        What users' functions and plugins get as the scheduler; this object by default.
    """

    def __init__(self, secret: bytes, public: Any = None) -> None:
        self.id = f"Scheduler-{uuid4().hex}"
        self.core = SchedulerCore(self.id, settings())
        self.links: dict[str, Link] = {}
        self.addresses: list[str] = []
        self.ending = Ending()
        self.finished = self.ending.finished
        self._identity = Identity("scheduler", self.id, secret, INBOUND)
        self.logs = LogKeeper(config.log_length())
        self.logs.attach("shoal.scheduler", "shoal.link", "shoal.driver", "shoal.plugins")
        self._grace = config.resume_timeout()
        self._servers: list[Server] = []
        self._tasks = Tasks("the scheduler")
        self._public = public if public is not None else self
        self._hooks = Plugins("scheduler", self._public)
        #: What plugins asked of workers and nannies, by number.
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._scratch: Scratch | None = None
        self.core.downscaling = self._may_go
        for policy in policies():
            self.core.amm.add_policy(policy)
        self._loop = asyncio.get_running_loop()
        self.driver = Driver(self.core, self._perform, self._loop, self._on_crash)

    @property
    def reason(self) -> str:
        """Why it ends."""
        return self.ending.reason

    def _on_crash(self, error: BaseException) -> None:
        """The core failed: its story is written, and all are told what happened."""
        self.ending.broke("scheduler", error, self.driver.turn, self.core.state.story)
        for link in tuple(self.links.values()):
            words = Bye if link.peer_role == "client" else Close
            link.send(words(self.reason, True))
            link.close(self.reason)

    @property
    def plugins(self) -> dict[str, Any]:
        """The plugins that are installed here, by name."""
        return self._hooks.installed

    @property
    def local_directory(self) -> str:
        """Where the files of the scheduler's are, made on first use."""
        if self._scratch is None:
            self._scratch = Scratch("scheduler")
        return str(self._scratch.path)

    async def start(self, addresses: list[str]) -> None:
        """Listen at ``addresses``."""
        for address in addresses:
            server, actual = await listen(address, self._make_link, self._identity.secret, "scheduler")
            self._servers.append(server)
            self.addresses.append(actual)
        logger.info("scheduler at %s", ", ".join(self.addresses))

    async def wait_for_workers(self, count: int) -> None:
        """Wait until ``count`` workers have registered."""
        while len(self.core.state.workers) < count:
            await asyncio.sleep(0.005)

    def _make_link(self) -> Link:
        return Link(
            self._identity,
            False,
            self._on_open,
            self._on_messages,
            self._on_closed,
            on_cut=self._on_cut,
            find=self._find,
            grace=self._grace,
            on_room=self._on_room,
        )

    def _on_room(self, link: Link, full: bool) -> None:
        if self.links.get(link.peer_id) is link:
            self.driver.push(LinkFull(link.peer_id, link.owed) if full else LinkDrained(link.peer_id))

    def _find(self, role: str, id: str, token: bytes) -> Link | None:
        """The link of a peer that comes back."""
        link = self.links.get(id)
        if link is None or link.channel is None or link.peer_role != role:
            return None
        return link if hmac.compare_digest(link.channel.token, token) else None

    def _on_cut(self, link: Link, reason: str) -> None:
        if link.peer_role == "worker":
            self._spawn(self._probe(link))

    async def _probe(self, link: Link) -> None:
        """A worker whose process is gone will not come back: nobody listens where it did, now or in a while."""
        while link.cut:
            worker = self.core.state.workers.get(WorkerId(link.peer_id))
            if worker is None:
                return
            if await is_refused(worker.addresses) and link.cut:
                link.close("its process is gone")
                return
            await asyncio.sleep(_PROBE)

    def _on_open(self, link: Link) -> None:
        known = self.links.get(link.peer_id)
        if known is not None and known.cut:
            known.close("the peer began anew")  # it never heard that it was welcome
        elif known is not None:
            link.close("this id is connected already")
            return
        self.links[link.peer_id] = link
        self.driver.push(LinkOpened(link.peer_role, link.peer_id))

    def _on_messages(self, link: Link, messages: list[Any]) -> None:
        if self.links.get(link.peer_id) is link:
            self.driver.push(Received(link.peer_id, messages))

    def _on_closed(self, link: Link, reason: str) -> None:
        if self.links.get(link.peer_id) is link:
            del self.links[link.peer_id]
            self.driver.push(LinkLost(link.peer_role, link.peer_id, reason))

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send():
                link = self.links.get(effect.to)
                if link is not None:
                    link.send(effect.message)
            case Log():
                logger.log(effect.level, "%s", effect.text)
            case CloseLink():
                link = self.links.get(effect.to)
                if link is not None:
                    link.close(effect.reason)
            case CallUser():
                self._spawn(self._call(effect))
            case InstallPlugin():
                self._spawn(self._change_plugin(effect))
            case Notify():
                self._notify(effect)
            case Answered():
                if effect.error is None:
                    self._asked.pop(effect.rid).set_result(effect.value)
                else:
                    self._asked.pop(effect.rid).set_exception(UsageError(effect.error))
            case Stop():
                self.ending.stop(effect.reason, effect.failed)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._tasks.spawn(coroutine)

    async def _call(self, effect: CallUser) -> None:
        payload = await call_user(effect.payload, dask_scheduler=self._public)
        self.driver.push(CallDone(effect.rid, effect.to, payload))

    # -------------------------------------------------------------------------------------------- plugins and events

    async def _change_plugin(self, effect: InstallPlugin) -> None:
        payload = await self._hooks.change(effect.name, effect.payload)
        self.driver.push(PluginsChanged(self._hooks.hooks()))
        self.driver.push(CallDone(effect.rid, effect.to, payload))

    def _notify(self, effect: Notify) -> None:
        """Call a hook of the plugins as they know it."""
        hook, notify, public = effect.hook, self._hooks.notify, self._public
        if hook == "transition":
            for key, before, after, stimulus in effect.args:
                notify(hook, key_from_wire(key), before, after, stimulus_id=stimulus)
        elif hook == "log_event":
            for topic, msg in effect.args:
                notify(hook, topic, msg)
        elif hook == "update_graph":
            client, tasks, wants, priority, stimulus = effect.args
            keys = [key_from_wire(key) for key in tasks]
            notify(
                hook,
                public,
                client=client,
                keys={key_from_wire(key) for key in wants},
                tasks=keys,
                annotations={},
                priority=dict.fromkeys(keys, priority),
                stimulus_id=stimulus,
            )
        elif hook == "remove_worker":
            worker, reason, expected, safe = effect.args
            more = {"reason": reason, "expected": expected, "safe": safe}
            self._wait_for(notify(hook, public, worker, stimulus_id=self.core.state.stimulus, **more))
        else:
            self._wait_for(notify(hook, public, *effect.args))

    def _wait_for(self, waiting: list[Any]) -> None:
        for awaitable in waiting:
            self._spawn(doors.wait("hook", lambda given=awaitable: given))

    async def register_worker_plugin(self, plugin: Any, name: str) -> dict[str, Any]:
        """Install a plugin in all workers, there now or later; what each that is there said, by address."""
        return await self._offer("worker", name, serialize.dumps(plugin, f"the plugin {name!r}"))

    async def register_nanny_plugin(self, plugin: Any, name: str) -> dict[str, Any]:
        """As :meth:`register_worker_plugin`, in nannies."""
        return await self._offer("nanny", name, serialize.dumps(plugin, f"the plugin {name!r}"))

    async def unregister_plugin(self, kind: str, name: str) -> dict[str, Any]:
        """Remove a plugin from all workers (``kind="worker"``) or nannies."""
        return await self._offer(kind, name, None)

    async def _offer(self, kind: str, name: str, payload: Any) -> dict[str, Any]:
        if self.finished.is_set():
            return {}
        rid = next(self._numbers)
        future = self._asked[rid] = self._loop.create_future()
        self.driver.push(PluginOffered(rid, kind, name, payload))
        answer = await future
        found = {}
        for where, result in answer["results"].items():
            good, value = serialize.loads(result)
            if not good:
                raise serialize.load_error(SentError(*value))
            found[where] = value
        return found

    # -------------------------------------------------------------------------------------------- size of the cluster

    def adaptive_target(self, target_duration: Any = None) -> int:
        """How many workers there should be for the work that is there to be done within ``target_duration``."""
        name = "distributed.adaptive.target-duration"
        seconds = config.seconds(config.get(name, 5.0) if target_duration is None else target_duration, name)
        found: int = scaling.adaptive_target(self.core, seconds or 5.0)["target"]
        return found

    def candidates_to_close(self, **criteria: Any) -> list[WorkerRecord]:
        """The workers that are needed least; criteria as for :meth:`Client.retire_workers`."""
        return scaling.to_close(self.core, **criteria)

    def workers_to_close(self, **criteria: Any) -> list[Any]:
        """As :meth:`candidates_to_close`: the ``attribute`` (their address) of each."""
        return [
            getattr(worker, criteria.get("attribute", "address")) for worker in self.candidates_to_close(**criteria)
        ]

    async def retire_workers(
        self,
        workers: Sequence[str] | None = None,
        *,
        close_workers: bool = True,
        remove: bool = True,
        force: bool = False,
        timeout: float | None = None,
        reason: str = "a plugin retired it",
        **criteria: Any,
    ) -> dict[str, Any]:
        """Have workers leave, as :meth:`Client.retire_workers`: which left, which stay and why, which died."""
        names = None if workers is None else [str(worker) for worker in workers]
        told: dict[str, Any] = await self.ask(
            lambda rid: Retire(rid, names, criteria, close_workers, remove, force, timeout, reason)
        )
        return told

    async def ask(self, make: Callable[[int], Any]) -> Any:
        """Ask the core for what clients may ask for; ``make(rid)`` is the message.

        Raises
        ------
        UsageError
            If it refuses, with its words.
        """
        rid = next(self._numbers)
        future = self._asked[rid] = self._loop.create_future()
        self.driver.push(Asked(make(rid)))
        return await future

    async def add_plugin(self, plugin: Any, name: str | None, idempotent: bool) -> None:
        """Install a plugin of the scheduler's; one of its name is replaced, or stays."""
        name = name or getattr(plugin, "name", None) or f"{type(plugin).__name__}-{uuid4().hex}"
        if not (idempotent and name in self._hooks.installed):
            await self._hooks.add(plugin, name)
            self.driver.push(PluginsChanged(self._hooks.hooks()))

    async def remove_plugin(self, name: str) -> None:
        """Remove one."""
        await self._hooks.remove(name)
        self.driver.push(PluginsChanged(self._hooks.hooks()))

    @property
    def extensions(self) -> dict[str, Any]:
        """What may be reached here by name: ``"amm"``, the active memory manager."""
        return {"amm": self.core.amm}

    def _may_go(self, workers: list[WorkerRecord]) -> list[WorkerRecord]:
        """Ask the plugins which of ``workers`` may be removed when the cluster shrinks."""
        for plugin in self._hooks.installed.values():
            if "valid_workers_downscaling" in hooks_of(plugin):
                workers = doors.call("hook", _narrowed, plugin, self._public, workers, otherwise=workers)
        return workers

    def log_event(self, topic: str | Sequence[str], msg: Any) -> None:
        """Log an event under one or more topics.

        Raises
        ------
        TypeError
            If the message cannot travel.
        """
        event = event_of(topic, msg)
        self.core.topics.log(event.topics, event.msg, event.when)
        self._loop.call_soon(self.driver.push, Due())

    async def close(self, reason: str = "closed") -> None:
        """Tell everyone, then close every link and listener."""
        await self._hooks.before_close()
        self.finished.set()
        await self._hooks.close()
        for effect in self.core.stop(reason, bool(self.ending.status)) if self.ending.status != BROKEN else ():
            self._perform(effect)
        self.driver.close()
        for server in self._servers:
            server.close()
        for link in tuple(self.links.values()):
            link.close(reason)
        self.logs.close()
        if self._scratch is not None:
            await in_thread(self._scratch.close)
        await asyncio.sleep(0)


def _narrowed(plugin: Any, scheduler: Any, workers: list[WorkerRecord]) -> list[WorkerRecord]:
    asked = list(plugin.valid_workers_downscaling(scheduler, workers))
    return [worker for worker in workers if worker in asked]  # what else it named is none of them
