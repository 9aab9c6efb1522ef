"""What a client says and hears, as a core like the others: ``handle(events, now) -> effects``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, assert_never

from shoal.core.client.future import FUTURE, RELEASED, FutureEvent, FutureRecord, FutureStatus
from shoal.core.effects import ERROR, WARNING, Answered, Effect, EventLogged, Log, Registered, Send, Settled
from shoal.core.events import Event, LinkLost, Received, Released, Said
from shoal.messages import (
    Answer,
    Bye,
    ClientRegistered,
    KeyErred,
    KeysCancelled,
    KeysDone,
    KeysRestarted,
    KilledTask,
    Logged,
    Retry,
    Submit,
    ToClient,
    Unwant,
    Want,
    Warned,
)


class ClientCore:
    """All decisions of a client.

    What a user does to a future shows at once, before the scheduler has heard of it: :meth:`hold`, :meth:`forsake`,
    :meth:`cancel` and :meth:`retry` may be called between two turns. What they find out is in the effects of the next.

    Parameters
    ----------
    id
        Unique id of this client.
    """

    def __init__(self, id: str) -> None:
        self.id = id
        #: By wire key. A record leaves when the last future of it is let go of.
        self.futures: dict[str, FutureRecord] = {}
        #: Why nothing will be heard any more, once that is so.
        self.closed = ""
        self._wish = 0
        self._effects: list[Effect] = []
        self._settled: list[FutureRecord] = []
        self._unwanted: list[str] = []

    def handle(self, events: Sequence[Event], now: float) -> list[Effect]:
        """Take what happened; return what is to be done, in order."""
        effects = self._effects = []
        for event in events:
            if type(event) is Received:
                for message in event.messages:
                    self._on_message(message)
            elif type(event) is Said:
                self._flush_unwanted()
                self._on_said(event.message, event.records)
            elif type(event) is Released:
                self._on_released(event.record)
            elif type(event) is LinkLost:
                self._on_lost(event.reason)
            else:
                raise TypeError(f"not an event of a client's: {event!r}")
        self._flush_unwanted()
        if self._settled:
            settled = [record for record in self._settled if not record.pending]  # it may be computed again by now
            self._settled.clear()
            if settled:
                effects.append(Settled(settled))
        return effects

    def deadline(self) -> float | None:
        """A client waits for nothing by itself."""
        return None

    def _on_message(self, message: ToClient) -> None:
        match message:
            case KeysDone():
                for item in message.items:
                    record = self.futures.get(item.key)
                    if record is not None and record.concerned(message.wish):
                        if item.value is not None or record.status is not FutureStatus.FINISHED:
                            record.value = item.value  # else it is told again, and what came the first time is here
                        record.type, record.error = item.type, None
                        record.peak = item.peak
                        self._settle(record, FutureEvent.FINISH)
            case KeyErred() | KilledTask():
                record = self.futures.get(message.key)
                if record is not None and record.concerned(message.wish):
                    record.error, record.value = message, None
                    self._settle(record, FutureEvent.FAIL)
            case KeysCancelled():
                for key in message.keys:
                    record = self.futures.get(key)
                    if record is not None and record.concerned(message.wish):
                        record.wanted = False
                        self._end(record, message.reason, message.lost)
            case KeysRestarted():
                for key in message.keys:
                    record = self.futures.get(key)
                    if record is not None and record.concerned(message.wish):
                        self._restart(record)
            case Logged():
                self._effects.append(EventLogged(message.topic, message.msg, message.when))
            case Warned():
                self._effects.append(Log(WARNING, message.text))
            case Answer():
                self._effects.append(Answered(message.rid, message.value, message.error))
            case ClientRegistered():
                self._effects.append(Registered())
            case Bye():
                if message.failed:
                    self._effects.append(Log(ERROR, message.reason))
                self._on_lost(message.reason)
            case _:
                assert_never(message)

    # -------------------------------------------------------------------------------------------- what users do

    def hold(self, key: str) -> FutureRecord:
        """The record for one more future of ``key``. The message that wishes for it is to be said next, with it."""
        record = self.futures.get(key)
        if record is None or record.over or not record.handles:
            record = self.futures[key] = FutureRecord(key)
        record.handles.append(None)
        return record

    def forsake(self, record: FutureRecord) -> None:
        """The user let go of a future: if it was the last, nothing will be heard of the key."""
        if not record.handles and not record.over:
            self._end(record, RELEASED, lost=False)

    def cancel(self, keys: Iterable[str], reason: str) -> None:
        """The user cancels these; :class:`~shoal.messages.Cancel` is to be said next."""
        for key in keys:
            record = self.futures.get(key)
            if record is not None and not record.over:
                self._end(record, reason, lost=False)

    def retry(self, keys: Iterable[str]) -> list[FutureRecord]:
        """The user wants these run again: those that failed, with what made them fail, are pending from now on.

        Returns the records for which :class:`~shoal.messages.Retry` is to be said next, with them.
        """
        found: dict[FutureRecord, None] = {}
        for key in keys:
            record = self.futures.get(key)
            if record is None or record.over or record.status is FutureStatus.FINISHED:
                continue
            if record.status is FutureStatus.ERROR:
                origin = self.futures.get(record.error.origin)
                self._restart(record)
                if origin is not None and origin.status is FutureStatus.ERROR:
                    self._restart(origin)
                    found[origin] = None
            found[record] = None
        return list(found)

    # -------------------------------------------------------------------------------------------- what follows

    def _on_said(self, message: Any, records: Sequence[FutureRecord]) -> None:
        if isinstance(message, Submit | Want | Retry):
            self._wish += 1
            message.wish = self._wish
            for record in records:
                record.wish, record.wanted = self._wish, True
        self._effects.append(Send("", message))

    def _settle(self, record: FutureRecord, event: FutureEvent) -> None:
        record.status = FUTURE.advance(record.status, event, record.key)
        self._settled.append(record)

    def _restart(self, record: FutureRecord) -> None:
        record.status = FUTURE.advance(record.status, FutureEvent.RESTART, record.key)
        record.value = record.error = None
        if record.event is not None:
            record.event.clear()

    def _end(self, record: FutureRecord, reason: str, lost: bool) -> None:
        record.reason = reason
        record.value = record.error = None
        if lost and record.status is not FutureStatus.ERROR:
            self._settle(record, FutureEvent.LOSE)
        else:
            self._settle(record, FutureEvent.CANCEL)

    def _on_released(self, record: FutureRecord) -> None:
        if record.handles:
            return
        current = self.futures.get(record.key)
        if current is record:
            del self.futures[record.key]
        if record.wanted:
            record.wanted = False
            # Another record of the key may have been wished for: before this, and it is wanted still; or that follows.
            if current is None or current is record or not current.wanted:
                self._unwanted.append(record.key)
        self.forsake(record)

    def _flush_unwanted(self) -> None:
        if self._unwanted:
            self._effects.append(Send("", Unwant(self._unwanted)))
            self._unwanted = []

    def _on_lost(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = reason or "the scheduler closed it"
        told = f"its client is closed ({self.closed})"
        for record in tuple(self.futures.values()):
            if record.pending or (record.status is FutureStatus.FINISHED and record.value is None):
                self._end(record, told, lost=False)  # what came with the news is here, and stays
        self._effects.append(Answered(0, None, self.closed))
