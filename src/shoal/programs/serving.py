"""What a worker does for those who want values of it, or give it some: its peers, and clients."""

from __future__ import annotations

import asyncio
import itertools
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from shoal import config
from shoal.checks import text
from shoal.core.effects import HandOver
from shoal.core.events import PutDone
from shoal.core.worker.reactor import WorkerCore
from shoal.errors import SerializationError
from shoal.messages import ActorCall, Answer, Bye, Data, GetData, Given, PutData, Returned
from shoal.shell import direct, serialize
from shoal.shell.actors import Actors
from shoal.shell.driver import Driver
from shoal.shell.link import Link
from shoal.shell.loops import in_thread
from shoal.shell.memory_manager import MemoryManager
from shoal.shell.serialize import payload_nbytes
from shoal.shell.store import Pickled, ValueStore

logger = logging.getLogger("shoal.worker")

#: Bytes of values in one answer to who sets no limit (a single larger one is sent all the same).
ANSWER_BYTES: Final = 64 << 20
#: Bytes of values that one peer may be reading from this process's memory before its next request waits.
LENT_BYTES: Final = 128 << 20
#: Answers from this size on are written at once, so that the next request sees whether the link has room.
_LARGE: Final = 1 << 20


class Serving(ABC):
    """The part of a worker that others fetch from and put to.

    Parameters
    ----------
    memory_limit
        Of the worker, in bytes; 0 is none.
    """

    core: WorkerCore
    store: ValueStore
    driver: Driver
    actors: Actors
    memory_manager: MemoryManager
    _link: Link | None

    def __init__(self, memory_limit: int) -> None:
        name = "distributed.worker.memory.transfer"
        #: Bytes that may be on the way from peers; 0 is no limit.
        self._transfer = int(config.fraction(config.get(name, 0.1), name) * memory_limit)
        self._reading = asyncio.Semaphore(1)
        #: Requests of clients that put data here, which are answered once the scheduler has heard of it.
        self._puts: dict[int, tuple[Link, int]] = {}
        self._put_numbers = itertools.count(1)
        #: Bytes of values that came from peers and clients, and that went to them.
        self.bytes_in = self.bytes_out = 0
        #: Payloads that peers are reading from this process's memory, by their link and the number of the request.
        self._lent: dict[tuple[Link, int], list[Any]] = {}
        #: Requests for values that wait until their peer has taken what it asked for before.
        self._lines: dict[Link, deque[GetData]] = {}

    @abstractmethod
    def _spawn(self, coroutine: Any, otherwise: Callable[[BaseException], None] | None = None) -> None:
        """Run a coroutine on the loop."""

    @abstractmethod
    def _on_lost(self, key: str, reason: str) -> None:
        """A value that was spilled cannot be read."""

    def _forget_lent(self, link: Link) -> None:
        """A peer reads nothing any more."""
        self._lines.pop(link, None)
        for lent in [lent for lent in self._lent if lent[0] is link]:
            del self._lent[lent]

    def _keep(self, items: dict[str, Any]) -> list[tuple[str, int, str]]:
        """Store values that came from elsewhere; return their keys and sizes as the core wants them."""
        kept = []
        for key, payload in items.items():
            nbytes = payload_nbytes(payload)
            self.store.put(key, Pickled(payload), nbytes)
            self.bytes_in += nbytes
            kept.append((key, nbytes, ""))
        self.memory_manager.check()
        self._limit_transfers()
        return kept

    def _limit_transfers(self) -> None:
        """Have less on the way while values are spilled."""
        if self._transfer:
            self.core.fetcher.limit(self._transfer // 4 if self.memory_manager.over_target else self._transfer)

    def _on_peer_messages(self, link: Link, messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, GetData):
                if link in self._lines or not self._has_room(link):
                    self._lines.setdefault(link, deque()).append(message)
                else:
                    self._serve(link, message)
            elif isinstance(message, Returned):
                self._lent.pop((link, message.lent), None)
                link.send(Answer(message.rid, "OK"))
                self._serve_line(link)
            elif isinstance(message, PutData):
                self._on_put(link, message)
            elif isinstance(message, ActorCall):
                self._spawn(self._call_actor(link, message), partial(_no_answer, link, message.rid))
            elif isinstance(message, Bye):
                link.close()

    def _hand_over(self, effect: HandOver) -> None:
        """Give values to the scheduler, for one who cannot reach this worker."""
        if self._link is not None:
            self._serve(self._link, GetData(effect.rid, effect.keys, effect.max_bytes))

    def _has_room(self, link: Link) -> bool:
        """Whether its peer has taken enough of what it asked for to be given more."""
        if link is self._link:
            return True  # the scheduler asks for one after another
        if link.full:
            return False
        lent = [payload for (other, _), payloads in self._lent.items() if other is link for payload in payloads]
        return sum(map(payload_nbytes, lent)) < LENT_BYTES

    def _on_room(self, link: Link, full: bool) -> None:
        if not full:
            self._serve_line(link)

    def _serve_line(self, link: Link) -> None:
        """Answer what waited, as far as there is room."""
        line = self._lines.pop(link, None)
        while line:
            if not self._has_room(link):
                self._lines[link] = line
                return
            self._serve(link, line.popleft())

    def _serve(self, link: Link, message: GetData) -> None:
        message.max_bytes = message.max_bytes or ANSWER_BYTES
        spilled = [key for key in message.keys if self.store.is_on_disk(key)]
        if spilled:
            self._spawn(self._read_files(link, message, spilled), partial(_no_data, link, message))
        else:
            self._give(link, self._read(link, message))

    def _give(self, link: Link, answer: Data) -> None:
        if link is self._link:
            link.send(Given(answer.rid, answer.items, answer.missing, answer.errors, answer.editions))
        else:
            link.send(answer)
        if sum(map(payload_nbytes, answer.items.values())) >= _LARGE:
            link.flush()

    def _on_put(self, link: Link, message: PutData) -> None:
        """A client puts data here; it is answered once the scheduler knows."""
        if self.core.leaving:
            link.send(Answer(message.rid, "leaving"))
            return
        number = next(self._put_numbers)
        self._puts[number] = (link, message.rid)
        taken = {key: payload for key, payload in message.items.items() if self.core.takes(key)}
        refused = [key for key in message.items if key not in taken]
        self.driver.push(PutDone(message.client, self._keep(taken), refused, number))

    def _answer_put(self, number: int, what: str) -> None:
        link, rid = self._puts.pop(number)
        if not link.closed:
            link.send(Answer(rid, what))

    async def _call_actor(self, link: Link, message: ActorCall) -> None:
        link.send(Answer(message.rid, await self.actors.call(message.key, message.name, message.payload)))

    async def _read_files(self, link: Link, message: GetData, keys: list[str]) -> None:
        """Answer with values of which some are on disk: they are read in a thread, as many as fit the answer."""
        payloads: dict[str, Any] = {}

        def read() -> None:
            size = 0
            for key in keys:
                if size and message.max_bytes and size > message.max_bytes:
                    return
                try:
                    payloads[key] = self.store.dump(key)
                    size += payload_nbytes(payloads[key])
                except KeyError:
                    pass  # it was dropped meanwhile, and is missing
                except (SerializationError, OSError) as error:
                    payloads[key] = error.with_traceback(None)  # which would keep what was read of the file

        async with self._reading:  # others wait: what is read for all of them at once might not fit into memory
            if link.closed:
                return
            if not self._has_room(link):
                self._lines.setdefault(link, deque()).appendleft(message)
                return
            await in_thread(read)
        for key, payload in payloads.items():
            if isinstance(payload, OSError):
                self._on_lost(key, str(payload))
        self._give(link, self._read(link, message, payloads))

    def _read(self, link: Link, message: GetData, payloads: dict[str, Any] | None = None) -> Data:
        answer = Data(message.rid, {}, [], {})
        size = 0
        for key in message.keys:
            record = self.core.keys.get(key)
            if record is None or key not in self.store:
                answer.missing.append(key)
                continue
            if size and message.max_bytes and size > message.max_bytes:
                break
            payload = payloads.get(key) if payloads is not None else None
            if payload is None:
                if self.store.is_on_disk(key):
                    continue  # it was spilled meanwhile, or did not fit: it is asked for again
                try:
                    payload = self.store.dump(key)
                except SerializationError as error:
                    payload = error
            if isinstance(payload, OSError):
                answer.missing.append(key)
                continue
            if isinstance(payload, SerializationError):
                answer.errors[key] = text(str(payload))
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


def _no_answer(link: Link, rid: int, error: BaseException) -> None:
    link.send(Answer(rid, serialize.dumps((False, serialize.error_parts(error)))))


def _no_data(link: Link, message: GetData, error: BaseException) -> None:
    link.send(Data(message.rid, {}, list(message.keys), {}))
