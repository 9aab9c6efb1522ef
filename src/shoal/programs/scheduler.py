"""The scheduler program: its core, a driver, and links to clients, workers and nannies."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Coroutine
from typing import Any
from uuid import uuid4

from shoal import config
from shoal.core.effects import CallUser, CloseLink, Effect, Log, Send, Stop
from shoal.core.events import CallDone, LinkLost, LinkOpened, Received
from shoal.core.scheduler.reactor import SchedulerCore
from shoal.core.scheduler.settings import Settings
from shoal.ids import WorkerId
from shoal.messages import INBOUND
from shoal.programs.calls import call_user
from shoal.shell.driver import Driver
from shoal.shell.link import Identity, Link
from shoal.shell.logs import LogKeeper
from shoal.shell.network import Server, is_refused, listen

logger = logging.getLogger("shoal.scheduler")


def settings() -> Settings:
    """The scheduler's settings, from the configuration."""
    d, s = "distributed.scheduler.", "shoal.scheduler."
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
    )


class SchedulerProgram:
    """Runs a :class:`SchedulerCore` on the current event loop."""

    def __init__(self, secret: bytes) -> None:
        self.id = f"Scheduler-{uuid4().hex}"
        self.core = SchedulerCore(self.id, settings())
        self.links: dict[str, Link] = {}
        self.addresses: list[str] = []
        self.finished = asyncio.Event()
        self.reason = ""
        self._identity = Identity("scheduler", self.id, secret, INBOUND)
        self.logs = LogKeeper(config.log_length())
        self.logs.attach("shoal.scheduler", "shoal.link", "shoal.driver")
        self._grace = config.resume_timeout()
        self._servers: list[Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.driver = Driver(self.core, self._perform, asyncio.get_running_loop(), lambda error: self.finished.set())

    async def start(self, addresses: list[str]) -> None:
        """Listen at ``addresses``."""
        for address in addresses:
            server, actual = await listen(address, self._make_link, self._identity.secret)
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
        )

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
        """A worker whose process is gone will not come back: nobody listens where it did."""
        worker = self.core.state.workers.get(WorkerId(link.peer_id))
        if worker is not None and await is_refused(worker.addresses) and link.cut:
            link.close("its process is gone")

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
            case Stop():
                self.reason = effect.reason
                self.finished.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, effect: CallUser) -> None:
        payload = await call_user(effect.payload, dask_scheduler=self)
        self.driver.push(CallDone(effect.rid, effect.to, payload))

    async def close(self, reason: str = "closed") -> None:
        """Tell everyone, then close every link and listener."""
        for effect in self.core.stop(reason):
            self._perform(effect)
        self.driver.close()
        for server in self._servers:
            server.close()
        for link in tuple(self.links.values()):
            link.close(reason)
        self.logs.close()
        await asyncio.sleep(0)
