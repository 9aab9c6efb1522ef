"""Requests that wait for answers of several peers: functions run on workers, restarts."""

from __future__ import annotations

from typing import Any

from shoal.ids import ClientId, SlotId, WorkerId
from shoal.messages import Answer


class PendingCall:
    """One ``Client.run``: who has yet to answer, and what was answered, by address."""

    __slots__ = ("client", "errors", "id", "results", "rid", "waiting")

    def __init__(self, id: int, client: ClientId, rid: int, waiting: dict[str, str]) -> None:
        self.id, self.client, self.rid = id, client, rid
        self.waiting = waiting
        self.results: dict[str, Any] = {}
        self.errors: dict[str, str] = {}

    @property
    def complete(self) -> bool:
        return not self.waiting


class PendingCalls:
    """All calls under way."""

    __slots__ = ("_calls", "_next")

    def __init__(self) -> None:
        self._calls: dict[int, PendingCall] = {}
        self._next = 0

    def begin(self, client: ClientId, rid: int, waiting: dict[str, str]) -> PendingCall:
        self._next += 1
        call = self._calls[self._next] = PendingCall(self._next, client, rid, waiting)
        return call

    def end(self, call: PendingCall) -> None:
        self._calls.pop(call.id, None)

    def answered(self, peer: str, answer: Answer) -> list[PendingCall]:
        """Note the answer of ``peer``; return the call that it belongs to, in a list."""
        call = self._calls.get(answer.rid)
        if call is None:
            return []
        address = call.waiting.pop(peer, None)
        if address is not None:
            if answer.error is None:
                call.results[address] = answer.value
            else:
                call.errors[address] = answer.error
        return [call]

    def peer_lost(self, peer: str, reason: str) -> list[PendingCall]:
        """``peer`` will not answer any more; return the calls that waited for it."""
        touched = []
        for call in tuple(self._calls.values()):
            address = call.waiting.pop(peer, None)
            if address is not None:
                call.errors[address] = reason
                touched.append(call)
        return touched

    def client_lost(self, client: ClientId) -> None:
        for call in tuple(self._calls.values()):
            if call.client == client:
                del self._calls[call.id]


class PendingRestart:
    """One ``Client.restart`` or ``restart_workers``: the slots whose worker is to be replaced, with the worker there.

    ``results``, by the name that was given, is what the second answers; None for the first.
    """

    __slots__ = ("client", "deadline", "names", "results", "rid", "timeout", "wait_for_workers", "waiting")

    def __init__(self, client: ClientId, rid: int, deadline: float, timeout: float, wait_for_workers: bool) -> None:
        self.client, self.rid, self.deadline, self.timeout = client, rid, deadline, timeout
        self.wait_for_workers = wait_for_workers
        self.waiting: dict[SlotId, WorkerId] = {}
        #: How the client named the workers, by slot.
        self.names: dict[SlotId, str] = {}
        self.results: dict[str, str] | None = None
