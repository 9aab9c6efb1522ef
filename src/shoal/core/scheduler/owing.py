"""What clients are not told while their links are full, and are told once there is room again.

While a link is full, the scheduler notes which keys it has news of, and no more than that: results stay on the
workers. Once there is room, the client hears how these keys stand then, a slice at a time, and fetches what it wants.
Events of topics are kept up to a number, the oldest are dropped first, and the client is told how many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

from shoal.core.scheduler.roster import ClientRecord
from shoal.core.scheduler.task import Task, TaskState
from shoal.ids import ClientId
from shoal.messages import (
    Blob,
    Done,
    KeyErred,
    KeysCancelled,
    KeysDone,
    KeysRestarted,
    KilledTask,
    Logged,
    TaskError,
    Warned,
)

#: Events that wait for one client.
EVENTS: Final = 1000
#: What is told in one turn once there is room: keys, bytes of errors, events.
KEYS_A_TURN: Final = 1000
BYTES_A_TURN: Final = 1 << 20
EVENTS_A_TURN: Final = 100


class Owed:
    """What one client is to be told once there is room."""

    __slots__ = ("dropped", "events", "keys", "nbytes", "room", "since", "warning", "warnings")

    def __init__(self, since: float, nbytes: int) -> None:
        #: Since when its link has been full, and how much was owed then.
        self.since, self.nbytes = since, nbytes
        #: Whether there is room, and this is being told.
        self.room = False
        #: Keys that there are news of, in the order of the first; with the reason where they were cancelled.
        self.keys: dict[str, tuple[str, bool] | None] = {}
        self.events: deque[Logged] = deque()
        self.dropped = 0
        #: The last warning, and how many there were.
        self.warning, self.warnings = "", 0

    def takes(self, message: Any) -> bool:
        """Whether ``message`` waits here: what it says is noted."""
        match message:
            case KeysDone():
                self.keys.update(dict.fromkeys(item.key for item in message.items))
            case KeyErred() | KilledTask():
                self.keys[message.key] = None
            case KeysRestarted():
                self.keys.update(dict.fromkeys(message.keys))
            case KeysCancelled():
                self.keys.update(dict.fromkeys(message.keys, (message.reason, message.lost)))
            case Logged():
                self.events.append(message)
                if len(self.events) > EVENTS:
                    self.events.popleft()
                    self.dropped += 1
            case Warned():
                self.warning, self.warnings = message.text, self.warnings + 1
            case _:
                return False
        return True

    def wished(self, key: str) -> None:
        """The client wishes for ``key`` anew: what it was to hear before is how it stands from now on."""
        if key in self.keys:
            self.keys[key] = None

    @property
    def empty(self) -> bool:
        return not (self.keys or self.events or self.warnings)


class Owing:
    """Which clients read what is said to them.

    Parameters
    ----------
    clients, tasks
        The scheduler's tables.
    tell
        Puts a message in line for a client.
    bad_news
        What a client is told of an erred task.
    """

    def __init__(
        self,
        clients: dict[ClientId, ClientRecord],
        tasks: dict[str, Task],
        tell: Callable[[ClientRecord, Any], None],
        bad_news: Callable[[Task], Any],
    ) -> None:
        self._clients, self._tasks, self._tell, self._bad_news = clients, tasks, tell, bad_news
        #: Peers of all kinds that do not read: since when, and how much was owed to them then.
        self.peers: dict[str, tuple[float, int]] = {}
        #: Those that are told what they were owed, a slice in each turn.
        self._telling: dict[ClientId, None] = {}
        self.keys_a_turn = KEYS_A_TURN

    def full(self, peer: str, owed: int, now: float) -> None:
        """A peer does not read."""
        self.peers[peer] = (now, owed)
        client = self._clients.get(ClientId(peer))
        if client is None:
            return
        self._telling.pop(client.id, None)
        if client.owed is None:
            client.owed = Owed(now, owed)
        elif client.owed.room:
            client.owed.room, client.owed.since, client.owed.nbytes = False, now, owed

    def drained(self, peer: str) -> None:
        """A peer reads again."""
        self.peers.pop(peer, None)
        client = self._clients.get(ClientId(peer))
        if client is not None and client.owed is not None:
            client.owed.room = True
            self._telling[client.id] = None

    def lost(self, peer: str) -> None:
        """A peer is gone."""
        self.peers.pop(peer, None)
        self._telling.pop(ClientId(peer), None)

    def told(self, now: float) -> dict[str, dict[str, float]]:
        """For each peer that does not read: for how many seconds, and how many bytes were owed when that began."""
        return {peer: {"seconds": now - since, "owed": owed} for peer, (since, owed) in self.peers.items()}

    def due(self, now: float) -> float | None:
        """When the next slice is told."""
        return now if self._telling else None

    def step(self) -> None:
        """Tell those that read again a slice of what they are owed."""
        for id in tuple(self._telling):
            client = self._clients[id]
            owed, client.owed = client.owed, None  # what is told now does not wait
            assert owed is not None
            self._tell_keys(client, owed)
            for event in [owed.events.popleft() for _ in range(min(EVENTS_A_TURN, len(owed.events)))]:
                self._tell(client, event)
            if owed.keys or owed.events:
                client.owed = owed
                continue
            if owed.dropped:
                text = f"{owed.dropped} events were dropped: this client did not read what it was told for a while"
                self._tell(client, Warned(text))
            if owed.warnings:
                more = f" (and {owed.warnings - 1} warnings before it)" if owed.warnings > 1 else ""
                self._tell(client, Warned(owed.warning + more))
            del self._telling[id]

    def _tell_keys(self, client: ClientRecord, owed: Owed) -> None:
        """Say how a slice of the keys stand now."""
        done: list[Done] = []
        again: list[str] = []
        size = 0
        for key in list(islice(owed.keys, self.keys_a_turn)):
            if size > BYTES_A_TURN:
                break
            cancelled = owed.keys.pop(key)
            task = self._tasks.get(key)
            if cancelled is not None:
                self._tell(client, KeysCancelled([key], *cancelled))
            elif task is None or task not in client.wants:
                continue
            elif task.state is TaskState.MEMORY:
                done.append(Done(key, task.nbytes, task.type, None, task.peak))
            elif task.state is TaskState.ERRED:
                size += _size(task.error)
                self._tell(client, self._bad_news(task))
            else:
                again.append(key)
        if again:
            self._tell(client, KeysRestarted(again))
        if done:
            self._tell(client, KeysDone(done))


def _size(error: Any) -> int:
    """About how many bytes an error takes in a message."""
    if not isinstance(error, TaskError):
        return sum(map(len, error))
    size = len(error.text) + len(error.traceback_text)
    for part in (error.exception, error.traceback):
        size += part.nbytes if isinstance(part, Blob) else len(part or b"")
    return size
