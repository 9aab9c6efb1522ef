"""A client's side of its link: the core, its driver, requests, and data to and from workers. Lives on one loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, Final

from shoal import config
from shoal.checks import text
from shoal.client.gate import Gate
from shoal.client.leases import Leases
from shoal.client.loop import check_running
from shoal.client.transfers import Transfers
from shoal.core.client.future import FutureRecord, FutureStatus, Outcome
from shoal.core.client.reactor import ClientCore
from shoal.core.effects import Answered, Effect, EventLogged, Log, Registered, Send, Settled
from shoal.core.events import Event, LinkLost, Received, Released, Said
from shoal.core.fitting import checked
from shoal.errors import ClosedClientError, TaskError, UsageError
from shoal.messages import (
    Bye,
    Cancel,
    Meet,
    Query,
    RegisterClient,
    Retry,
    Submit,
    ToClient,
    Took,
    ToPeer,
    Want,
    Withdraw,
)
from shoal.shell import doors
from shoal.shell.driver import Driver
from shoal.shell.link import Identity, Link
from shoal.shell.network import dial_lasting
from shoal.shell.peers import PeerPool
from shoal.shell.serialize import check_plain

logger = logging.getLogger("shoal.client")

#: Seconds that a value which is said to be in memory is looked for.
FETCH_TIMEOUT = 60.0
#: Seconds between two looks whether the loop still runs, while a thread waits for a future.
_LOOK: Final = 2.0
_GOING_WELL = frozenset({FutureStatus.PENDING, FutureStatus.FINISHED})


class Connection:
    """What runs on the loop; threads of the user's reach it with :meth:`say`, :meth:`release` and futures.

    Parameters
    ----------
    id, secret
        Who the client is, and what it proves.
    addresses
        Of the scheduler, the one that users see first.
    loop
        Where all of this runs.
    """

    def __init__(
        self, id: str, secret: bytes, addresses: list[str], loop: asyncio.AbstractEventLoop, name: str = ""
    ) -> None:
        self.core = ClientCore(id)
        self.loop = loop
        self.addresses = addresses
        self.name = name
        #: Guards records: threads of the user's make them and change them, the loop does what the scheduler says.
        self.lock = threading.RLock()
        self.peers = PeerPool(Identity("client", id, secret, {"worker": ToPeer}))
        self._identity = Identity("client", id, secret, {"scheduler": ToClient})
        self._driver = Driver(self.core, self._perform, loop, self._on_crash)
        self._link: Link | None = None
        self._registered = asyncio.Event()
        #: Called on the loop with each event of a topic that was subscribed to.
        self.on_event: Callable[[EventLogged], None] | None = None
        self._todo: deque[Event] = deque()
        self._woken = False
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.leases = Leases(loop, lambda make: self._begin_request(make)[1], lambda: self.closed)
        self._rid = 0
        self._transfers = Transfers(id, self.peers, self.request)
        #: Where submissions wait while the scheduler takes nothing.
        self.gate = Gate(loop, config.owed_bytes(), self._owed, lambda: self.core.closed)

    def _owed(self) -> int:
        return 0 if self._link is None else self._link.owed

    @property
    def closed(self) -> str:
        """Why this connection is closed, or nothing."""
        return self.core.closed

    @property
    def cut(self) -> bool:
        """Whether the connection to the scheduler broke, and is being opened again."""
        return self._link is not None and self._link.cut

    def check_open(self) -> None:
        """Raise where nothing can be said any more.

        Raises
        ------
        ClosedClientError
            With the reason.
        """
        if self.core.closed:
            raise ClosedClientError(f"this client is closed ({self.core.closed}); make a new one")

    async def open(self, timeout: float) -> None:
        """Reach the scheduler and register with it."""
        self.gate.thread = threading.get_ident()
        self._link = await dial_lasting(self.addresses, self._identity, self._on_messages, self._on_closed, timeout)
        self._link.send(RegisterClient(self.name))
        async with asyncio.timeout(timeout):
            await self._registered.wait()

    # -------------------------------------------------------------------------------------------- from any thread

    def records(self, wires: Iterable[str]) -> list[FutureRecord]:
        """A record for one more future of each key (of one that is named twice, two), which nothing wishes for yet."""
        with self.lock:
            return [self.core.hold(wire) for wire in wires]

    def wish(self, wires: Iterable[str], message: Submit | Want, nbytes: int = 0) -> list[FutureRecord]:
        """As :meth:`records`, and put in line the message that wishes for them, in one step; ``nbytes`` as there.

        Raises
        ------
        ClosedClientError
            If nothing can be said any more.
        """
        if nbytes:
            self.gate.add(nbytes)
        with self.lock:
            self.check_open()
            records = self.records(wires)
            self._todo.append(Said(message, records))
        self._wake()
        return records

    def wait_for_room(self) -> None:
        """Block this thread while too much is owed to the scheduler; on the loop itself it returns at once.

        Raises
        ------
        ClosedClientError
            If the connection ends meanwhile.
        """
        self.gate.wait()
        self.check_open()

    def say(self, message: Any, nbytes: int = 0) -> None:
        """Put a message in line for the scheduler; ``nbytes`` is about its size, where it may be large.

        Raises
        ------
        UsageError
            If it is none of the protocol.
        """
        self.check_open()
        checked(message)
        if nbytes:
            self.gate.add(nbytes)
        self._todo.append(Said(message))
        self._wake()

    def cancel(self, message: Cancel, reason: str) -> None:
        """Cancel what the message names: at once here, then there."""
        with self.lock:
            self.check_open()
            self.core.cancel(checked(message).keys, reason)
            self._todo.append(Said(message))
        self._wake()

    def retry(self, wires: Iterable[str]) -> None:
        """Have those that failed run again; they are pending from now on."""
        with self.lock:
            self.check_open()
            records = self.core.retry(wires)
            if records:
                self._todo.append(Said(Retry([record.key for record in records]), records))
        self._wake()

    def drop(self, record: FutureRecord) -> None:
        """One future of ``record`` is gone; in any thread, at any moment, so without a lock."""
        record.handles.pop()
        if not self.core.closed:
            self._todo.append(Released(record))
            self._wake()

    def release(self, record: FutureRecord) -> None:
        """As :meth:`drop`, by a user who may still ask the future: it is cancelled, unless there is another."""
        self.drop(record)
        with self.lock:
            self.core.forsake(record)
        self._wake()

    def outcome(self, record: FutureRecord) -> Outcome:
        """How a key stands, read in one step."""
        value = record.value
        if value is not None and record.status is FutureStatus.FINISHED:  # no lock, which whoever set it still has
            return Outcome(record.key, FutureStatus.FINISHED, value, None, "")
        with self.lock:
            return record.outcome()

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            try:
                self.loop.call_soon_threadsafe(self._drain)
            except RuntimeError:
                pass  # the loop is closed: the interpreter is ending

    def wait(self, record: FutureRecord, timeout: float | None) -> bool:
        """Block this thread until the key is done; return whether it is."""
        if not record.pending:
            return True
        with self.lock:
            if record.event is None:
                record.event = threading.Event()
        event, due = record.event, None if timeout is None else monotonic() + timeout
        while not _is_done(record):
            left = _LOOK if due is None else min(_LOOK, due - monotonic())
            if event.wait(max(0.0, left)):
                return True
            if left < _LOOK:
                return _is_done(record)
            check_running(self.loop)
        return True

    def when_done(self, pairs: list[tuple[FutureRecord, Callable[[], None]]]) -> None:
        """Call each callback on the loop once its key is done."""
        self.loop.call_soon_threadsafe(self._add_callbacks, pairs)

    def _add_callbacks(self, pairs: list[tuple[FutureRecord, Callable[[], None]]]) -> None:
        for record, callback in pairs:
            if not record.pending:
                doors.call("callback", callback)
            elif record.callbacks is None:
                record.callbacks = [callback]
            else:
                record.callbacks.append(callback)

    # -------------------------------------------------------------------------------------------- on the loop

    async def done(self, record: FutureRecord, timeout: float | None = None) -> Outcome:
        """Wait until the key is done; return how it ended.

        Raises
        ------
        TimeoutError
            After ``timeout`` seconds.
        """
        async with asyncio.timeout(timeout if record.pending else None):
            while (outcome := self.outcome(record)).status is FutureStatus.PENDING:
                await self.all_done([record])
        return outcome

    async def all_done(self, records: list[FutureRecord], to_the_end: bool = True) -> None:
        """Wait until all are done, or, where ``to_the_end`` is False, until one did not succeed."""
        left = [record for record in records if record.pending]
        if not left:
            return
        future = self.loop.create_future()
        count = len(left)

        def one(record: FutureRecord) -> None:
            nonlocal count
            count -= 1
            over = count == 0 or not (to_the_end or record.status is FutureStatus.FINISHED)
            if over and not future.done():
                future.set_result(None)

        self._add_callbacks([(record, lambda r=record: one(r)) for record in left])  # type: ignore[misc]
        await future

    def _drain(self) -> None:
        self._woken = False
        while self._todo:
            with self.lock:
                events = list(self._todo)
                for _ in events:
                    self._todo.popleft()
                self._driver.push_all(events)
        if self.gate.busy:
            self.loop.call_soon(self._flushed)

    def _flushed(self) -> None:
        """What was in line is on the link, where it is counted."""
        if not self._todo:
            self.gate.emptied()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send():
                if self._link is not None:
                    self._link.send(effect.message)
            case Settled():
                for record in effect.records:
                    self._settle(record)
            case Answered():
                self._on_answer(effect)
            case Log():
                logger.log(effect.level, "%s", effect.text)
            case EventLogged():
                if self.on_event is not None:
                    doors.call("handler", self.on_event, effect)
            case Registered():
                self._registered.set()

    def _settle(self, record: FutureRecord) -> None:
        record.held = None
        if record.event is not None:
            record.event.set()
        if record.callbacks is not None:
            callbacks, record.callbacks = record.callbacks, None
            for callback in callbacks:
                doors.call("callback", callback)

    def _on_answer(self, answer: Answered) -> None:
        if answer.rid == 0:
            for future in self._answers.values():
                if not future.done():
                    future.set_exception(ClosedClientError(self.core.closed))
            self._answers.clear()
            return
        found = self._answers.pop(answer.rid, None)
        if found is None or found.done():
            return
        if answer.error is None:
            found.set_result(answer.value)
        else:
            found.set_exception(UsageError(answer.error))

    def _on_messages(self, link: Link, messages: list[Any]) -> None:
        with self.lock:  # whoever holds it sees no future change
            self._drain()  # what was wished for before this was read: older news says nothing about it
            self._driver.push(Received("", messages))

    def _on_closed(self, link: Link, reason: str) -> None:
        told = f"the link to the scheduler at {self.addresses[0]} closed: {reason}"
        with self.lock:
            self._driver.push(LinkLost("scheduler", link.peer_id, told))
        self.gate.close()

    def _on_crash(self, error: BaseException) -> None:
        self.core.closed = f"shoal's client failed, which is a bug: {error!r}"
        for record in tuple(self.core.futures.values()):
            if record.pending:
                record.status, record.reason = FutureStatus.CANCELLED, self.core.closed
                self._settle(record)
        self._on_answer(Answered(0, None, None))
        if self._link is not None:
            self._link.close(self.core.closed)

    async def request(self, make: Callable[[int], Any], timeout: float | None = None) -> Any:
        """Send the message that ``make(rid)`` returns, after all that was said before, and wait for its answer.

        Raises
        ------
        UsageError
            If the scheduler refused it, with its words.
        ClosedClientError
            If the link closes first.
        """
        await self.gate.pause()
        _, future = self._begin_request(make)
        async with asyncio.timeout(timeout):
            return await future

    def _begin_request(self, make: Callable[[int], Any]) -> tuple[int, asyncio.Future[Any]]:
        """Send a request, after all that was said before; return its number, and what its answer will resolve."""
        self.check_open()
        self._rid += 1
        message = make(self._rid)
        if type(message) in (Meet, Query):
            check_plain(message.args, f"what {message.what!r} is asked with")
        checked(message)
        future = self._answers[self._rid] = self.loop.create_future()
        with self.lock:
            self._drain()
            self._driver.push(Said(message))
        return self._rid, future

    async def meet(
        self,
        what: str,
        name: str,
        *,
        payload: Any = None,
        keys: Sequence[str] = (),
        undo: Callable[[Any], None] | None = None,
        **args: Any,
    ) -> tuple[int, Any]:
        """Ask the scheduler for something that clients do with each other; return the request's number and its answer.

        ``undo`` is called with the answer if it comes when nobody waits for it any more.

        Raises
        ------
        UsageError
            If the scheduler refused it, with its words.
        ClosedClientError
            If the link closes first.
        """
        await self.gate.pause()
        rid, future = self._begin_request(lambda rid: Meet(rid, what, name, args, payload, list(keys)))
        try:
            return rid, await asyncio.shield(future)
        except asyncio.CancelledError:

            def answered(future: asyncio.Future[Any]) -> None:
                if not future.cancelled() and future.exception() is None and undo is not None:
                    undo((rid, future.result()))

            if not self.closed:
                self.say(Withdraw(rid))
            future.add_done_callback(answered)
            raise

    def say_meet(self, what: str, name: str, *, payload: Any = None, keys: Sequence[str] = (), **args: Any) -> None:
        """As :meth:`meet`, where nobody waits for the answer."""
        self._rid += 1
        self.say(Meet(self._rid, what, name, args, payload, list(keys)))

    def took(self, rid: int) -> None:
        """The futures that came with the answer to this request are wanted here now, or never will be."""
        if not self.closed:
            self.say(Took(rid))

    async def ask(self, what: str, **args: Any) -> Any:
        """Ask the scheduler a question of ``core/scheduler/info.py``."""
        return await self.request(lambda rid: Query(rid, what, args))

    async def fetch(self, keys: list[str]) -> dict[str, Any]:
        """As :meth:`Transfers.fetch`."""
        return await self._transfers.fetch(keys)

    async def outcomes(self, records: list[FutureRecord], to_the_end: bool = True) -> list[Outcome]:
        """Wait until all are done; return how each ended, with the payloads of those that succeeded.

        Where ``to_the_end`` is False, the first that did not succeed ends it, and others may still be pending.
        A value whose last holder dies on the way is waited for again: the scheduler recomputes it.

        Raises
        ------
        TaskError
            If a value that is said to be in memory could not be had for a minute.
        """
        values: dict[str, Any] = {}
        progress = monotonic()
        while True:
            await self.all_done(records, to_the_end)
            with self.lock:
                found = [record.outcome() for record in records]
            kinds = {outcome.status for outcome in found}
            if not to_the_end and kinds - _GOING_WELL:
                return found
            if FutureStatus.PENDING in kinds:
                continue
            far = [
                outcome.key
                for outcome in found
                if outcome.status is FutureStatus.FINISHED and outcome.value is None and outcome.key not in values
            ]
            if not far:
                return [
                    outcome._replace(value=values[outcome.key])
                    if outcome.status is FutureStatus.FINISHED and outcome.value is None
                    else outcome
                    for outcome in found
                ]
            fetched = await self.fetch(list(dict.fromkeys(far)))
            values.update(fetched)
            if fetched:
                progress = monotonic()
            elif monotonic() - progress > FETCH_TIMEOUT:
                raise TaskError(f"no worker could give {far[:5]} within {FETCH_TIMEOUT:g} s")
            else:
                await asyncio.sleep(0.05)

    async def put(self, payloads: dict[str, Any], workers: list[str] | None, broadcast: bool) -> None:
        """As :meth:`Transfers.put`."""
        await self._transfers.put(payloads, workers, broadcast)

    async def close(self, reason: str) -> None:
        """Say what is left to say, then goodbye."""
        if self.core.closed:
            return
        self._drain()
        self.leases.close()
        if self._link is not None:
            self._link.send(Bye(text(reason)))
            self._link.close(reason)
        self.peers.close()
        with self.lock:
            self._driver.push(LinkLost("scheduler", "", reason))
            self._driver.close()
        self.gate.close()


def _is_done(record: FutureRecord) -> bool:
    return not record.pending
