"""Messages of a turn, gathered on the record of their receiver: many tasks leave in one message."""

from __future__ import annotations

from typing import Any

from shoal.core.effects import Effect, Send
from shoal.core.scheduler.roster import ClientRecord, WorkerRecord, WorkerState
from shoal.messages import FreeKeys, KeyErred, KeysCancelled, KeysDone, KeysRestarted, KilledTask

#: What clients are told of keys: it carries the last wish of theirs that was heard.
NEWS = frozenset({KeysDone, KeyErred, KilledTask, KeysCancelled, KeysRestarted})


class Outbox:
    """What is to be said when the turn ends."""

    def __init__(self) -> None:
        self._speakers: dict[WorkerRecord | ClientRecord, None] = {}

    def free(self, worker: WorkerRecord, key: str) -> None:
        """Have ``worker`` drop ``key``: the result, the copy, the assignment."""
        if worker.state is not WorkerState.LEFT:
            worker.out_free[key] = None
            self._speakers[worker] = None

    def flush_free(self, worker: WorkerRecord) -> None:
        if worker.out_free:
            worker.out.append(FreeKeys(list(worker.out_free), worker.announced))
            worker.out_free.clear()

    def tell(self, peer: WorkerRecord | ClientRecord, message: Any) -> None:
        """Put ``message`` in line for ``peer``; it leaves when the turn ends, or waits where the link is full."""
        if isinstance(peer, ClientRecord):
            if peer.owed is not None and peer.owed.takes(message):
                return
            if type(message) in NEWS:
                message.wish = peer.wish
        peer.out.append(message)
        self._speakers[peer] = None

    def tell_keys(self, client: ClientRecord, kind: type[KeysRestarted], key: str) -> None:
        """As :meth:`tell`, joining a message of the same kind that stands last."""
        last = client.out[-1] if client.out and client.owed is None else None
        if type(last) is kind and last.wish == client.wish:
            last.keys.append(key)
        else:
            self.tell(client, kind([key]))

    def flush(self, effects: list[Effect]) -> None:
        """Move the messages of this turn into ``effects``."""
        for peer in self._speakers:
            if isinstance(peer, WorkerRecord):
                self.flush_free(peer)
            elif not peer.remote:
                peer.out.clear()
            effects.extend(Send(peer.id, message) for message in peer.out)
            peer.out.clear()
        self._speakers.clear()

    def silence(self, worker: WorkerRecord) -> None:
        """``worker`` is gone: say nothing more to it."""
        worker.out.clear()
        worker.out_free.clear()
        self._speakers.pop(worker, None)
