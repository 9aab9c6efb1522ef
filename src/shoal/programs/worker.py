"""The worker program: its core, a driver, threads, a store, a link to the scheduler and links among peers."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from shoal import config
from shoal.core.effects import CallUser, CancelRun, Drop, Effect, Fetch, Functions, Run, Send, Stop
from shoal.core.events import (
    CallDone,
    FetchDone,
    FetchFailed,
    LinkLost,
    Outcome,
    Outcomes,
    Pressure,
    PutDone,
    Received,
    Rejoined,
    Seceded,
)
from shoal.core.worker.fetching import hosts_of
from shoal.core.worker.reactor import WorkerCore
from shoal.errors import LinkError, SerializationError, StartError
from shoal.messages import (
    ActorCall,
    Answer,
    Bye,
    Data,
    FromPeer,
    GetData,
    Heartbeat,
    PutData,
    RegisterWorker,
    Returned,
    ToPeer,
    ToWorker,
    WorkerRegistered,
)
from shoal.programs.calls import call_user
from shoal.shell import direct
from shoal.shell.actors import Actors
from shoal.shell.areas import AREAS
from shoal.shell.current import Home
from shoal.shell.driver import Driver
from shoal.shell.executor import ThreadExecutor
from shoal.shell.link import Identity, Link
from shoal.shell.logs import LogKeeper
from shoal.shell.network import Server, dial_lasting, listen
from shoal.shell.peers import PeerPool
from shoal.shell.recorder import SECEDED, Recorder
from shoal.shell.serialize import payload_nbytes
from shoal.shell.store import Pickled, ValueStore
from shoal.shell.usage import resident_bytes

logger = logging.getLogger("shoal.worker")


class WorkerProgram:
    """Runs a :class:`WorkerCore` on the current event loop.

    Parameters
    ----------
    scheduler
        Addresses of the scheduler, the preferred one first.
    secret
        The cluster's secret.
    name, nthreads, memory_limit, resources, executors
        As for ``Worker``.
    slot
        Id of the nanny, where there is one.
    recorder
        Descriptor of the shared memory in which the nanny can read what the threads run.
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
        slot: str | None = None,
        recorder: int | None = None,
        validate: bool = False,
    ) -> None:
        loop = asyncio.get_running_loop()
        if memory_limit:
            AREAS.most_idle = min(AREAS.most_idle, memory_limit // 10)
        self.id = f"Worker-{uuid4().hex}"
        self.name = name or self.id
        self.slot = slot or self.id
        self.nthreads, self.memory_limit = nthreads, memory_limit
        self.resources = resources or {}
        self.addresses: list[str] = []
        self.finished = asyncio.Event()
        self._registered = asyncio.Event()
        self.reason = ""
        self.executors = executors or {}
        self.core = WorkerCore(self.id, nthreads, self.resources, validate=validate, executors=self.executors)
        self.store = ValueStore()
        total = nthreads + sum(self.executors.values())
        written = None if recorder is None else Recorder(recorder, total)
        inline = config.nbytes(config.get("shoal.worker.inline-bytes", 8192), "shoal.worker.inline-bytes")
        numbers = list(range(total + SECEDED))[::-1]
        home = Home(self, scheduler, secret)
        self.actors = Actors(home)
        self._pools = {
            pool: ThreadExecutor(
                size, self.store, loop, self._on_outcomes, self._on_left, inline, written, home, numbers
            )
            for pool, size in {"": nthreads, **self.executors}.items()
        }
        self.driver = Driver(self.core, self._perform, loop, lambda error: self.finished.set())
        self.logs = LogKeeper(config.log_length())
        self.logs.attach("shoal.worker", "shoal.link", "shoal.driver")
        self._scheduler = scheduler
        self._up = Identity("worker", self.id, secret, {"scheduler": ToWorker})
        self._serve = Identity("worker", self.id, secret, {"worker": FromPeer, "client": FromPeer})
        self._peers = PeerPool(Identity("worker", self.id, secret, {"worker": ToPeer}))
        self._link: Link | None = None
        self._servers: list[Server] = []
        self._inbound: set[Link] = set()
        #: Bytes of values that came from peers and clients, and that went to them.
        self.bytes_in = self.bytes_out = 0
        #: Payloads that peers are reading from this process's memory, by their link and the number of the request.
        self._lent: dict[tuple[Link, int], list[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._heartbeat: asyncio.TimerHandle | None = None
        self._sampling: asyncio.TimerHandle | None = None
        self._pause = config.fraction(config.get("distributed.worker.memory.pause", 0.8), "memory.pause")

    async def start(
        self, listen_at: list[str], timeout: float = 30.0, on_connected: Callable[[], None] | None = None
    ) -> None:
        """Listen, connect to the scheduler and register with it.

        ``on_connected`` is called before the scheduler hears of this worker: from then on there may be tasks.

        Raises
        ------
        ConnectError
            If the scheduler cannot be reached.
        StartError
            If it refuses this worker, with its reason.
        """
        for address in listen_at:
            server, actual = await listen(address, self._make_inbound, self._serve.secret)
            self._servers.append(server)
            self.addresses.append(actual)
        self.core.fetcher.hosts = hosts_of(self.addresses)
        self._link = await dial_lasting(self._scheduler, self._up, self._on_messages, self._on_closed, timeout)
        if on_connected is not None:
            on_connected()
        self._link.send(
            RegisterWorker(
                self.name,
                self.slot,
                self.addresses,
                self.nthreads,
                self.memory_limit,
                os.getpid(),
                socket.gethostname(),
                "",
                self.resources,
                self.executors,
            )
        )
        async with asyncio.timeout(timeout):
            waits = [asyncio.ensure_future(event.wait()) for event in (self._registered, self.finished)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        if not self._registered.is_set():
            raise StartError(self.reason)

        if self.memory_limit and self._pause:
            self._sample(
                config.seconds(config.get("distributed.worker.memory.monitor-interval", 0.1), "interval") or 0.1
            )

    def _sample(self, interval: float) -> None:
        """Look at the memory of this process: beyond the limit no task is started until there is some again."""
        used, most = resident_bytes(), self._pause * self.memory_limit
        if (used > most) != self.core.paused:
            how = "over" if used > most else "under"
            limit = f"{self._pause:.0%} of the limit of {self.memory_limit / 1e6:.0f} MB"
            text = f"{used / 1e6:.0f} MB are used, {how} {limit}"
            self.driver.push(Pressure(used > most, text))
        self._sampling = asyncio.get_running_loop().call_later(interval, self._sample, interval)

    def _make_inbound(self) -> Link:
        return Link(self._serve, False, self._inbound.add, self._on_peer_messages, self._on_peer_closed)

    def _on_peer_closed(self, link: Link, reason: str) -> None:
        self._inbound.discard(link)
        for lent in [lent for lent in self._lent if lent[0] is link]:
            del self._lent[lent]

    def _on_messages(self, link: Link, messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, WorkerRegistered):
                self._registered.set()
                self._beat(message.heartbeat_interval)
        self.driver.push(Received("", messages))

    def _on_closed(self, link: Link, reason: str) -> None:
        self.driver.push(LinkLost("scheduler", link.peer_id, reason))

    def _on_outcomes(self, items: list[Outcome]) -> None:
        self.driver.push(Outcomes(items))

    def _on_left(self, key: str, outside: bool) -> None:
        self.driver.push(Seceded(key) if outside else Rejoined(key))

    def _beat(self, interval: float) -> None:
        if self._link is None or self._link.closed:
            return
        self._link.send(Heartbeat(self.metrics()))
        AREAS.trim()
        self._heartbeat = asyncio.get_running_loop().call_later(interval, self._beat, interval)

    def metrics(self) -> dict[str, Any]:
        """How this worker is, for the heartbeat."""
        return {
            "memory": resident_bytes(),
            "executing": self.core.slots.n_running,
            "in_memory": len(self.store),
            "executed": self.core.executed,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }

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
            case CancelRun():
                for pool in self._pools.values():
                    pool.cancel(effect.keys)
            case Fetch():
                self._spawn(self._fetch(effect))
            case CallUser():
                self._spawn(self._call(effect))
            case Stop():
                self.reason = effect.reason
                self.finished.set()

    @property
    def executor(self) -> ThreadExecutor:
        """The pool of tasks that ask for no other."""
        return self._pools[""]

    def running(self) -> dict[int, str]:
        """The key that each thread is in, by the identity of the thread."""
        return {thread: key for pool in self._pools.values() for thread, key in pool.running().items()}

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, effect: CallUser) -> None:
        self.driver.push(CallDone(effect.rid, effect.to, await call_user(effect.payload, dask_worker=self)))

    async def _fetch(self, effect: Fetch) -> None:
        try:
            answer = await self._peers.get(effect.peer, effect.addresses, effect.keys, effect.max_bytes)
        except LinkError as error:
            self.driver.push(FetchFailed(effect.peer, effect.keys, str(error)))
            return
        got = self._keep(answer.items)
        self.driver.push(FetchDone(effect.peer, got, answer.missing, answer.errors, answer.editions))

    def _keep(self, items: dict[str, Any]) -> list[tuple[str, int, str]]:
        """Store values that came from elsewhere; return their keys and sizes as the core wants them."""
        kept = []
        for key, payload in items.items():
            self.store.put(key, Pickled(payload))
            nbytes = payload_nbytes(payload)
            self.bytes_in += nbytes
            kept.append((key, nbytes, ""))
        return kept

    def _on_peer_messages(self, link: Link, messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, GetData):
                link.send(self._read(link, message))
            elif isinstance(message, Returned):
                self._lent.pop((link, message.lent), None)
                link.send(Answer(message.rid, "OK"))
            elif isinstance(message, PutData):
                taken = {key: payload for key, payload in message.items.items() if self.core.takes(key)}
                refused = [key for key in message.items if key not in taken]
                self.driver.push(PutDone(message.client, self._keep(taken), refused))
                link.send(Answer(message.rid, "OK"))
            elif isinstance(message, ActorCall):
                self._spawn(self._call_actor(link, message))
            elif isinstance(message, Bye):
                link.close()

    async def _call_actor(self, link: Link, message: ActorCall) -> None:
        link.send(Answer(message.rid, await self.actors.call(message.key, message.name, message.payload)))

    def _read(self, link: Link, message: GetData) -> Data:
        answer = Data(message.rid, {}, [], {})
        size = 0
        for key in message.keys:
            record = self.core.keys.get(key)
            if record is None or key not in self.store:
                answer.missing.append(key)
                continue
            if size and message.max_bytes and size > message.max_bytes:
                break
            try:
                payload = self.store.dump(key)
            except SerializationError as error:
                answer.errors[key] = str(error)
                continue
            nbytes = payload_nbytes(payload)
            size += nbytes
            answer.editions[key] = record.edition
            self.bytes_out += nbytes
            if message.direct and nbytes >= direct.SMALLEST:
                self._lent.setdefault((link, message.rid), []).append(payload)
                answer.lent[key] = direct.describe(payload.frames)
            else:
                answer.items[key] = payload
        return answer

    async def close(self, reason: str = "closed") -> None:
        """Say goodbye and let go of everything."""
        for timer in (self._heartbeat, self._sampling):
            if timer is not None:
                timer.cancel()
        if self._link is not None and not self._link.closed:
            self._link.send(Bye(reason))
            self._link.close(reason)
        self.driver.close()
        for server in self._servers:
            server.close()
        for link in tuple(self._inbound):
            link.close(reason)
        self._peers.close()
        for pool in self._pools.values():
            pool.close()
        self.actors.close()
        self.logs.close()
        await asyncio.sleep(0)
