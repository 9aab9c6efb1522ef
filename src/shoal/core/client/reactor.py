"""What a client says and hears, as a core like the others: ``handle(events, now) -> effects``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never

from shoal.core.client.future import FUTURE, FutureEvent, FutureRecord, FutureStatus
from shoal.core.effects import WARNING, Answered, Effect, EventLogged, Log, Registered, Send, Settled
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
    Submit,
    ToClient,
    Unwant,
    Want,
    Warned,
)


class ClientCore:
    """All decisions of a client.

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
                self._on_said(event.message)
            elif type(event) is Released:
                self._on_released(event.record)
            elif type(event) is LinkLost:
                self._on_lost(event.reason)
            else:
                raise TypeError(f"not an event of a client's: {event!r}")
        self._flush_unwanted()
        if self._settled:
            effects.append(Settled(self._settled))
            self._settled = []
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
                        record.value, record.type, record.error = item.value, item.type, None
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
                        self._end(record, message.reason, message.lost)
            case KeysRestarted():
                for key in message.keys:
                    record = self.futures.get(key)
                    if record is not None and record.concerned(message.wish):
                        record.status = FUTURE.advance(record.status, FutureEvent.RESTART, key)
                        record.value = record.error = None
                        if record.event is not None:
                            record.event.clear()
            case Logged():
                self._effects.append(EventLogged(message.topic, message.msg, message.when))
            case Warned():
                self._effects.append(Log(WARNING, message.text))
            case Answer():
                self._effects.append(Answered(message.rid, message.value, message.error))
            case ClientRegistered():
                self._effects.append(Registered())
            case Bye():
                self._on_lost(message.reason)
            case _:
                assert_never(message)

    def _on_said(self, message: Any) -> None:
        if isinstance(message, Submit | Want):
            self._wish += 1
            message.wish = self._wish
            for key in message.wants if isinstance(message, Submit) else message.keys:
                record = self.futures.get(key)
                if record is not None:
                    record.said += 1
                    record.wish = self._wish
        self._effects.append(Send("", message))

    def _settle(self, record: FutureRecord, event: FutureEvent) -> None:
        record.status = FUTURE.advance(record.status, event, record.key)
        self._settled.append(record)

    def _end(self, record: FutureRecord, reason: str, lost: bool) -> None:
        record.reason = reason
        if lost and record.status is not FutureStatus.ERROR:
            self._settle(record, FutureEvent.LOSE)
        else:
            self._settle(record, FutureEvent.CANCEL)

    def _on_released(self, record: FutureRecord) -> None:
        record.refs -= 1
        if record.refs == 0:
            if self.futures.get(record.key) is record:
                del self.futures[record.key]
                self._unwanted.append(record.key)
            elif not record.over:  # wished for anew meanwhile, and that wish follows
                self._unwanted.append(record.key)

    def _flush_unwanted(self) -> None:
        if self._unwanted:
            self._effects.append(Send("", Unwant(self._unwanted)))
            self._unwanted = []

    def _on_lost(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = reason or "the scheduler closed it"
        for record in tuple(self.futures.values()):
            if record.pending:
                self._end(record, self.closed, lost=False)
        self._effects.append(Answered(0, None, self.closed))
