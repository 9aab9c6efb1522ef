"""Events that programs and users log under topics, kept for a while and told to who subscribed."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from shoal.core.scheduler.state import SchedulerState
from shoal.ids import ClientId
from shoal.messages import Logged

#: Topics that events are kept of, workers and clients that left of which they are, and events of all topics.
TOPICS: Final = 4000
EXPIRING: Final = 1000
EVENTS: Final = 100_000
#: Topics that are never forgotten as a whole.
_LASTING: Final = frozenset({"all", "scheduler"})


class Topics:
    """The last events of each topic.

    Parameters
    ----------
    state
        Where the clients are.
    length
        Events kept of each topic.
    epoch
        Seconds to add to the scheduler's clock to have the time since 1970.
    keep
        Seconds for which the events of a worker or a client that left are kept.
    """

    def __init__(self, state: SchedulerState, length: int, epoch: float, keep: float) -> None:
        self._state, self._length, self._epoch, self._keep = state, length, epoch, keep
        self._expiring: deque[tuple[float, str]] = deque()
        self.events: dict[str, deque[tuple[float, Any]]] = {}
        #: Events of all topics together.
        self.kept = 0
        self.subscribers: dict[str, dict[ClientId, None]] = {}
        #: Events of this turn (topic, message), where a plugin wants them.
        self.watched: list[tuple[str, Any]] | None = None

    def now(self) -> float:
        """Seconds since 1970."""
        return self._state.now + self._epoch

    def log(self, topics: str | list[str], msg: Any, when: float | None = None) -> None:
        """Log ``msg`` under each of ``topics``."""
        at = self.now() if when is None else when
        while self._expiring and self._expiring[0][0] <= self._state.now:
            self._forget(self._expiring.popleft()[1])
        for topic in [topics] if isinstance(topics, str) else topics:
            events = self.events.get(topic)
            if events is None:
                events = self._begin(topic)
            if len(events) < self._length:
                self.kept += 1
                if self.kept > EVENTS:
                    self._make_room(but=topic)
            events.append((at, msg))
            if self.watched is not None:
                self.watched.append((topic, msg))
            for id in self.subscribers.get(topic, ()):
                client = self._state.clients.get(id)
                if client is not None:
                    self._state.tell(client, Logged(topic, msg, at))

    def _begin(self, topic: str) -> deque[tuple[float, Any]]:
        """Keep events of a topic, in place of those of the one that began first, if there are too many."""
        if len(self.events) >= TOPICS:
            self._make_room(but=topic)
        events = self.events[topic] = deque(maxlen=self._length)
        return events

    def _make_room(self, but: str) -> None:
        """Forget the topic that began first."""
        first = next((name for name in self.events if name not in _LASTING and name != but), None)
        if first is not None:
            self._forget(first)

    def _forget(self, topic: str) -> None:
        self.kept -= len(self.events.pop(topic, ()))

    def expire(self, topic: str) -> None:
        """The worker or client of this topic left: forget its events in a while."""
        self._expiring.append((self._state.now + self._keep, topic))
        while len(self._expiring) > EXPIRING:
            self._forget(self._expiring.popleft()[1])

    def subscribe(self, client: ClientId, topic: str, on: bool) -> None:
        """Tell ``client`` of events of ``topic``, or no more."""
        subscribers = self.subscribers.setdefault(topic, {})
        if on:
            subscribers[client] = None
        else:
            subscribers.pop(client, None)
        if not subscribers:
            del self.subscribers[topic]

    def client_lost(self, client: ClientId) -> None:
        """``client`` hears nothing any more."""
        for topic in [topic for topic, subscribers in self.subscribers.items() if client in subscribers]:
            self.subscribe(client, topic, on=False)
        self.expire(client)
